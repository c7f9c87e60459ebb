//! Types, schemas and cells for the tests.

use std::collections::BTreeMap;
use std::sync::Arc;

use laredo_core::{Cell, Column, KeyColumns, Oid, Schema, TupleBuf, TypeDef, TypeKind};
use postgres_types::Type;
use proptest::prelude::*;

use crate::decode::project_cell;
use crate::json_rows::JsonRows;
use crate::lenient::{HexCells, show_row};
use crate::problem::CellProblem;
use crate::value::Value;

pub(crate) const MOOD: Oid = 16_400;
pub(crate) const PAIR: Oid = 16_401;
pub(crate) const PAIRS: Oid = 16_402;
pub(crate) const SHORT: Oid = 16_403;
pub(crate) const FLOAT_RANGE: Oid = 16_404;
pub(crate) const LOOP: Oid = 16_405;
pub(crate) const VECTOR: Oid = 16_406;
pub(crate) const LOOP_ARRAY: Oid = 16_407;
pub(crate) const TEXT_RANGE: Oid = 16_408;
pub(crate) const PAIR_RANGE: Oid = 16_409;
pub(crate) const CITEXT: Oid = 16_410;
pub(crate) const LISTS_RANGE: Oid = 16_411;
pub(crate) const LTREE: Oid = 16_412;
pub(crate) const LISTS: Oid = 16_413;
pub(crate) const LIST: Oid = 16_414;

fn types() -> BTreeMap<Oid, TypeDef> {
    let fields = vec![("x".to_owned(), Type::INT4.oid()), ("y z".to_owned(), Type::TEXT.oid())];
    [
        (MOOD, "mood", TypeKind::Enum(vec!["sad".into(), "ok".into()])),
        (PAIR, "pair", TypeKind::Composite(fields)),
        (PAIRS, "_pair", TypeKind::Array(PAIR)),
        (SHORT, "short", TypeKind::Domain(Type::INT2.oid())),
        (FLOAT_RANGE, "floatrange", TypeKind::Range(Type::FLOAT8.oid())),
        (LOOP, "loop", TypeKind::Domain(LOOP)),
        (LOOP_ARRAY, "_loop", TypeKind::Array(LOOP_ARRAY)),
        (VECTOR, "vector", TypeKind::Base),
        (TEXT_RANGE, "textrange", TypeKind::Range(Type::TEXT.oid())),
        (PAIR_RANGE, "pairrange", TypeKind::Range(PAIR)),
        (CITEXT, "citext", TypeKind::Base),
        (LISTS_RANGE, "listsrange", TypeKind::Range(Type::TEXT_ARRAY.oid())),
        (LTREE, "ltree", TypeKind::Base),
        (LISTS, "_lists", TypeKind::Array(LIST)),
        (LIST, "lists", TypeKind::Domain(Type::INT4_ARRAY.oid())),
    ]
    .into_iter()
    .map(|(oid, name, kind)| {
        let name = name.to_owned();
        (oid, TypeDef { name, kind })
    })
    .collect()
}

pub(crate) fn schema(oid: Oid, is_text: bool) -> Schema {
    schema_with_key(oid, is_text, &[])
}

/// Returns a schema with the same column as the key.
pub(crate) fn key_schema(oid: Oid) -> Schema {
    schema_with_key(oid, false, &[0])
}

fn schema_with_key(oid: Oid, is_text: bool, key: &[usize]) -> Schema {
    let column = Column {
        name: "c".into(),
        type_oid: oid,
        type_modifier: -1,
        type_name: "some type".into(),
        not_null: false,
        is_text,
    };
    Schema::new(vec![column], KeyColumns::new(key), types())
}

/// Projects a value, and checks that it is written as JSON in both ways.
pub(crate) fn value(oid: Oid, bytes: &[u8]) -> Result<Value, CellProblem> {
    value_in(schema(oid, false), bytes)
}

pub(crate) fn value_in(schema: Schema, bytes: &[u8]) -> Result<Value, CellProblem> {
    let value = project_cell(&schema, 0, Cell::Value(bytes)).map_err(|error| error.problem);
    let (row, mut line): (TupleBuf, _) = ([Cell::Value(bytes)].into_iter().collect(), Vec::new());
    let hex = HexCells::default();
    let shown =
        show_row(&schema, row.as_ref(), &hex).map(|fields| fields.into_iter().map(|(_, value)| value).collect());
    let shown: Result<Vec<Value>, CellProblem> = shown.map_err(|error| error.problem);
    let pushed = JsonRows::new(Arc::new(schema)).push(row.as_ref(), &mut line, &hex).map_err(|error| error.problem);
    assert_eq!(pushed, shown.clone().map(drop));
    match (&value, &shown) {
        (Ok(value), Ok(shown)) => assert_eq!((value, hex.count()), (&shown[0], 0)),
        // The cell is counted once for each way.
        (Err(problem), Ok(_)) => assert_eq!((hex.first().map(|error| &error.problem), hex.count()), (Some(problem), 2)),
        (_, Err(problem)) => assert_eq!(value.as_ref(), Err(problem)),
    }
    if let Ok(shown) = &shown {
        let expected = format!("{{\"c\":{}}}", serde_json::to_string(&shown[0]).unwrap());
        assert_eq!(String::from_utf8(line).unwrap(), expected);
    }
    value
}

/// Joins several parts.
pub(crate) fn joined(parts: &[&[u8]]) -> Vec<u8> {
    parts.concat()
}

pub(crate) fn sized(bytes: &[u8]) -> Vec<u8> {
    joined(&[&i32::try_from(bytes.len()).unwrap().to_be_bytes(), bytes])
}

pub(crate) fn numeric(weight: i16, sign: u16, scale: u16, groups: &[u16]) -> Vec<u8> {
    let mut bytes = u16::try_from(groups.len()).unwrap().to_be_bytes().to_vec();
    bytes.extend(weight.to_be_bytes());
    bytes.extend([sign, scale].iter().flat_map(|part| part.to_be_bytes()));
    bytes.extend(groups.iter().flat_map(|group| group.to_be_bytes()));
    bytes
}

pub(crate) fn array(element: Oid, dimensions: &[(i32, i32)], elements: &[Option<&[u8]>]) -> Vec<u8> {
    let mut bytes = i32::try_from(dimensions.len()).unwrap().to_be_bytes().to_vec();
    bytes.extend([0; 4]);
    bytes.extend(element.to_be_bytes());
    for (length, lower) in dimensions {
        bytes.extend(length.to_be_bytes());
        bytes.extend(lower.to_be_bytes());
    }
    for element in elements {
        match element {
            Some(element) => bytes.extend(sized(element)),
            None => bytes.extend((-1_i32).to_be_bytes()),
        }
    }
    bytes
}

pub(crate) fn pair(x: Option<i32>, y: Option<&str>) -> Vec<u8> {
    let mut bytes = vec![0, 0, 0, 2];
    bytes.extend(Type::INT4.oid().to_be_bytes());
    bytes.extend(x.map_or(vec![255; 4], |x| sized(&x.to_be_bytes())));
    bytes.extend(Type::TEXT.oid().to_be_bytes());
    bytes.extend(y.map_or(vec![255; 4], |y| sized(y.as_bytes())));
    bytes
}

pub(crate) fn interval(micros: i64, days: i32, months: i32) -> Vec<u8> {
    joined(&[&micros.to_be_bytes(), &days.to_be_bytes(), &months.to_be_bytes()])
}

/// Returns every type that `postgres_types` knows, and those above.
pub(crate) fn any_type() -> impl Strategy<Value = Oid> {
    let mut oids: Vec<Oid> = (1..20_000).filter(|oid| Type::from_oid(*oid).is_some()).collect();
    oids.extend(types().keys());
    proptest::sample::select(oids)
}

/// Returns bytes in which small counts, lengths and well-known type numbers are likely.
pub(crate) fn likely_bytes() -> impl Strategy<Value = Vec<u8>> {
    let part = prop_oneof![
        (-1_i32..6).prop_map(|n| n.to_be_bytes().to_vec()),
        any_type().prop_map(|oid| oid.to_be_bytes().to_vec()),
        proptest::collection::vec(any::<u8>(), 0..12),
        proptest::collection::vec(0_u8..4, 0..12),
    ];
    proptest::collection::vec(part, 0..10).prop_map(|parts| parts.concat())
}
