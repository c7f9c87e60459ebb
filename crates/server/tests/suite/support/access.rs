//! Rules of access whose identities have their names as tokens.

use laredo_server::{GrantSubjects, IdentityOptions, ReaderGrant, TokenHash, TokenOptions};
use tonic::Request;

pub(crate) fn identities(names: &[&str]) -> Vec<IdentityOptions> {
    let identity = |name: &&str| IdentityOptions {
        name: (*name).to_owned(),
        tokens: vec![TokenOptions { hash: TokenHash::of(name), expires_at: None }],
        ..IdentityOptions::default()
    };
    names.iter().map(identity).collect()
}

pub(crate) fn subjects(names: &[&str]) -> GrantSubjects {
    let identities = names.iter().map(|name| (*name).to_owned()).collect();
    GrantSubjects { identities, ..GrantSubjects::default() }
}

/// Returns a grant of everything of the tables that a pattern matches.
pub(crate) fn grant(names: &[&str], tables: &str) -> ReaderGrant {
    ReaderGrant {
        subjects: subjects(names),
        tables: vec![tables.parse().unwrap()],
        rows: Vec::new(),
        hidden_columns: Vec::new(),
        masked_columns: Vec::new(),
    }
}

/// Returns a request of an identity.
pub(crate) fn asked_by<T>(name: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("authorization", format!("Bearer {name}").parse().unwrap());
    request
}
