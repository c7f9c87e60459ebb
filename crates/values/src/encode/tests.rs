use laredo_core::{Cell, Oid};
use postgres_types::Type;
use proptest::prelude::*;

use super::*;
use crate::fixtures::{
    CITEXT, FLOAT_RANGE, LIST, LISTS, LISTS_RANGE, LTREE, MOOD, PAIR, PAIR_RANGE, PAIRS, SHORT, TEXT_RANGE, VECTOR,
    any_type, array, interval, joined, key_schema, likely_bytes, numeric, pair, schema, value as project, value_in,
};
use crate::types::json::document_text;
use crate::wire::to_versioned;

fn back(oid: Oid, value: &Value) -> Result<Vec<u8>, ValueMismatch> {
    let bytes = unproject_cell(&schema(oid, false), 0, value).map_err(|error| error.problem)?;
    Ok(bytes.unwrap_or_default())
}

/// Tests that PostgreSQL's exact bytes are restored.
#[test]
fn cells_come_back_to_the_byte() {
    let one = 1_i32.to_be_bytes();
    let sized = |bytes: &[u8]| joined(&[&i32::try_from(bytes.len()).unwrap().to_be_bytes(), bytes]);
    let mut with_null = array(23, &[(2, 1), (2, 1)], &[Some(&one), None, Some(&one), Some(&one)]);
    with_null[7] = 1;
    let cases: Vec<(Oid, Vec<u8>)> = vec![
        (16, vec![1]),
        (21, i16::MIN.to_be_bytes().to_vec()),
        (20, i64::MIN.to_be_bytes().to_vec()),
        (20, (1_i64 << 53).to_be_bytes().to_vec()),
        (700, 0.1_f32.to_be_bytes().to_vec()),
        (701, (-0.0_f64).to_be_bytes().to_vec()),
        (701, f64::NEG_INFINITY.to_be_bytes().to_vec()),
        (1700, numeric(0, 0, 3, &[])),
        (1700, numeric(0, 0x4000, 1, &[12, 3000])),
        (1700, numeric(-3, 0, 12, &[1])),
        (1700, numeric(2, 0, 0, &[1])),
        (1700, numeric(0, 0, 20, &[1])),
        (1700, numeric(0, 0xC000, 0, &[])),
        (1082, (-2_451_545_i32).to_be_bytes().to_vec()),
        (1082, 2_145_031_948_i32.to_be_bytes().to_vec()),
        (1114, (-1_i64).to_be_bytes().to_vec()),
        (1184, 9_223_371_331_199_999_999_i64.to_be_bytes().to_vec()),
        (1184, (-211_813_488_000_000_000_i64).to_be_bytes().to_vec()),
        (1184, i64::MAX.to_be_bytes().to_vec()),
        (1266, joined(&[&14_706_000_000_i64.to_be_bytes(), &(-19_815_i32).to_be_bytes()])),
        (1083, 86_400_000_000_i64.to_be_bytes().to_vec()),
        (1186, interval(i64::MIN, i32::MIN, 0)),
        (1186, interval(-14_706_700_000, 3, -14)),
        (1186, interval(0, 0, 0)),
        (17, vec![0, 255, 1]),
        (18, vec![0xFF]),
        (18, b"\\".to_vec()),
        (2950, vec![0xAB; 16]),
        (869, vec![2, 32, 0, 4, 10, 0, 0, 1]),
        (650, vec![2, 8, 1, 4, 10, 0, 0, 0]),
        (1562, vec![0, 0, 0, 10, 0b1010_0000, 0b0100_0000]),
        (790, i64::MIN.to_be_bytes().to_vec()),
        (3220, 0x16_B374_D848_u64.to_be_bytes().to_vec()),
        (1007, array(23, &[], &[])),
        (1007, with_null),
        (PAIRS, array(PAIR, &[(2, 1)], &[Some(&pair(Some(1), Some(""))), Some(&pair(Some(2), Some("é\"\\")))])),
        (SHORT, vec![0, 7]),
        (MOOD, b"ok".to_vec()),
        (CITEXT, b"Ab".to_vec()),
        (VECTOR, vec![1, 0xAB]),
        (3904, joined(&[&[2], &sized(&1_i32.to_be_bytes()), &sized(&9_i32.to_be_bytes())])),
        (3904, vec![0x18]),
        (TEXT_RANGE, joined(&[&[6], &sized(b""), &sized(b"a\"b\\c, (")])),
        (FLOAT_RANGE, joined(&[&[0x12], &sized(&1e15_f64.to_be_bytes())])),
        (PAIR_RANGE, joined(&[&[6], &sized(&pair(Some(1), Some("a b"))), &sized(&pair(None, Some("")))])),
        (4451, joined(&[&[0, 0, 0, 2], &sized(&[1]), &sized(&[0x18])])),
        (3614, joined(&[&[0, 0, 0, 1], b"it's\\\0", &[0, 2], &[0x80, 1], &[0, 2]])),
        (3615, joined(&[&[0, 0, 0, 3], &[2, 4, 0, 3], &[1, 9, 1], b"b\0", &[1, 0, 0], b"a\0"])),
        (3802, b"\x01{\"b\": 2, \"aa\": [1, \"x\\n\"]}".to_vec()),
        (1007, array(23, &[(1, 5)], &[Some(&one)])),
        (1007, array(23, &[(1, 1), (1, 0)], &[Some(&one)])),
        (3807, array(3802, &[(1, 1), (1, 1)], &[Some(b"\x01[1]")])),
        (LISTS, array(LIST, &[(1, 1), (1, 1)], &[Some(&array(23, &[(1, 1)], &[Some(&one)]))])),
        (LISTS, array(LIST, &[(1, 1)], &[Some(&array(23, &[(1, 0)], &[Some(&one)]))])),
        (LTREE, b"\x01Top.A".to_vec()),
        (LTREE, b"\x02Top".to_vec()),
    ];
    for (oid, bytes) in cases {
        let value = project(oid, &bytes).unwrap();
        assert_eq!(back(oid, &value).as_deref(), Ok(bytes.as_slice()), "{oid}: {value:?}");
    }
    let lists = [array(25, &[(3, 0)], &[Some(b"null"), None, Some(b"a,\"")]), array(25, &[], &[])];
    let value = project(LISTS_RANGE, &joined(&[&[0], &sized(&lists[0]), &sized(&lists[1])])).unwrap();
    assert_eq!(project(LISTS_RANGE, &back(LISTS_RANGE, &value).unwrap()), Ok(value));
}

#[test]
fn what_is_no_value_of_the_type_is_named() {
    let text = |text: &str| Value::String(text.to_owned());
    for (oid, value, problem) in [
        (23, text("1"), ValueMismatch::Kind("a number")),
        (21, Value::Number(40_000.0), ValueMismatch::Range),
        (23, Value::Number(0.5), ValueMismatch::Range),
        (1700, text("1e5"), ValueMismatch::Text("a number")),
        (1700, text(""), ValueMismatch::Text("a number")),
        (1082, text("2000-13-01"), ValueMismatch::Range),
        (1114, text("2000-01-01"), ValueMismatch::Text("a timestamp")),
        (1083, text("24:00:01"), ValueMismatch::Range),
        (1186, text("1 day"), ValueMismatch::Text("an ISO 8601 duration")),
        (1007, Value::List(vec![Value::List(vec![]), Value::Null]), ValueMismatch::Uneven),
        (PAIR, Value::Object(vec![]), ValueMismatch::Fields("x, y z".to_owned())),
        (3904, text("[1,2"), ValueMismatch::Text("a range")),
        (701, text("inf"), ValueMismatch::Text("a number")),
        (3615, text("'a' &"), ValueMismatch::Text("a text search query")),
    ] {
        assert_eq!(back(oid, &value), Err(problem), "{oid}: {value:?}");
    }
    let error = unproject_cell(&schema(23, false), 0, &text("x")).unwrap_err();
    assert_eq!(
        error.to_string(),
        "column `c` cannot be \"x\": it is of type some type, and its values are written as a number"
    );
    let unknown = unproject_row(&schema(23, false), &[("d".to_owned(), Value::Null)]);
    assert_eq!(unknown.map_err(|error| error.problem).err(), Some(ValueMismatch::NoColumn));
}

#[test]
fn a_row_comes_back_by_its_names() {
    let schema = schema(25, false);
    let row = unproject_row(&schema, &[("c".to_owned(), Value::String("x".to_owned()))]).unwrap();
    assert_eq!(row.as_ref().cell(0), Cell::Value(b"x"));
    assert_eq!(unproject_row(&schema, &[]).unwrap().as_ref().cell(0), Cell::Null);
}

/// Returns true if PostgreSQL might send these bytes. An `inet` contains a flag that it is not a
/// `cidr`, and the reverse.
fn might_be_sent(oid: Oid, bytes: &[u8]) -> bool {
    let has_addresses =
        |oid: Oid| matches!(Type::from_oid(oid), Some(Type::INET | Type::CIDR | Type::INET_ARRAY | Type::CIDR_ARRAY));
    !has_addresses(oid) || bytes.is_empty()
}

/// Returns documents whose strings look like documents.
fn any_document() -> impl Strategy<Value = String> {
    let leaf = proptest::sample::select(vec![
        "null",
        "true",
        "0",
        "1.50",
        "9007199254740993",
        "\"9007199254740993\"",
        "\"5\"",
        "\"a\"",
        "\"null\"",
        "\"[1]\"",
        "\"\\\"5\\\"\"",
        "100000000000000000000000000000",
        "-0.10",
        "\"\"",
    ]);
    leaf.prop_map(str::to_owned).prop_recursive(4, 16, 4, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(|items| format!("[{}]", items.join(","))),
            proptest::collection::btree_map("[a-c]{0,2}", inner, 0..4).prop_map(|fields| {
                let fields: Vec<String> = fields.iter().map(|(name, value)| format!("\"{name}\":{value}")).collect();
                format!("{{{}}}", fields.join(","))
            }),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]

    #[test]
    fn what_is_read_back_projects_to_the_same(oid in any_type(), bytes in likely_bytes()) {
        if let Ok(value) = project(oid, &bytes)
            && value != Value::Null
            && might_be_sent(oid, &bytes)
        {
            let json = Value::from_json(value.to_json());
            let again = back(oid, &json).map(|bytes| project(oid, &bytes));
            prop_assert_eq!(again.clone(), Ok(Ok(value)), "{}: {:?}", oid, again);
        }
    }

    #[test]
    fn what_is_read_back_of_a_key_projects_to_the_same(oid in any_type(), bytes in likely_bytes()) {
        if let Ok(value) = value_in(key_schema(oid), &bytes)
            && might_be_sent(oid, &bytes)
        {
            let json = Value::from_json(value.to_json());
            let again = unproject_cell(&key_schema(oid), 0, &json).map(Option::unwrap_or_default);
            prop_assert_eq!(again.map(|bytes| value_in(key_schema(oid), &bytes)), Ok(Ok(value)));
        }
    }

    #[test]
    fn documents_of_a_key_come_back_to_the_byte(json in any_document()) {
        // A document as `jsonb` has it, with a number that a double may not hold.
        let text = document_text(&json).unwrap();
        let cell = to_versioned(&text);
        let value = value_in(key_schema(3802), &cell).unwrap();
        prop_assert_eq!(unproject_cell(&key_schema(3802), 0, &Value::from_json(value.to_json())), Ok(Some(cell)));
    }

    #[test]
    fn no_text_is_fatal(oid in any_type(), text in "[-+0-9a-zA-Z'\"\\\\(){}\\[\\],:;.<>&|! TPé]{0,24}") {
        let _ = back(oid, &Value::String(text));
    }
}
