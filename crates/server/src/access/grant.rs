//! Grants: the decision about what an identity may do, as pure functions.
//!
//! Whatever no grant names is denied. Of the grants for readers, the first one that names the
//! identity and the table decides, so that a later one never adds rows to it.

use std::collections::BTreeMap;

use laredo_core::TableName;
use laredo_engine::CellReplacement;
use laredo_engine::journal::InstanceId;
use laredo_values::{FilterKey, MatchCondition, Predicate, Value, hex};
use serde_json::Value as Json;

use super::identity::Identity;
use super::pattern::TablePattern;
use crate::view::ColumnRules;

/// The grants of a server.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AccessGrants {
    /// The grants of rows. The first one that fits decides.
    pub readers: Vec<ReaderGrant>,
    /// The grants of orders.
    pub operators: Vec<OperatorGrant>,
    /// The identities that may read states and metrics.
    pub observers: Vec<GrantSubjects>,
}

/// The identities that a grant is for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GrantSubjects {
    /// The names of identities; one of them must be the caller's.
    pub identities: Vec<String>,
    /// Claims that the caller must have, all of them.
    pub claims: BTreeMap<String, String>,
}

/// A grant to read rows.
#[derive(Clone, Debug, PartialEq)]
pub struct ReaderGrant {
    /// The identities.
    pub subjects: GrantSubjects,
    /// The tables; one of the patterns must match.
    pub tables: Vec<TablePattern>,
    /// The conditions on rows, all of which must hold.
    pub rows: Vec<RowRule>,
    /// The columns that are left out.
    pub hidden_columns: Vec<String>,
    /// The columns whose values are replaced, each with the replacement. None may be part of the
    /// key.
    pub masked_columns: Vec<(String, CellReplacement)>,
}

/// A grant to give orders.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OperatorGrant {
    /// The identities.
    pub subjects: GrantSubjects,
    /// The names of the rpcs, such as `ReloadTable`; `*` is for all of them.
    pub orders: Vec<String>,
}

/// A condition on rows, with values from the configuration or from the identity.
#[derive(Clone, Debug, PartialEq)]
pub struct RowRule {
    /// The column.
    pub field: String,
    /// The condition.
    pub test: RowTest,
}

/// The condition of a [`RowRule`].
#[derive(Clone, Debug, PartialEq)]
pub enum RowTest {
    /// A condition without values from the identity.
    Fixed(MatchCondition),
    /// The column is equal to the claim, or to one of its items if it is a list.
    EqualsClaim(String),
    /// The column begins with the claim.
    BeginsWithClaim(String),
}

/// The part of a table that a caller may read.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct RowScope {
    /// The conditions that the server adds to those of the client.
    pub(crate) predicates: Vec<Predicate>,
    /// The columns that are left out or masked.
    pub(crate) columns: ColumnRules,
    /// True if the server has access rules, so that other callers may have other scopes.
    pub(crate) is_ruled: bool,
}

/// The reason why a caller may not read a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ScopeDenial {
    /// No grant names the identity and the table.
    NoGrant,
    /// The grant needs a claim that the identity lacks, or that is not a value.
    Claim(String),
}

impl GrantSubjects {
    fn include(&self, identity: &Identity) -> bool {
        self.identities.contains(&identity.entry)
            && self.claims.iter().all(|(name, text)| identity.has_claim(name, text))
    }
}

impl AccessGrants {
    /// Returns true if the identity may read some table.
    pub(crate) fn reads(&self, identity: &Identity) -> bool {
        self.readers.iter().any(|grant| grant.subjects.include(identity))
    }

    /// Returns true if the identity may give an order.
    pub(crate) fn orders(&self, identity: &Identity, order: &str) -> bool {
        let names = |grant: &OperatorGrant| grant.orders.iter().any(|name| name == order || name == "*");
        self.operators.iter().any(|grant| grant.subjects.include(identity) && names(grant))
    }

    /// Returns true if the identity may read states and metrics.
    pub(crate) fn observes(&self, identity: &Identity) -> bool {
        self.observers.iter().any(|subjects| subjects.include(identity))
    }

    /// Returns the part of a table that the identity may read.
    ///
    /// # Errors
    /// Returns the reason if it may read nothing of the table.
    pub(crate) fn scope(&self, identity: &Identity, table: &TableName) -> Result<RowScope, ScopeDenial> {
        let fits = |grant: &&ReaderGrant| {
            grant.subjects.include(identity) && grant.tables.iter().any(|pattern| pattern.matches(table))
        };
        let grant = self.readers.iter().find(fits).ok_or(ScopeDenial::NoGrant)?;
        let predicates = grant.rows.iter().map(|rule| rule.predicate(identity)).collect::<Result<_, _>>()?;
        let columns = ColumnRules::new(grant.hidden_columns.clone(), grant.masked_columns.clone());
        Ok(RowScope { predicates, columns, is_ruled: true })
    }
}

impl RowRule {
    fn predicate(&self, identity: &Identity) -> Result<Predicate, ScopeDenial> {
        let test = match &self.test {
            RowTest::Fixed(condition) => condition.clone(),
            RowTest::EqualsClaim(claim) => equal_to(identity.claim(claim)).ok_or(ScopeDenial::Claim(claim.clone()))?,
            RowTest::BeginsWithClaim(claim) => {
                begins_with(identity.claim(claim)).ok_or(ScopeDenial::Claim(claim.clone()))?
            }
        };
        Ok(Predicate { field: self.field.clone(), test })
    }
}

/// Returns the condition that a column is equal to a claim.
fn equal_to(claim: Option<&Json>) -> Option<MatchCondition> {
    Some(match claim? {
        Json::Array(items) if items.is_empty() => return None,
        Json::Array(items) => MatchCondition::In(items.iter().map(value).collect::<Option<_>>()?),
        claim => MatchCondition::Equals(value(claim)?),
    })
}

/// Returns the condition that a column begins with a claim. An empty claim would select every row.
fn begins_with(claim: Option<&Json>) -> Option<MatchCondition> {
    let prefix = claim?.as_str().filter(|prefix| !prefix.is_empty())?;
    Some(MatchCondition::Prefix(prefix.to_owned()))
}

/// Converts a claim. A number becomes its digits, which compare with numbers without loss.
fn value(claim: &Json) -> Option<Value> {
    match claim {
        Json::String(text) => Some(Value::String(text.clone())),
        Json::Number(number) => Some(Value::String(number.to_string())),
        Json::Bool(flag) => Some(Value::Bool(*flag)),
        Json::Null | Json::Array(_) | Json::Object(_) => None,
    }
}

/// The number of bytes of a scope's fingerprint.
const FINGERPRINT_BYTES: usize = 8;
/// The separator before the fingerprint in the name of a journal that a client is sent. Journals
/// themselves have no such name.
const FINGERPRINT_MARK: char = '~';

/// Splits the name of a journal, or the ID of a snapshot, as a client sends it back: into the
/// journal's own, and the fingerprint of the scope that the client's rows were selected by.
pub(crate) fn split_fingerprint(id: &str) -> (String, String) {
    let Some((instance, rest)) = id.split_once(FINGERPRINT_MARK) else { return (id.to_owned(), String::new()) };
    let end = rest.find('-').unwrap_or(rest.len());
    (format!("{instance}{}", &rest[end..]), rest[..end].to_owned())
}

impl RowScope {
    /// Returns true if the scope is the whole table.
    pub(crate) fn is_whole(&self) -> bool {
        self.predicates.is_empty() && self.columns.is_empty()
    }

    /// Returns true if the two scopes select the same rows and columns.
    pub(crate) fn selects_same(&self, other: &RowScope) -> bool {
        let key = |scope: &RowScope| FilterKey::of(&scope.predicates);
        self.columns == other.columns && key(self) == key(other)
    }

    /// Returns a text that distinguishes the rows of this scope from those of others; empty for the
    /// whole table. It is the same on every server.
    pub(crate) fn fingerprint(&self) -> String {
        if self.is_whole() {
            return String::new();
        }
        let hidden = Json::from(self.columns.hidden().to_vec());
        let masked = match self.columns.masked() {
            [] => String::new(),
            // The key of a hash is written as its fingerprint.
            masked => format!("{masked:?}"),
        };
        let text = format!("{}{hidden}{masked}", FilterKey::of(&self.predicates).as_str());
        let digest = ring::digest::digest(&ring::digest::SHA256, text.as_bytes());
        hex(&digest.as_ref()[..FINGERPRINT_BYTES])
    }

    /// Returns the name of a journal for clients of this scope. They send it back when they resume.
    pub(crate) fn name_instance(&self, instance: &InstanceId) -> InstanceId {
        match self.fingerprint().as_str() {
            "" => instance.clone(),
            fingerprint => InstanceId(format!("{}{FINGERPRINT_MARK}{fingerprint}", instance.0)),
        }
    }
}

#[cfg(test)]
mod tests;
