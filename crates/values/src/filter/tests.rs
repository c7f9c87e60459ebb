use std::collections::BTreeMap;

use laredo_core::{Cell, Column, KeyColumns, Oid, TupleBuf, TypeDef, TypeKind};
use postgres_types::Type;
use proptest::prelude::*;

use super::*;

const SHORT: Oid = 16_400;

/// Returns the schema of a table with one column `c`.
fn schema(type_oid: Oid, is_text: bool) -> Schema {
    let column =
        Column { name: "c".into(), type_oid, type_modifier: -1, type_name: String::new(), not_null: false, is_text };
    let short = TypeDef { name: "short".into(), kind: TypeKind::Domain(Type::INT2.oid()) };
    Schema::new(vec![column], KeyColumns::new([0]), BTreeMap::from([(SHORT, short)]))
}

fn row(cell: &[u8]) -> TupleBuf {
    [Cell::Value(cell)].into_iter().collect()
}

fn string(text: &str) -> Value {
    Value::String(text.into())
}

fn on(field: &str, test: MatchCondition) -> Predicate {
    Predicate { field: field.into(), test }
}

fn pattern(text: &str) -> MatchCondition {
    MatchCondition::Regex(Pattern::new(text).unwrap())
}

fn passes(oid: Oid, cell: &[u8], test: MatchCondition) -> bool {
    let alone = Filter::bind(&[on("c", test)], &schema(oid, false)).unwrap();
    alone.matches(row(cell).as_ref())
}

/// Returns the reason why a predicate is refused.
fn refused(oid: Oid, test: MatchCondition) -> String {
    Filter::bind(&[on("c", test)], &schema(oid, false)).unwrap_err().to_string()
}

fn equals(builtin: &Type, cell: &[u8], value: Value) -> bool {
    let listed = passes(builtin.oid(), cell, MatchCondition::In(vec![Value::Null, value.clone(), value.clone()]));
    assert_eq!(passes(builtin.oid(), cell, MatchCondition::Equals(value)), listed);
    listed
}

/// Returns a `numeric` with one group of whole digits and two decimals.
fn numeric(whole: u16, decimals: u16) -> Vec<u8> {
    [2, 0, 0, 2, whole, decimals * 100].iter().flat_map(|part| part.to_be_bytes()).collect()
}

#[test]
fn numbers_compare_by_value() {
    let five = [Value::Number(5.0), string("5"), string("5.00"), string("0.5e1")];
    for value in five {
        assert!(equals(&Type::INT2, &5_i16.to_be_bytes(), value.clone()));
        assert!(equals(&Type::INT4, &5_i32.to_be_bytes(), value.clone()));
        assert!(equals(&Type::INT8, &5_i64.to_be_bytes(), value.clone()));
        assert!(equals(&Type::OID, &5_u32.to_be_bytes(), value.clone()));
        assert!(equals(&Type::XID8, &5_u64.to_be_bytes(), value.clone()));
        assert!(equals(&Type::FLOAT4, &5_f32.to_be_bytes(), value.clone()));
        assert!(equals(&Type::FLOAT8, &5_f64.to_be_bytes(), value.clone()));
        assert!(equals(&Type::NUMERIC, &numeric(5, 0), value.clone()));
        assert!(!equals(&Type::NUMERIC, &numeric(5, 1), value.clone()));
        assert!(!equals(&Type::INT4, &(-5_i32).to_be_bytes(), value.clone()));
        assert!(passes(SHORT, &5_i16.to_be_bytes(), MatchCondition::Equals(value)));
    }
    assert!(equals(&Type::INT8, &i64::MAX.to_be_bytes(), string("9223372036854775807")));
    assert!(equals(&Type::XID8, &u64::MAX.to_be_bytes(), string("18446744073709551615")));
    assert!(equals(&Type::NUMERIC, &[0, 1, 0xFF, 0xFF, 0, 0, 0, 1, 3, 232], Value::Number(0.1)));
    assert!(equals(&Type::FLOAT8, &(-0.0_f64).to_be_bytes(), Value::Number(0.0)));
    assert!(equals(&Type::FLOAT8, &f64::INFINITY.to_be_bytes(), string("Infinity")));
    assert!(equals(&Type::FLOAT8, &f64::NAN.to_be_bytes(), string("NaN")));
    assert!(equals(&Type::FLOAT4, &0.1_f32.to_be_bytes(), Value::Number(0.1)));
    assert!(equals(&Type::NUMERIC, &[0, 0, 0, 0, 0xC0, 0, 0, 0], string("NaN")));
    assert!(equals(&Type::NUMERIC, &[0, 0, 0, 0, 0xF0, 0, 0, 0], string("-Infinity")));
}

#[test]
fn what_is_no_value_of_the_type_is_refused_with_the_reason() {
    for (builtin, value, reason) in [
        (Type::INT8, Value::Number(9_223_372_036_854_775_807.0), "this is outside of its range"),
        (Type::INT2, string("40000"), "this is outside of its range"),
        (Type::INT4, Value::Number(0.5), "this is not how a whole number is written"),
        (Type::INT4, Value::Bool(true), "its values are written as a number"),
        (Type::TEXT, Value::Number(5.0), "its values are written as a string"),
        (Type::BOOL, Value::Number(1.0), "its values are written as a boolean"),
        (Type::UUID, string("a0eebc99"), "a UUID (a0eebc99-"),
        (Type::TIMESTAMPTZ, string("2024-01-01"), "a timestamp with its zone (2024-"),
        (Type::INT4_ARRAY, Value::Number(1.0), "its values are written as a list"),
        (Type::FLOAT4, Value::Number(1e300), "this is outside of its range"),
        (Type::FLOAT8, string("1e-400"), "this is outside of its range"),
    ] {
        let said = refused(builtin.oid(), MatchCondition::Equals(value.clone()));
        assert!(said.starts_with("column `c` is of type") && said.contains(reason), "{said}");
        assert_eq!(refused(builtin.oid(), MatchCondition::In(vec![Value::Null, value])), said);
    }
    let second = [on("gone", MatchCondition::Equals(string("x"))), on("c", MatchCondition::Equals(string("x")))];
    let error = Filter::bind(&second, &schema(Type::INT4.oid(), false)).unwrap_err();
    assert_eq!((error.index, error.column.as_str()), (1, "c"));
}

#[test]
fn text_compares_by_its_bytes() {
    assert!(equals(&Type::TEXT, "é".as_bytes(), string("é")));
    assert!(!equals(&Type::TEXT, b"a", string("A")));
    assert!(equals(&Type::BPCHAR, b"a  ", string("a")));
    assert!(equals(&Type::BPCHAR, b"a  ", string("a ")));
    let text = |test| passes(25, b"berlin/mitte", test);
    assert!(text(MatchCondition::Prefix("berlin/".into())));
    assert!(text(MatchCondition::Prefix(String::new())));
    assert!(!text(MatchCondition::Prefix("mitte".into())));
    assert!(text(pattern("mit+e$")));
    assert!(!text(pattern("^mitte")));
    assert!(!text(MatchCondition::In(vec![])));
    assert!(!passes(25, &[0xFF], pattern(".*")));
    let marked = Filter::bind(&[on("c", MatchCondition::Equals(string("=r/x")))], &schema(1033, true)).unwrap();
    assert!(marked.matches(row(b"=r/x").as_ref()));
}

#[test]
fn other_types_compare_as_sql_does() {
    assert!(equals(&Type::BOOL, &[1], Value::Bool(true)));
    assert!(equals(&Type::BOOL, &[1], string("yes")));
    assert!(equals(&Type::DATE, &[0; 4], string("2000-1-1")));
    assert!(passes(1082, &[0; 4], pattern("-01$")));
    let object = |names: [&str; 2]| Value::Object(names.map(|name| (name.into(), Value::Null)).into());
    assert!(equals(&Type::JSONB, b"\x01{\"a\": null, \"b\": null}", object(["b", "a"])));
    assert!(!equals(&Type::JSONB, b"\x01{\"a\": null, \"b\": 1}", object(["b", "a"])));
    assert!(equals(&Type::JSONB, b"\x01\"abc\"", string("abc")));
    assert!(equals(&Type::JSONB, b"\x01{\"a\": \"1.0\", \"b\": 1.0}", string("{\"b\":1,\"a\":\"1.0\"}")));
    assert!(!equals(&Type::JSONB, b"\x01\"1.0\"", string("1")));
    assert!(!equals(&Type::INT4, &[1], Value::Number(1.0)), "a cell that is none of its type");
    for (builtin, test) in [
        (Type::JSON, MatchCondition::Equals(object(["a", "b"]))),
        (Type::POINT, MatchCondition::Equals(string("(1,2)"))),
        (Type::INT4, MatchCondition::Prefix("0".into())),
        (Type::DATE, MatchCondition::Prefix("2000-".into())),
        (Type::INT4, pattern("0")),
    ] {
        assert!(refused(builtin.oid(), test).starts_with("column `c` is of type"));
    }
}

#[test]
fn a_spelling_that_sql_reads_otherwise_is_refused_or_read_as_sql_does() {
    let long = "é".repeat(40);
    let kept = "é".repeat(31);
    assert!(equals(&Type::NAME, kept.as_bytes(), string(&long)), "PostgreSQL cuts a name at 63 bytes");
    let list = Type::TEXT_ARRAY;
    for wrong in ["{\\a,b}", "{a,,b}", "{,}", "{a,}"] {
        assert!(refused(list.oid(), MatchCondition::Equals(string(wrong))).contains("of type"), "{wrong}");
    }
    const LTREE: Oid = 16_402;
    let ltree = TypeDef { name: "ltree".into(), kind: TypeKind::Base };
    let columns = schema(LTREE, false).columns().to_vec();
    let schema = Schema::new(columns, KeyColumns::new([0]), BTreeMap::from([(LTREE, ltree)]));
    let bind = |path: &str| Filter::bind(&[on("c", MatchCondition::Equals(string(path)))], &schema);
    for path in ["", "Top", "Top.a_b.C-1", "é"] {
        assert!(bind(path).is_ok(), "{path}");
    }
    for path in ["a..b", ".", "a.", " a.b", "b c", "a%b"] {
        assert!(bind(path).is_err(), "{path}");
    }
}

#[test]
fn upper_and_lower_case_are_one_where_the_database_says_so() {
    const CITEXT: Oid = 16_401;
    let filter = |kind: TypeKind, test: MatchCondition| {
        let citext = TypeDef { name: "citext".into(), kind };
        let columns = schema(CITEXT, false).columns().to_vec();
        let schema = Schema::new(columns, KeyColumns::new([0]), BTreeMap::from([(CITEXT, citext)]));
        Filter::bind(&[on("c", test)], &schema).unwrap()
    };
    for (kind, folds) in [(TypeKind::Base, true), (TypeKind::Ascii, false)] {
        for (test, cell, matches) in [
            (MatchCondition::Equals(string("FOO")), "foO", true),
            (MatchCondition::Equals(string("É")), "é", folds),
            (MatchCondition::Equals(string("STRASSE")), "straße", false),
            (MatchCondition::Equals(string("\u{130}")), "i", false),
            (MatchCondition::Prefix("FO".into()), "foo", true),
            (MatchCondition::Prefix("é".into()), "Éa", folds),
            (MatchCondition::Prefix("foo".into()), "fo", false),
            (pattern("^FO+$"), "foo", true),
        ] {
            assert_eq!(filter(kind.clone(), test.clone()).matches(row(cell.as_bytes()).as_ref()), matches, "{test:?}");
        }
    }
}

#[test]
fn what_is_not_there_never_matches() {
    let table = schema(25, false);
    let everything = MatchCondition::Prefix(String::new());
    let filter = Filter::bind(&[on("c", everything.clone())], &table).unwrap();
    for cell in [Cell::Null, Cell::Unchanged] {
        let row: TupleBuf = [cell].into_iter().collect();
        assert!(!filter.matches(row.as_ref()));
    }
    let missing = Filter::bind(&[on("c", everything.clone()), on("d", everything)], &table).unwrap();
    assert!(!missing.matches(row(b"x").as_ref()));
    assert!(!missing.is_empty());
    let alone = Filter::bind(&[on("d", MatchCondition::Equals(Value::Null))], &table).unwrap();
    assert!(!alone.is_empty() && !alone.matches(row(b"x").as_ref()));
    let none = Filter::bind(&[], &table).unwrap();
    assert!(none.is_empty() && none.matches(row(b"x").as_ref()));
}

#[test]
fn all_predicates_must_hold_and_rows_move_in_and_out() {
    let both = [on("c", MatchCondition::Prefix("a".into())), on("c", pattern("z$"))];
    let filter = Filter::bind(&both, &schema(25, false)).unwrap();
    let (inside, outside) = (row(b"a to z"), row(b"a to y"));
    let (inside, outside) = (Some(inside.as_ref()), Some(outside.as_ref()));
    for (old, new, seen) in [
        (None, inside, VisibleEffect::Insert),
        (None, outside, VisibleEffect::Nothing),
        (inside, inside, VisibleEffect::Update),
        (inside, outside, VisibleEffect::Delete),
        (outside, inside, VisibleEffect::Insert),
        (outside, outside, VisibleEffect::Nothing),
        (inside, None, VisibleEffect::Delete),
        (outside, None, VisibleEffect::Nothing),
        (None, None, VisibleEffect::Nothing),
    ] {
        assert_eq!(filter.classify(old, new), seen);
    }
}

/// Returns the tests that remain of predicates on the column of a type.
fn tests_of(oid: Oid, tests: &[MatchCondition]) -> usize {
    let predicates: Vec<_> = tests.iter().map(|test| on("c", test.clone())).collect();
    Filter::bind(&predicates, &schema(oid, false)).unwrap().tests.len()
}

#[test]
fn any_number_of_predicates_on_a_column_is_one_test_of_each_kind() {
    let numbers = |n: u32| MatchCondition::In((0..n).map(|n| Value::Number(n.into())).collect());
    for builtin in [Type::INT4, Type::NUMERIC, Type::FLOAT8] {
        let many: Vec<_> = (1..50).map(numbers).collect();
        assert_eq!(tests_of(builtin.oid(), &many), 1, "{builtin}");
    }
    let prefixes: Vec<_> = ["", "a", "ab", "abc", "b"].map(|text| MatchCondition::Prefix(text.into())).into();
    assert_eq!(tests_of(Type::TEXT.oid(), &[prefixes.clone(), prefixes].concat()), 1);
    assert_eq!(tests_of(Type::DATE.oid(), &[pattern("-01"), pattern("-02"), pattern("-01")]), 1);
    let both = [MatchCondition::Equals(string("ab")), MatchCondition::Prefix("a".into())];
    assert_eq!(tests_of(Type::TEXT.oid(), &[both.clone(), both].concat()), 2, "an equality and a prefix");
}

#[test]
fn equal_filters_have_equal_keys() {
    let key = |predicates: &[Predicate]| FilterKey::of(predicates);
    let (a, b) = (on("a", MatchCondition::Equals(Value::Number(1.0))), on("b", MatchCondition::Prefix("x".into())));
    assert_eq!(key(&[a.clone(), b.clone()]), key(&[b.clone(), a.clone(), b.clone()]));
    assert_ne!(key(std::slice::from_ref(&a)), key(&[a, b]));
    let one_of = |values: &[Value]| key(&[on("a", MatchCondition::In(values.to_vec()))]);
    let (one, two) = (string("1"), string("2"));
    assert_eq!(one_of(&[one.clone(), two.clone()]), one_of(&[two.clone(), one.clone(), one.clone()]));
    assert_eq!(one_of(std::slice::from_ref(&one)), key(&[on("a", MatchCondition::Equals(one.clone()))]));
    assert_ne!(one_of(std::slice::from_ref(&one)), one_of(&[Value::Number(1.0)]));
    assert_eq!(one_of(&[Value::Number(0.0)]), one_of(&[Value::Number(-0.0)]));
    assert_ne!(key(&[on("a", pattern("x"))]), key(&[on("a", MatchCondition::Prefix("x".into()))]));
    let lists = |items: Vec<Value>| one_of(&[Value::List(items)]);
    assert_ne!(lists(vec![one.clone(), two.clone()]), lists(vec![two, one]));
    assert_eq!(key(&[]).as_str(), "[]");
}

#[test]
fn numbers_that_json_lacks_and_null_have_keys_of_their_own() {
    let numbers = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 0.0, 1.0, -1.0, f64::MAX];
    let values = numbers.into_iter().map(Value::Number).chain([Value::Null, string("NaN"), string("Infinity")]);
    let keys: Vec<_> = values.map(|value| FilterKey::of(&[on("a", MatchCondition::Equals(value))])).collect();
    let different: std::collections::BTreeSet<_> = keys.iter().collect();
    assert_eq!(different.len(), keys.len(), "{keys:?}");
}

/// Values of small types, so that predicates often agree.
fn conditions() -> impl Strategy<Value = Vec<(String, Vec<u8>)>> {
    proptest::collection::vec(("[abAB]{0,3}", proptest::collection::vec(0_u8..4, 0..4)), 1..6)
}

proptest! {
    /// Joined tests let the same cells through as the predicates one by one.
    #[test]
    fn joined_tests_are_all_of_their_predicates(conditions in conditions(), text in "[abAB]{0,4}", number in 0_i16..4) {
        const CITEXT: Oid = 16_401;
        let numbers = |few: &[u8]| {
            let nan = few.contains(&3).then(|| string("NaN"));
            few.iter().map(|n| Value::Number((*n).into())).chain(nan).collect::<Vec<_>>()
        };
        let whole = |few: &[u8]| few.iter().map(|n| Value::Number((*n).into())).collect::<Vec<_>>();
        let float = if number == 3 { f64::NAN } else { number.into() };
        let texts = |few: &[u8]| few.iter().map(|n| string(["", "a", "ab", "AB"][usize::from(*n)])).collect::<Vec<_>>();
        for (oid, kind, cell) in [
            (Type::TEXT.oid(), TypeKind::Base, text.clone().into_bytes()),
            (CITEXT, TypeKind::Base, text.clone().into_bytes()),
            (CITEXT, TypeKind::Ascii, text.clone().into_bytes()),
            (Type::INT2.oid(), TypeKind::Base, number.to_be_bytes().to_vec()),
            (Type::FLOAT8.oid(), TypeKind::Base, float.to_be_bytes().to_vec()),
            (Type::NUMERIC.oid(), TypeKind::Base, numeric(number.unsigned_abs(), 0)),
        ] {
            let columns = schema(oid, false).columns().to_vec();
            let citext = TypeDef { name: "citext".into(), kind };
            let schema = Schema::new(columns, KeyColumns::new([0]), BTreeMap::from([(CITEXT, citext)]));
            let is_text = [Type::TEXT.oid(), CITEXT].contains(&oid);
            let predicates: Vec<_> = conditions.iter().enumerate().map(|(i, (prefix, few))| {
                on("c", match (is_text, i % 2) {
                    (true, 0) => MatchCondition::Prefix(prefix.clone()),
                    (true, _) => MatchCondition::In(texts(few)),
                    (false, _) if oid == Type::INT2.oid() => MatchCondition::In(whole(few)),
                    (false, _) => MatchCondition::In(numbers(few)),
                })
            }).collect();
            let matches = |predicates: &[Predicate]| {
                Filter::bind(predicates, &schema).unwrap().matches(row(&cell).as_ref())
            };
            let each = predicates.iter().all(|predicate| matches(std::slice::from_ref(predicate)));
            prop_assert_eq!(matches(&predicates), each, "{:?} {:?}", oid, predicates);
        }
    }

    #[test]
    fn names_and_values_cannot_be_confused(a: (String, String), b: (String, String)) {
        let key = |(field, value): &(String, String)| FilterKey::of(&[on(field, MatchCondition::Equals(string(value)))]);
        prop_assert_eq!(key(&a) == key(&b), a == b);
    }

    #[test]
    fn a_projected_value_matches_itself(number: i64, text: String, double: f64) {
        for (builtin, cell) in [
            (Type::INT8, number.to_be_bytes().to_vec()),
            (Type::TIMESTAMP, number.to_be_bytes().to_vec()),
            (Type::FLOAT8, double.to_be_bytes().to_vec()),
            (Type::TEXT, text.clone().into_bytes()),
            (Type::BYTEA, text.into_bytes()),
        ] {
            let value = crate::project_cell(&schema(builtin.oid(), false), 0, Cell::Value(&cell)).unwrap();
            prop_assert!(equals(&builtin, &cell, value));
        }
    }
}
