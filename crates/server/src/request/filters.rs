//! The filters of a request, and the limits on their number, values, depth and size.

use laredo_proto::replication::{FieldPredicate, field_predicate};
use laredo_values::{MatchCondition, Predicate};
use prost::Message;
use prost_types::value::Kind;
use tonic::Status;

use super::value;
use crate::refusal;

/// The maximum number of predicates.
const PREDICATES_MAX: usize = 32;
/// The maximum number of values in all predicates, with the elements of lists and objects.
const VALUES_MAX: usize = 1000;
/// The maximum depth of a value. A number has the depth 1, a list of numbers 2.
const DEPTH_MAX: usize = 4;
/// The maximum size of all predicates in bytes, as they are encoded.
const BYTES_MAX: usize = 64 << 10;

/// Converts the predicates of a request.
///
/// # Errors
/// Returns an error with the name of the first malformed predicate, or of the limit that the
/// predicates exceed.
pub(super) fn predicates(filters: Vec<FieldPredicate>) -> Result<Vec<Predicate>, Status> {
    check_limits(&filters)?;
    filters.into_iter().enumerate().map(|(index, filter)| predicate(index, filter)).collect()
}

fn check_limits(filters: &[FieldPredicate]) -> Result<(), Status> {
    let exceeds = |found: String, limit: String| Err(refusal::too_costly_filters(&found, &limit));
    if filters.len() > PREDICATES_MAX {
        return exceeds(format!("{} predicates", filters.len()), PREDICATES_MAX.to_string());
    }
    let bytes: usize = filters.iter().map(Message::encoded_len).sum();
    if bytes > BYTES_MAX {
        return exceeds(format!("{bytes} bytes"), BYTES_MAX.to_string());
    }
    let mut values = 0;
    for operand in filters.iter().filter_map(|filter| filter.r#match.as_ref()) {
        let is_bounded = match operand {
            field_predicate::Match::Prefix(_) => true,
            field_predicate::Match::Equals(value) => count_values(value, 1, &mut values),
            field_predicate::Match::In(list) => list.values.iter().all(|value| count_values(value, 1, &mut values)),
        };
        if !is_bounded {
            return exceeds("a value of a greater depth".to_owned(), format!("depth {DEPTH_MAX}"));
        }
    }
    if values > VALUES_MAX {
        return exceeds(format!("{values} values"), VALUES_MAX.to_string());
    }
    Ok(())
}

/// Adds the number of values in a value, which is at `depth`. Returns false if it is too deep.
fn count_values(value: &prost_types::Value, depth: usize, values: &mut usize) -> bool {
    if depth > DEPTH_MAX {
        return false;
    }
    *values += 1;
    match &value.kind {
        Some(Kind::ListValue(list)) => list.values.iter().all(|value| count_values(value, depth + 1, values)),
        Some(Kind::StructValue(object)) => object.fields.values().all(|value| count_values(value, depth + 1, values)),
        Some(Kind::NullValue(_) | Kind::NumberValue(_) | Kind::StringValue(_) | Kind::BoolValue(_)) | None => true,
    }
}

fn predicate(index: usize, filter: FieldPredicate) -> Result<Predicate, Status> {
    let name = |part: &str| format!("filters[{index}].{part}");
    if filter.field.is_empty() {
        return Err(refusal::required(&name("field")));
    }
    let test = match filter.r#match {
        None => return Err(refusal::required(&name("match"))),
        Some(field_predicate::Match::Prefix(prefix)) => MatchCondition::Prefix(prefix),
        Some(field_predicate::Match::Equals(operand)) => {
            MatchCondition::Equals(value(operand).ok_or_else(|| refusal::required(&name("equals")))?)
        }
        Some(field_predicate::Match::In(list)) => {
            let values = list.values.into_iter().map(value).collect::<Option<_>>();
            MatchCondition::In(values.ok_or_else(|| refusal::malformed(&name("in"), "one of its values is empty"))?)
        }
    };
    Ok(Predicate { field: filter.field, test })
}

#[cfg(test)]
mod tests {
    use prost_types::{ListValue, Struct, Value};

    use super::*;

    fn number(number: f64) -> Value {
        Value { kind: Some(Kind::NumberValue(number)) }
    }

    fn list(values: Vec<Value>) -> Value {
        Value { kind: Some(Kind::ListValue(ListValue { values })) }
    }

    fn object(value: Value) -> Value {
        Value { kind: Some(Kind::StructValue(Struct { fields: [("a".to_owned(), value)].into() })) }
    }

    fn on(operand: field_predicate::Match) -> FieldPredicate {
        FieldPredicate { field: "c".to_owned(), r#match: Some(operand) }
    }

    fn equals(value: Value) -> FieldPredicate {
        on(field_predicate::Match::Equals(value))
    }

    fn one_of(values: Vec<Value>) -> FieldPredicate {
        on(field_predicate::Match::In(ListValue { values }))
    }

    fn prefix(length: usize) -> FieldPredicate {
        on(field_predicate::Match::Prefix("x".repeat(length)))
    }

    #[test]
    fn a_filter_is_bounded_and_the_message_names_the_limit() {
        let numbers = |count: u32| (0..count).map(|n| number(n.into())).collect::<Vec<_>>();
        let nested = |depth: usize| (1..depth).fold(number(1.0), |value, _| list(vec![value]));
        for (filters, limit) in [
            (vec![prefix(0); 33], "33 predicates; the limit is 32"),
            (vec![prefix(0); 100_000], "100000 predicates; the limit is 32"),
            (vec![prefix(65 << 10)], "bytes; the limit is 65536"),
            (vec![prefix(3000); 32], "bytes; the limit is 65536"),
            (vec![one_of(numbers(1001))], "1001 values; the limit is 1000"),
            (vec![one_of(numbers(500)), one_of(numbers(500)), equals(number(0.0))], "1001 values; the limit is 1000"),
            (vec![equals(list(numbers(1000)))], "1001 values; the limit is 1000"),
            (vec![equals(nested(5))], "a greater depth; the limit is depth 4"),
            (vec![one_of(vec![nested(90)])], "a greater depth; the limit is depth 4"),
            (vec![equals(object(object(object(object(number(1.0))))))], "a greater depth; the limit is depth 4"),
        ] {
            let status = predicates(filters).unwrap_err();
            assert_eq!(status.code(), tonic::Code::InvalidArgument);
            assert!(status.message().starts_with("`filters`") && status.message().contains(limit), "{status:?}");
        }
        for filters in [
            vec![prefix(0); 32],
            vec![prefix(2000); 32],
            vec![one_of(numbers(1000))],
            vec![one_of(numbers(500)), one_of(numbers(500))],
            vec![equals(nested(4))],
            vec![equals(object(object(object(number(1.0)))))],
        ] {
            let count = filters.len();
            assert_eq!(predicates(filters).unwrap().len(), count);
        }
    }
}
