use std::collections::BTreeMap;

use laredo_core::{Cell, KeyColumns, Oid, Schema, TupleBuf, TypeDef, TypeKind};
use postgres_types::Type;
use proptest::prelude::*;

use super::*;
use crate::decimal::Decimal;
use crate::fixtures::{
    CITEXT, FLOAT_RANGE, LISTS_RANGE, LOOP, LOOP_ARRAY, LTREE, MOOD, PAIR, PAIR_RANGE, PAIRS, SHORT, TEXT_RANGE,
    VECTOR, any_type, array, interval, joined, likely_bytes, numeric, pair, schema, sized, value, value_in,
};

#[track_caller]
fn shows(builtin: &Type, bytes: &[u8], text: &str) {
    assert_eq!(value(builtin.oid(), bytes), Ok(Value::String(text.into())));
}

fn string(text: &str) -> Value {
    Value::String(text.into())
}

#[test]
fn numbers_are_native_while_a_double_is_exact() {
    let int8 = |v: i64| value(20, &v.to_be_bytes()).unwrap();
    assert_eq!(int8(1 << 53), Value::Number(9_007_199_254_740_992.0));
    assert_eq!(int8(-(1 << 53)), Value::Number(-9_007_199_254_740_992.0));
    assert_eq!(int8((1 << 53) + 1), string("9007199254740993"));
    assert_eq!(int8(i64::MIN), string("-9223372036854775808"));
    assert_eq!(value(21, &i16::MIN.to_be_bytes()), Ok(Value::Number(-32768.0)));
    assert_eq!(value(23, &i32::MAX.to_be_bytes()), Ok(Value::Number(2_147_483_647.0)));
    assert_eq!(value(SHORT, &[0, 7]), Ok(Value::Number(7.0)));
    assert_eq!(value(16, &[1]), Ok(Value::Bool(true)));
    assert_eq!(value(16, &[0]), Ok(Value::Bool(false)));
    let float4 = |v: f32| value(700, &v.to_be_bytes()).unwrap();
    assert_eq!(float4(0.1), Value::Number(f64::from(0.1_f32)));
    assert_eq!(float4(f32::NEG_INFINITY), string("-Infinity"));
    let float8 = |v: f64| value(701, &v.to_be_bytes()).unwrap();
    assert_eq!(float8(0.1), Value::Number(0.1));
    assert_eq!(float8(f64::MIN_POSITIVE / 8.0), Value::Number(f64::MIN_POSITIVE / 8.0));
    assert!(matches!(float8(-0.0), Value::Number(zero) if zero == 0.0 && zero.is_sign_negative()));
    assert_eq!(float8(f64::NAN), string("NaN"));
    assert_eq!(float8(f64::INFINITY), string("Infinity"));
}

#[test]
fn numerics_keep_every_digit_and_their_scale() {
    for (bytes, text) in [
        (numeric(0, 0, 0, &[]), "0"),
        (numeric(0, 0, 3, &[]), "0.000"),
        (numeric(0, 0, 2, &[1, 5000]), "1.50"),
        (numeric(0, 0x4000, 1, &[12, 3000]), "-12.3"),
        (numeric(-1, 0, 4, &[1]), "0.0001"),
        (numeric(-3, 0, 12, &[1]), "0.000000000001"),
        (numeric(2, 0, 0, &[1]), "100000000"),
        (numeric(1, 0, 0, &[12, 34]), "120034"),
        (numeric(0, 0, 20, &[1]), "1.00000000000000000000"),
        (numeric(0, 0xC000, 0, &[]), "NaN"),
        (numeric(0, 0xD000, 0, &[]), "Infinity"),
        (numeric(0, 0xF000, 0, &[]), "-Infinity"),
        // PostgreSQL does not send these bytes, but would accept them.
        (numeric(1, 0x4000, 0, &[0, 5]), "-5"),
        (numeric(0, 0x4000, 0, &[0]), "0"),
    ] {
        shows(&Type::NUMERIC, &bytes, text);
    }
    let huge = numeric(i16::MAX, 0, 0, &[1]);
    assert!(matches!(value(1700, &huge), Ok(Value::String(text)) if text.len() == 131_069));
    assert_eq!(value(1700, &numeric(0, 0, 0, &[10_000])), Err(CellProblem::Impossible("digit")));
    assert_eq!(value(1700, &numeric(0, 1, 0, &[])), Err(CellProblem::Impossible("sign")));
    assert_eq!(value(1700, &numeric(0, 0, 0x4000, &[])), Err(CellProblem::Impossible("scale")));
}

#[test]
fn a_cell_of_many_huge_numerics_is_refused() {
    let huge = numeric(i16::MAX, 0, 0, &[1]);
    let bytes = array(1700, &[(1000, 1)], &vec![Some(huge.as_slice()); 1000]);
    assert_eq!(value(1231, &bytes), Err(CellProblem::TooLarge));
}

#[test]
fn times_reach_as_far_as_postgresql() {
    let at = |micros: i64| micros.to_be_bytes();
    shows(&Type::DATE, &0_i32.to_be_bytes(), "2000-01-01");
    shows(&Type::DATE, &59_i32.to_be_bytes(), "2000-02-29");
    shows(&Type::DATE, &(-730_120_i32).to_be_bytes(), "0001-12-31 BC");
    shows(&Type::DATE, &(-2_451_545_i32).to_be_bytes(), "4714-11-24 BC");
    shows(&Type::DATE, &2_145_031_948_i32.to_be_bytes(), "5874897-12-31");
    shows(&Type::DATE, &i32::MAX.to_be_bytes(), "infinity");
    shows(&Type::DATE, &i32::MIN.to_be_bytes(), "-infinity");
    shows(&Type::TIMESTAMP, &at(-1), "1999-12-31T23:59:59.999999");
    shows(&Type::TIMESTAMP, &at(500_000), "2000-01-01T00:00:00.5");
    shows(&Type::TIMESTAMPTZ, &at(0), "2000-01-01T00:00:00+00:00");
    shows(&Type::TIMESTAMPTZ, &at(9_223_371_331_199_999_999), "294276-12-31T23:59:59.999999+00:00");
    shows(&Type::TIMESTAMPTZ, &at(-211_813_488_000_000_000), "4714-11-24T00:00:00+00:00 BC");
    shows(&Type::TIMESTAMPTZ, &at(i64::MAX), "infinity");
    shows(&Type::TIMESTAMP, &at(i64::MIN), "-infinity");
    shows(&Type::TIME, &at(86_400_000_000), "24:00:00");
    let zoned = |west: i32| joined(&[&at(14_706_000_000), &west.to_be_bytes()]);
    shows(&Type::TIMETZ, &zoned(8 * 3600), "04:05:06-08:00");
    shows(&Type::TIMETZ, &zoned(-19_815), "04:05:06+05:30:15");
    shows(&Type::TIMETZ, &zoned(0), "04:05:06+00:00");
    assert_eq!(value(1266, &zoned(i32::MIN)), Err(CellProblem::Impossible("time zone")));
    assert_eq!(value(1083, &at(-1)), Err(CellProblem::Impossible("time of day")));
}

#[test]
fn intervals_keep_their_three_parts() {
    for (bytes, text) in [
        (interval(0, 0, 0), "PT0S"),
        (interval(14_706_700_000, 3, 14), "P1Y2M3DT4H5M6.7S"),
        (interval(-14_706_700_000, -3, -14), "P-1Y-2M-3DT-4H-5M-6.7S"),
        (interval(-1, 1, 0), "P1DT-0.000001S"),
        (interval(0, 0, -1), "P-1M"),
        (interval(i64::MIN, i32::MIN, 0), "P-2147483648DT-2562047788H-54.775808S"),
        (interval(i64::MAX, i32::MAX, i32::MAX), "infinity"),
        (interval(i64::MIN, i32::MIN, i32::MIN), "-infinity"),
    ] {
        shows(&Type::INTERVAL, &bytes, text);
    }
}

#[test]
fn json_is_nested_and_its_numbers_exact() {
    let json = |text: &str| value(114, text.as_bytes()).unwrap();
    assert_eq!(json(" null "), Value::Null);
    assert_eq!(json("\"a\\u0000\\ud83d\\ude00\""), string("a\0\u{1F600}"));
    assert_eq!(json("\"x\\ud800y\""), string("x\u{FFFD}y"));
    for native in ["0", "-1", "1.5", "1e2", "1.10", "9007199254740992", "1e308", "0.1"] {
        assert_eq!(json(native), Value::Number(native.parse().unwrap()), "{native}");
    }
    for too_fine in ["9007199254740993", "0.10000000000000000001", "1e400", "1e-400", "-12345678901234567890"] {
        assert_eq!(json(too_fine), string(too_fine));
    }
    let object = json("{\"b\": [1, {\"\\u00e9\": true}], \"a\": 1, \"a\": 2}");
    let inner = Value::Object(vec![("é".into(), Value::Bool(true))]);
    let fields = vec![("b".into(), Value::List(vec![Value::Number(1.0), inner])), ("a".into(), Value::Number(2.0))];
    assert_eq!(object, Value::Object(fields));
    assert_eq!(value(3802, b"\x01{\"a\": []}"), Ok(json("{\"a\":[]}")));
    assert_eq!(value(3802, b"\x02{}"), Err(CellProblem::Impossible("version")));
    assert!(matches!(value(114, b"{"), Err(CellProblem::Json(_))));
}

#[test]
fn deep_json_ends_in_text() {
    let deep = |levels: usize| "[".repeat(levels) + &"]".repeat(levels);
    let mut shown = value(114, deep(100_000).as_bytes()).unwrap();
    let mut levels = 0;
    while let Value::List(items) = shown {
        shown = items.into_iter().next().unwrap();
        levels += 1;
    }
    assert_eq!(levels, NESTING_MAX);
    assert_eq!(shown, string(&deep(100_000 - NESTING_MAX)));
}

#[test]
fn arrays_nest_and_hold_nulls() {
    let one = 1_i32.to_be_bytes();
    let two = 2_i32.to_be_bytes();
    let int = |bytes: &[u8]| value(1007, bytes);
    assert_eq!(int(&array(23, &[], &[])), Ok(Value::List(vec![])));
    assert_eq!(int(&array(23, &[(3, 1), (0, 1)], &[])), Ok(Value::List(vec![])));
    let flat = array(23, &[(2, 1)], &[Some(&one), None]);
    assert_eq!(int(&flat), Ok(Value::List(vec![Value::Number(1.0), Value::Null])));
    let elements = [Some(&one[..]), Some(&two), None, Some(&one)];
    let cube = array(23, &[(1, 1), (2, 1), (2, 1)], &elements);
    assert_eq!(int(&cube).unwrap().to_json(), serde_json::json!([[[1, 2], [null, 1]]]));
    let elsewhere = array(23, &[(1, 1), (2, 1), (2, -5)], &elements);
    assert_eq!(int(&elsewhere), Ok(string("[1:1][1:2][-5:-4]={{{1,2},{NULL,1}}}")));
    let wrong = [
        (array(20, &[], &[]), CellProblem::Impossible("element type")),
        (array(23, &[(1, 1); 7], &[Some(&one)]), CellProblem::Impossible("number of dimensions")),
        (array(23, &[(0, 1), (5, 1)], &[Some(&one)]), CellProblem::LeftOver(8)),
        (array(23, &[(i32::MAX, 1); 6], &[Some(&one)]), CellProblem::Torn),
        (array(23, &[(2, 1)], &[Some(&one)]), CellProblem::Torn),
        (array(23, &[(-1, 1)], &[]), CellProblem::Impossible("count")),
        (array(23, &[(1, 1)], &[Some(&one), Some(&one)]), CellProblem::LeftOver(8)),
    ];
    for (bytes, problem) in wrong {
        assert_eq!(int(&bytes), Err(problem));
    }
}

#[test]
fn composites_are_objects() {
    let bytes = array(PAIR, &[(2, 1)], &[Some(&pair(Some(1), None)), Some(&pair(None, Some("é")))]);
    assert_eq!(
        value(PAIRS, &bytes).unwrap().to_json(),
        serde_json::json!([{"x": 1, "y z": null}, {"x": null, "y z": "é"}])
    );
    assert_eq!(value(PAIR, &[0, 0, 0, 0]), Err(CellProblem::Impossible("number of fields")));
    let mut other = pair(None, None);
    other[7] = 20;
    assert_eq!(value(PAIR, &other), Err(CellProblem::Impossible("field type")));
}

#[test]
fn ranges_quote_as_postgresql_does() {
    let bounds = |flags: u8, bounds: &[&[u8]]| {
        let bounds: Vec<u8> = bounds.iter().flat_map(|bound| sized(bound)).collect();
        joined(&[&[flags], &bounds])
    };
    let shown = |oid, bytes: &[u8]| value(oid, bytes).unwrap();
    assert_eq!(shown(3904, &[1]), string("empty"));
    assert_eq!(shown(3904, &[0x18]), string("(,)"));
    assert_eq!(shown(3904, &bounds(2, &[&[0, 0, 0, 1], &[0, 0, 0, 9]])), string("[1,9)"));
    let day = 86_400_000_000_i64.to_be_bytes();
    assert_eq!(shown(3910, &bounds(0x12, &[&day])), string("[\"2000-01-02 00:00:00+00\",)"));
    assert_eq!(shown(3912, &bounds(0x0A, &[&[0, 0, 0, 1]])), string("[,2000-01-02)"));
    let texts = bounds(6, &[b"", b"a\"b\\c"]);
    assert_eq!(shown(TEXT_RANGE, &texts), string("[\"\",\"a\"\"b\\\\c\"]"));
    let floats = bounds(6, &[&1e15_f64.to_be_bytes(), &0.5_f64.to_be_bytes()]);
    assert_eq!(shown(FLOAT_RANGE, &floats), string("[1e+15,0.5]"));
    let pairs = bounds(6, &[&pair(Some(1), Some("a b")), &pair(None, Some(""))]);
    assert_eq!(shown(PAIR_RANGE, &pairs), string("[\"(1,\"\"a b\"\")\",\"(,\"\"\"\")\"]"));
    let lists = [array(25, &[(3, 0)], &[Some(b"null"), None, Some(b"a,\"")]), array(25, &[], &[])];
    let lists = bounds(0, &[&lists[0], &lists[1]]);
    assert_eq!(shown(LISTS_RANGE, &lists), string(r#"("[0:2]={""null"",NULL,""a,\\""""}",{})"#));
    let range = bounds(2, &[&[0, 0, 0, 1], &[0, 0, 0, 9]]);
    let multirange = joined(&[&[0, 0, 0, 2], &sized(&range), &sized(&[1])]);
    assert_eq!(shown(4451, &multirange), string("{[1,9),empty}"));
    assert_eq!(shown(4451, &[0, 0, 0, 0]), string("{}"));
    assert_eq!(value(3904, &[2]), Err(CellProblem::Torn));
    assert_eq!(value(3904, &[1, 0]), Err(CellProblem::LeftOver(1)));
    let null_bound = joined(&[&[0], &[255; 4]]);
    assert_eq!(value(3904, &null_bound), Err(CellProblem::Impossible("bound")));
}

#[test]
fn other_types_are_their_text() {
    shows(&Type::TEXT, "\u{10FFFF}\u{1F600}é".as_bytes(), "\u{10FFFF}\u{1F600}é");
    shows(&Type::BYTEA, &[0, 255, 1], "AP8B");
    shows(&Type::CHAR, &[0], "");
    shows(&Type::CHAR, b"x", "x");
    shows(&Type::CHAR, &[0xFF], "\\377");
    shows(&Type::UUID, &[0xAB; 16], "abababab-abab-abab-abab-abababababab");
    shows(&Type::INET, &[2, 32, 0, 4, 10, 0, 0, 1], "10.0.0.1");
    shows(&Type::CIDR, &[2, 32, 1, 4, 10, 0, 0, 1], "10.0.0.1/32");
    shows(&Type::MACADDR, &[8, 0, 0x2B, 1, 2, 3], "08:00:2b:01:02:03");
    shows(&Type::VARBIT, &[0, 0, 0, 10, 0b1010_0000, 0b0100_0000], "1010000001");
    shows(&Type::OID, &u32::MAX.to_be_bytes(), "4294967295");
    shows(&Type::REGCLASS, &1259_u32.to_be_bytes(), "1259");
    shows(&Type::XID8, &u64::MAX.to_be_bytes(), "18446744073709551615");
    shows(&Type::TID, &[0, 0, 0, 5, 0, 6], "(5,6)");
    shows(&Type::PG_LSN, &0x16_B374_D848_u64.to_be_bytes(), "16/B374D848");
    shows(&Type::MONEY, &(-5_i64).to_be_bytes(), "-0.05");
    shows(&Type::MONEY, &i64::MIN.to_be_bytes(), "-92233720368547758.08");
    assert_eq!(value(MOOD, b"ok"), Ok(string("ok")));
    assert_eq!(value(CITEXT, b"Ab"), Ok(string("Ab")));
    assert_eq!(value(VECTOR, &[1, 0xAB]), Ok(string("\\x01ab")));
    assert_eq!(value(999_999, &[]), Ok(string("\\x")));
    let text = project_cell(&schema(1033, true), 0, Cell::Value(b"postgres=r/postgres")).unwrap();
    assert_eq!(text, string("postgres=r/postgres"));
}

#[test]
fn errors_name_the_column_and_its_type() {
    let int = schema(23, false);
    let error = project_cell(&int, 0, Cell::Value(&[1])).unwrap_err();
    assert_eq!(
        error.to_string(),
        "column `c` has a cell that is not a value of type some type: its bytes end too early"
    );
    let problem = |schema: &Schema, column, cell| project_cell(schema, column, cell).unwrap_err().problem;
    assert_eq!(problem(&int, 0, Cell::Unchanged), CellProblem::Unsent);
    assert_eq!(problem(&int, 1, Cell::Null), CellProblem::NoColumn);
    assert_eq!(problem(&schema(25, false), 0, Cell::Value(&[0xFF])), CellProblem::NotUtf8);
    assert_eq!(value(LOOP, b"x"), Err(CellProblem::TooDeep));
    let mut nested = array(LOOP_ARRAY, &[], &[]);
    for _ in 0..40 {
        nested = array(LOOP_ARRAY, &[(1, 1)], &[Some(&nested)]);
    }
    assert_eq!(value(LOOP_ARRAY, &nested), Err(CellProblem::TooDeep));
}

#[test]
fn a_row_has_its_names() {
    let schema = schema(25, false);
    let row: TupleBuf = [Cell::Value(b"x")].into_iter().collect();
    assert_eq!(project_row(&schema, row.as_ref()), Ok(vec![("c", string("x"))]));
    assert_eq!(project_row(&schema, TupleBuf::new().as_ref()), Ok(vec![("c", Value::Null)]));
}

/// Returns a query of `depth` nested operators.
fn deep_query(depth: usize) -> Vec<u8> {
    let mut bytes = i32::try_from(depth + 1).unwrap().to_be_bytes().to_vec();
    bytes.extend([2, 1].repeat(depth));
    bytes.extend([1, 0, 0, b'a', 0]);
    bytes
}

#[test]
fn queries_may_be_as_deep_as_they_are_long() {
    let text = "!".repeat(100_000) + "'a'";
    shows(&Type::TSQUERY, &deep_query(100_000), &text);
    let without_operand = [0, 0, 0, 1, 2, 2];
    assert_eq!(value(3615, &without_operand), Err(CellProblem::Torn));
    let two_roots = joined(&[&[0, 0, 0, 2], &[1, 0, 0, b'a', 0], &[1, 0, 0, b'a', 0]]);
    assert_eq!(value(3615, &two_roots), Err(CellProblem::Impossible("number of operands")));
    let unknown_weight = [0, 0, 0, 1, 1, 16, 0, b'a', 0];
    assert_eq!(value(3615, &unknown_weight), Err(CellProblem::Impossible("set of weights")));
}

#[test]
fn an_amount_has_the_decimals_of_its_database() {
    for (decimals, amount, text) in
        [(0, 100, "100"), (0, -5, "-5"), (3, 100, "0.100"), (3, i64::MIN, "-9223372036854775.808"), (2, -5, "-0.05")]
    {
        let money = TypeDef { name: "money".to_owned(), kind: TypeKind::Money(decimals) };
        let shown = |oid: Oid, bytes: &[u8]| {
            let schema = schema(oid, false);
            let types = BTreeMap::from([(Type::MONEY.oid(), money.clone())]);
            value_in(Schema::new(schema.columns().to_vec(), KeyColumns::new([]), types), bytes)
        };
        let amount = i64::to_be_bytes(amount);
        assert_eq!(shown(Type::MONEY.oid(), &amount), Ok(string(text)));
        let list = array(Type::MONEY.oid(), &[(1, 1)], &[Some(&amount)]);
        assert_eq!(shown(Type::MONEY_ARRAY.oid(), &list), Ok(Value::List(vec![string(text)])));
    }
    assert_eq!(value(Type::MONEY.oid(), &1234_i64.to_be_bytes()), Ok(string("12.34")), "two where nothing is said");
}

#[test]
fn a_type_of_the_name_of_an_extension_may_be_another_one() {
    assert_eq!(value(LTREE, b"\x01Top.A"), Ok(string("Top.A")));
    assert_eq!(value(LTREE, b"\x02Top"), Ok(string("\\x02546f70")));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]

    #[test]
    fn no_bytes_are_fatal(oid in any_type(), bytes in likely_bytes()) {
        if let Ok(value) = value(oid, &bytes) {
            // Projections are finite, so JSON represents them exactly.
            value.to_json().to_string();
        }
    }
}

proptest! {
    #[test]
    fn json_numbers_never_change_value(text in "-?(0|[1-9][0-9]{0,24})(\\.[0-9]{1,24})?([eE][+-]?[0-9]{1,3})?") {
        let shown = value(114, text.as_bytes()).unwrap();
        let back = match shown {
            Value::Number(number) => Decimal::of_double(number),
            Value::String(text) => Decimal::parse(&text),
            other => panic!("{other:?}"),
        };
        prop_assert_eq!(back, Decimal::parse(&text));
    }
}
