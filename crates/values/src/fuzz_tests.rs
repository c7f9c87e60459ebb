//! Fuzz targets of the conversions of cells and of filters.

use laredo_core::{Cell, Oid, Schema};
use laredo_fuzz::{FuzzTarget, outcome};
use postgres_types::Type;

use crate::fixtures::{MOOD, PAIR, PAIRS, array, interval, joined, key_schema, numeric, pair, schema, value_in};
use crate::{Filter, MatchCondition, Predicate, Value, project_cell, unproject_cell};

/// Returns the OID that begins an input, and what follows it.
fn split_oid(input: &[u8]) -> Result<(Oid, &[u8]), String> {
    let (oid, rest) = input.split_first_chunk::<4>().ok_or("it has no type")?;
    Ok((Oid::from_be_bytes(*oid), rest))
}

fn with_oid(oid: Oid, bytes: &[u8]) -> Vec<u8> {
    [&oid.to_be_bytes(), bytes].concat()
}

/// Returns a valid cell of each family of types.
fn cells() -> Vec<(Oid, Vec<u8>)> {
    let range = joined(&[&[2, 0, 0, 0, 4, 0, 0, 0, 1, 0, 0, 0, 4, 0, 0, 0, 9]]);
    let multirange = joined(&[&[0, 0, 0, 1, 0, 0, 0, 17], &range]);
    vec![
        (Type::BOOL.oid(), vec![1]),
        (Type::INT8.oid(), 7_i64.to_be_bytes().to_vec()),
        (Type::FLOAT8.oid(), 1.5_f64.to_be_bytes().to_vec()),
        (Type::NUMERIC.oid(), numeric(1, 0x4000, 4, &[12, 3456, 7800])),
        (Type::TEXT.oid(), "te\u{fc}xt".as_bytes().to_vec()),
        (Type::JSON.oid(), b"{\"a\": [1.50, null, \"x\"], \"a\": 2}".to_vec()),
        (Type::JSONB.oid(), b"\x01{\"a\": [1, {\"b\": 1e3}]}".to_vec()),
        (Type::UUID.oid(), vec![7; 16]),
        (Type::TIMESTAMPTZ.oid(), 777_777_777_777_i64.to_be_bytes().to_vec()),
        (Type::TIMETZ.oid(), [&1_000_000_i64.to_be_bytes()[..], &3600_i32.to_be_bytes()].concat()),
        (Type::INTERVAL.oid(), interval(-1, 2, 14)),
        (Type::INET.oid(), vec![2, 24, 0, 4, 10, 0, 0, 1]),
        (Type::VARBIT.oid(), vec![0, 0, 0, 5, 0b1010_1000]),
        (Type::PATH.oid(), [&[1, 0, 0, 0, 1][..], &[0; 16]].concat()),
        (Type::INT4_RANGE.oid(), range),
        (Type::INT4MULTI_RANGE.oid(), multirange),
        (Type::INT4_ARRAY.oid(), array(23, &[(2, 1), (1, 0)], &[Some(&[0, 0, 0, 1]), None])),
        (Type::TS_VECTOR.oid(), vec![0, 0, 0, 1, b'a', 0, 0, 1, 0, 1]),
        (Type::TSQUERY.oid(), vec![0, 0, 0, 1, 1, 0, 0, b'a', 0]),
        (MOOD, b"ok".to_vec()),
        (PAIR, pair(Some(1), Some("b"))),
        (PAIRS, array(PAIR, &[(1, 1)], &[Some(&pair(None, None))])),
    ]
}

/// Returns true if a value that is read back may have other bytes: `inet` and `cidr` differ in a
/// flag that the projection lacks.
fn is_ambiguous(oid: Oid) -> bool {
    matches!(Type::from_oid(oid), Some(Type::INET | Type::CIDR | Type::INET_ARRAY | Type::CIDR_ARRAY))
}

mod cells {
    use super::*;

    #[test]
    fn any_cell_projects_to_a_value_that_is_read_back() {
        let seeds = super::cells().into_iter().map(|(oid, bytes)| with_oid(oid, &bytes)).collect();
        FuzzTarget::new("cells", seeds).run(|input| {
            let (oid, bytes) = split_oid(input)?;
            for schema in [schema(oid, false), key_schema(oid)] {
                let value = value_in(schema.clone(), bytes).map_err(outcome)?;
                let json = Value::from_json(value.to_json());
                if json == Value::Null || is_ambiguous(oid) {
                    continue;
                }
                let back = unproject_cell(&schema, 0, &json).expect("a projection is read back");
                let again = project_cell(&schema, 0, back.as_deref().map_or(Cell::Null, Cell::Value));
                // As JSON, because the order of an object's fields is lost in it.
                assert_eq!(again.map(|again| again.to_json()), Ok(value.to_json()), "{back:02x?}");
            }
            Ok(oid.into())
        });
    }
}

mod literals {
    use super::*;

    /// Reads a JSON value as a value of a type, as filters and archives do.
    #[test]
    fn any_json_value_is_refused_or_projects_to_itself() {
        let seeds = super::cells().into_iter().map(|(oid, bytes)| {
            let value = project_cell(&schema(oid, false), 0, Cell::Value(&bytes)).expect("it is valid");
            with_oid(oid, value.to_json().to_string().as_bytes())
        });
        let words = ["infinity", "-infinity", "NaN", "null", "[", "]", "{", "}", "\"", "\\u0000", "BC", "+00", "empty"];
        FuzzTarget::new("literals", seeds.collect()).dictionary(&words).run(|input| {
            let (oid, text) = split_oid(input)?;
            let json: serde_json::Value = serde_json::from_slice(text).map_err(outcome)?;
            let (schema, value) = (schema(oid, false), Value::from_json(json));
            let Some(cell) = unproject_cell(&schema, 0, &value).map_err(outcome)? else { return Ok(0) };
            let projected = project_cell(&schema, 0, Cell::Value(&cell)).expect("what was encoded is a valid cell");
            if !is_ambiguous(oid) {
                let again = unproject_cell(&schema, 0, &projected).expect("a projection is read back");
                let again = project_cell(&schema, 0, again.as_deref().map_or(Cell::Null, Cell::Value));
                assert_eq!(again.as_ref(), Ok(&projected));
            }
            Ok(oid.into())
        });
    }
}

mod filters {
    use super::*;

    fn matches(schema: &Schema, test: MatchCondition, cell: &[u8]) -> Result<bool, String> {
        let predicate = Predicate { field: "c".to_owned(), test };
        let filter = Filter::bind(&[predicate], schema).map_err(outcome)?;
        let row = [Cell::Value(cell)].into_iter().collect::<laredo_core::TupleBuf>();
        Ok(filter.matches(row.as_ref()))
    }

    /// Compares a cell with a value. The cell may be invalid: then no condition holds, and nothing
    /// panics.
    #[test]
    fn any_cell_matches_the_same_value_alone_and_in_a_list() {
        let seeds = super::cells().into_iter().filter_map(|(oid, bytes)| {
            let value = project_cell(&schema(oid, false), 0, Cell::Value(&bytes)).expect("it is valid");
            matches(&schema(oid, false), MatchCondition::Equals(value.clone()), &bytes).ok()?;
            let json = value.to_json().to_string();
            let length = u8::try_from(json.len()).expect("the samples are short");
            Some(with_oid(oid, &[&[length], json.as_bytes(), &bytes].concat()))
        });
        FuzzTarget::new("filters", seeds.collect()).run(|input| {
            let (oid, rest) = split_oid(input)?;
            let (length, rest) = rest.split_first().ok_or("it has no value")?;
            let (text, cell) = rest.split_at_checked((*length).into()).ok_or("the value is cut")?;
            let value = Value::from_json(serde_json::from_slice(text).map_err(outcome)?);
            let schema = schema(oid, false);
            let equals = matches(&schema, MatchCondition::Equals(value.clone()), cell)?;
            let listed = matches(&schema, MatchCondition::In(vec![value.clone(), value]), cell)?;
            assert_eq!(equals, listed);
            Ok(u64::from(oid) * 2 + u64::from(equals))
        });
    }
}
