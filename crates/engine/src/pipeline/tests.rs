use std::collections::BTreeMap;

use laredo_core::{TypeDef, TypeKind};
use proptest::prelude::*;

use super::*;

const KEY: &[u8] = b"0123456789abcdef";
const ENUM: u32 = 16_400;
const UNKNOWN: u32 = 16_401;

fn column(name: &str, type_oid: u32, type_name: &str) -> Column {
    let (name, type_name) = (name.to_owned(), type_name.to_owned());
    Column { name, type_oid, type_modifier: 24, type_name, not_null: true, is_text: false }
}

/// Returns a schema with the key `id`, and columns of several types.
fn schema() -> Arc<Schema> {
    let columns = vec![
        column("id", 20, "bigint"),
        column("email", 1043, "character varying(20)"),
        column("mood", ENUM, "mood"),
        column("odd", UNKNOWN, "odd"),
        column("born", 1082, "date"),
    ];
    let def = |name: &str, kind| TypeDef { name: name.to_owned(), kind };
    let labels = TypeKind::Enum(vec!["sad".to_owned()]);
    let types = BTreeMap::from([(ENUM, def("mood", labels)), (UNKNOWN, def("odd", TypeKind::Base))]);
    Arc::new(Schema::new(columns, KeyColumns::new([0]), types))
}

fn row(id: i64, email: Option<&str>) -> Tuple {
    let id = id.to_be_bytes();
    let email = email.map_or(Cell::Null, |email| Cell::Value(email.as_bytes()));
    let born = 1_i32.to_be_bytes();
    let cells = [Cell::Value(&id), email, Cell::Value(b"sad"), Cell::Value(&[0]), Cell::Value(&born)];
    cells.into_iter().collect::<TupleBuf>().as_ref().to_tuple()
}

fn names(fields: &[&str]) -> Vec<String> {
    fields.iter().map(|field| (*field).to_owned()).collect()
}

fn hash(fields: &[&str]) -> Transform {
    Transform::Hash(names(fields), HashKey::new(KEY).unwrap())
}

fn partial(keep_first: usize, keep_last: usize) -> ValueMask {
    ValueMask::Partial { keep_first, keep_last, with: '*' }
}

fn fixed(fields: &[&str]) -> Transform {
    Transform::Mask(names(fields), ValueMask::Fixed("***".to_owned()))
}

fn bind(transforms: Vec<Transform>) -> Result<Pipeline, PipelineError> {
    Pipeline::bind(&PipelineOptions { filters: Vec::new(), transforms }, &schema())
}

/// Returns what readers receive of a row, as text.
fn shown(pipeline: &Pipeline, row: &Tuple) -> Vec<Option<String>> {
    let mut scratch = TupleBuf::new();
    let text = |cell: Cell<'_>| cell.value().map(|bytes| String::from_utf8_lossy(bytes).into_owned());
    pipeline.out_row(row.as_ref(), &mut scratch).cells().map(text).collect()
}

/// The expected values are those of `printf %s TEXT | openssl dgst -sha256 -hmac 0123456789abcdef`.
#[test]
fn a_hash_is_the_hmac_of_the_text_that_postgresql_prints() {
    let pipeline = bind(vec![hash(&["id", "email", "mood", "born"])]).unwrap();
    let cells = shown(&pipeline, &row(7, Some("ada@example.org")));
    let expected = [
        (0, "f69cf4852626eee19b92af564b9413e44aa526cc9e726ab9b8972af1d3b39092"),
        (1, "48eef52843ab78cd641876afd0f93ce36cd8f1140d12da77c82ac27f919a849d"),
        (2, "7044f9603e31472dfff4823640ff817e517408e78cf41e8bfd05cad6db6659ee"),
        (4, "bc57dc689ad82d0f34b846dbfc95b8df507035657e3fde26586685ad1d55ff52"),
    ];
    for (place, hash) in expected {
        assert_eq!(cells[place].as_deref(), Some(hash), "{place}");
    }
    assert_eq!(shown(&pipeline, &row(7, None))[1], None, "NULL stays NULL");
}

#[test]
fn a_replaced_column_is_text_that_may_be_the_key() {
    let pipeline = bind(vec![hash(&["id", "mood"]), fixed(&["email", "odd"])]).unwrap();
    let out = pipeline.out();
    let facts = |name: &str| {
        let column = &out.columns()[out.position_of(name).unwrap()];
        (column.type_oid, column.type_modifier, column.type_name.clone(), column.not_null, column.is_text)
    };
    for name in ["id", "email", "mood", "odd"] {
        assert_eq!(facts(name), (25, -1, "text".to_owned(), true, false), "{name}");
    }
    assert_eq!(facts("born").0, 1082);
    assert!(out.type_def(25).is_some() && out.key().columns() == [0]);
    assert_eq!(pipeline.state(), &schema(), "the state has the source's own rows");
    assert!(pipeline.replaces_key() && !bind(vec![fixed(&["email"])]).unwrap().replaces_key());
}

#[test]
fn transforms_that_would_make_wrong_or_unknown_values_are_refused() {
    let renamed = Transform::RenameFields(vec![("email".to_owned(), "mail".to_owned())]);
    let masked = |field: &str| Transform::Mask(names(&[field]), partial(0, 1));
    let table = [
        (vec![fixed(&["id"])], "mask names column `id`, which is part of the key"),
        (vec![masked("id")], "mask names column `id`, which is part of the key"),
        (vec![hash(&["phone"])], "hash names column `phone`, which the table does not have"),
        (vec![masked("phone")], "mask names column `phone`, which the table does not have"),
        (vec![renamed.clone(), hash(&["email"])], "hash names column `email`, which the table does not have"),
        (vec![hash(&["email", "email"])], "hash names column `email`, whose values hash replaces already"),
        (vec![hash(&["email"]), fixed(&["email"])], "mask names column `email`, whose values hash replaces already"),
        (vec![fixed(&["email"]), renamed, hash(&["mail"])], "hash names column `mail`, whose values mask replaces"),
        (vec![hash(&["odd"])], "hash names column `odd` of type odd, and laredo cannot print its values"),
        (vec![masked("odd")], "mask names column `odd` of type odd, and laredo cannot print its values"),
    ];
    for (transforms, expected) in table {
        let error = bind(transforms).unwrap_err().to_string();
        assert!(error.starts_with(expected), "{error}");
    }
}

#[test]
fn a_key_is_long_enough_and_never_shown() {
    assert_eq!(HashKey::new(&KEY[1..]), Err(ShortHashKey(15)));
    let options = |key: &[u8]| {
        let transforms = vec![Transform::Hash(names(&["email"]), HashKey::new(key).unwrap())];
        PipelineOptions { filters: Vec::new(), transforms }
    };
    let (one, other) = (options(KEY).description(), options(b"0123456789abcdeF").description());
    assert_eq!(one, options(KEY).description());
    assert_ne!(one, other, "another key makes other rows");
    for text in [one, other, format!("{:?}", options(KEY))] {
        assert!(!text.contains("0123456789abcde") && text.contains("HashKey("), "{text}");
    }
}

#[test]
fn what_readers_have_is_known_while_the_replaced_columns_stay_the_same() {
    let one = bind(vec![hash(&["email"]), Transform::DropFields(names(&["odd"]))]).unwrap();
    let with = |change: fn(&mut Vec<Column>)| {
        let mut columns = schema().columns().to_vec();
        change(&mut columns);
        let schema = Arc::new(Schema::new(columns, KeyColumns::new([0]), schema().types().clone()));
        let transforms = vec![hash(&["email"]), Transform::DropFields(names(&["odd"]))];
        Pipeline::bind(&PipelineOptions { filters: Vec::new(), transforms }, &schema).unwrap()
    };
    assert!(one.keeps_replaced_values(&with(|columns| columns.push(column("more", 25, "text")))));
    assert!(one.keeps_replaced_values(&with(|columns| columns[3].type_oid = 23)), "a dropped one may change");
    assert!(!one.keeps_replaced_values(&with(|columns| columns[1].type_oid = 25)));
    assert!(!one.keeps_replaced_values(&with(|columns| columns[1].type_modifier = 44)));
}

proptest! {
    #[test]
    fn hashes_are_equal_exactly_if_texts_are(one in ".{0,6}", other in ".{0,6}") {
        let pipeline = bind(vec![hash(&["email"])]).unwrap();
        let of = |text: &str| shown(&pipeline, &row(1, Some(text)))[1].clone().unwrap();
        prop_assert_eq!(of(&one) == of(&other), one == other);
        prop_assert_eq!(of(&one).len(), 64);
        prop_assert_eq!(of(&one), of(&one.clone()));
    }

    /// A mask shows the characters that are to be kept, and no other character of the value.
    #[test]
    fn a_mask_shows_no_more_than_it_keeps(text in "[^*]{0,12}", first in 0_usize..4, last in 0_usize..6) {
        let transform = Transform::Mask(names(&["email"]), partial(first, last));
        let masked = shown(&bind(vec![transform]).unwrap(), &row(1, Some(&text)))[1].clone().unwrap();
        let (text, masked): (Vec<char>, Vec<char>) = (text.chars().collect(), masked.chars().collect());
        prop_assert_eq!(text.len(), masked.len());
        let is_short = text.len() <= first + last;
        for (place, (was, is)) in text.iter().zip(&masked).enumerate() {
            let is_kept = !is_short && (place < first || place + last >= text.len());
            prop_assert_eq!(*is, if is_kept { *was } else { '*' });
        }
        // No suffix of the value that is longer than what is kept.
        let suffix = text.iter().rev().zip(masked.iter().rev()).take_while(|(was, is)| was == is).count();
        prop_assert!(suffix <= last, "{:?} {:?}", text, masked);
    }

    #[test]
    fn a_fixed_mask_shows_nothing_of_any_value(text in ".{0,40}") {
        let masked = shown(&bind(vec![fixed(&["email"])]).unwrap(), &row(1, Some(&text)));
        prop_assert_eq!(masked[1].as_deref(), Some("***"));
    }
}
