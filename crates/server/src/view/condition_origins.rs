//! The origins of a stream's conditions, so that an error names the side that set the condition.

use std::sync::Arc;

use laredo_values::{FilterKey, Predicate};

/// The origins of a stream's conditions: the client's request, or its grant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ConditionOrigins {
    /// For each condition, its index in the request; `None` if it is the grant's.
    indexes: Arc<[Option<usize>]>,
}

impl ConditionOrigins {
    /// Returns the origins of the client's own conditions, followed by those of its grant.
    pub(crate) fn new(own: usize, granted: usize) -> ConditionOrigins {
        ConditionOrigins { indexes: (0..own).map(Some).chain(std::iter::repeat_n(None, granted)).collect() }
    }

    /// Returns the origins in the order of `shared`, a copy of the conditions that several streams
    /// share. Equal conditions may be there once or more often.
    ///
    /// A condition that the client and its grant both have is the grant's. Without the client's
    /// condition, the error would be the same.
    pub(crate) fn in_order_of(&self, conditions: &[Predicate], shared: &[Predicate]) -> ConditionOrigins {
        let keys: Vec<FilterKey> = conditions.iter().map(key).collect();
        let origin = |predicate: &Predicate| {
            let key = key(predicate);
            let equal = keys.iter().zip(self.indexes.iter()).filter(|(known, _)| **known == key);
            // `None` is less than any index.
            equal.map(|(_, index)| *index).min().flatten()
        };
        ConditionOrigins { indexes: shared.iter().map(origin).collect() }
    }

    /// Returns the index of a condition in the client's request; `None` if it is the grant's.
    pub(crate) fn own_index(&self, condition: usize) -> Option<usize> {
        self.indexes.get(condition).copied().flatten()
    }
}

fn key(predicate: &Predicate) -> FilterKey {
    FilterKey::of(std::slice::from_ref(predicate))
}

#[cfg(test)]
mod tests {
    use laredo_values::{MatchCondition, Value};

    use super::*;

    fn equals(field: &str, value: f64) -> Predicate {
        Predicate { field: field.to_owned(), test: MatchCondition::Equals(Value::Number(value)) }
    }

    #[test]
    fn a_condition_keeps_its_origin_in_any_order() {
        let (a, b, c) = (equals("a", 1.0), equals("b", 1.0), equals("c", 1.0));
        let conditions = [a.clone(), b.clone(), c.clone()];
        let origins = ConditionOrigins::new(2, 1);
        let indexes = |shared: &[Predicate]| origins.in_order_of(&conditions, shared).indexes.to_vec();
        assert_eq!(indexes(&conditions), [Some(0), Some(1), None]);
        assert_eq!(indexes(&[c.clone(), b.clone(), a.clone()]), [None, Some(1), Some(0)]);
        assert_eq!(indexes(&[a.clone(), c.clone(), a, b, c]), [Some(0), None, Some(0), Some(1), None]);
        let one_of = Predicate { field: "a".to_owned(), test: MatchCondition::In(vec![Value::Number(1.0)]) };
        assert_eq!(indexes(&[one_of]), [Some(0)], "the same condition in another form");
    }

    #[test]
    fn a_condition_of_both_is_that_of_the_grant() {
        let conditions = [equals("b", 1.0), equals("a", 1.0), equals("a", 1.0)];
        let origins = ConditionOrigins::new(2, 1).in_order_of(&conditions, &conditions);
        assert_eq!([0, 1, 2, 3].map(|index| origins.own_index(index)), [Some(0), None, None, None]);
    }
}
