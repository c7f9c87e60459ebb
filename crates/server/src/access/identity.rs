//! Identities: who calls, and what is claimed about the caller.

use laredo_core::CommitTime;
use serde_json::{Map, Value as Json};

/// The statements about a caller, by name. Those of a static identity are in the configuration, and
/// those of a JWT in the token.
pub(crate) type Claims = Map<String, Json>;

/// A caller whose token or certificate was checked.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Identity {
    /// The name in `access.identities`, which grants refer to.
    pub(crate) entry: String,
    /// The name in logs and in status. It begins with the entry's name.
    pub(crate) name: String,
    pub(crate) claims: Claims,
    /// The time from which on the identity is no longer valid; `None` for no limit.
    pub(crate) expires_at: Option<CommitTime>,
}

impl Identity {
    /// Returns a claim. A name with dots that no claim has as a whole is a path into objects.
    pub(crate) fn claim(&self, path: &str) -> Option<&Json> {
        find_claim(&self.claims, path)
    }

    /// Returns true if a claim is the text, or a list that contains it. Numbers and booleans are
    /// compared by their JSON.
    pub(crate) fn has_claim(&self, path: &str, text: &str) -> bool {
        claims_have(&self.claims, path, text)
    }

    /// Returns true if the identity is no longer valid.
    pub(crate) fn has_expired(&self, now: CommitTime) -> bool {
        self.expires_at.is_some_and(|expires_at| expires_at <= now)
    }
}

/// Returns true if a claim is the text, as [`Identity::has_claim`] compares them.
pub(super) fn claims_have(claims: &Claims, path: &str, text: &str) -> bool {
    let is_text = |claim: &Json| match claim {
        Json::String(claim) => claim == text,
        Json::Number(number) => number.to_string() == text,
        Json::Bool(claim) => claim.to_string() == text,
        Json::Null | Json::Array(_) | Json::Object(_) => false,
    };
    match find_claim(claims, path) {
        Some(Json::Array(items)) => items.iter().any(is_text),
        Some(claim) => is_text(claim),
        None => false,
    }
}

fn find_claim<'a>(claims: &'a Claims, path: &str) -> Option<&'a Json> {
    if let Some(claim) = claims.get(path) {
        return Some(claim);
    }
    path.match_indices('.').find_map(|(dot, _)| find_claim(claims.get(&path[..dot])?.as_object()?, &path[dot + 1..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(claims: Json) -> Identity {
        let claims = claims.as_object().cloned().unwrap();
        Identity { entry: "a".to_owned(), name: "a".to_owned(), claims, expires_at: Some(CommitTime(10)) }
    }

    #[test]
    fn claims_are_found_by_name_and_by_path() {
        let identity = identity(serde_json::json!({
            "tenant": "acme", "a.b": 1, "a": { "b": 2, "c": { "d": true } }, "https://x.example/tenant": "t",
        }));
        for (path, expected) in [
            ("tenant", Some("\"acme\"")),
            ("a.b", Some("1")),
            ("a.c.d", Some("true")),
            ("https://x.example/tenant", Some("\"t\"")),
            ("a.c.x", None),
            ("tenant.x", None),
            ("", None),
            (".", None),
        ] {
            assert_eq!(identity.claim(path).map(Json::to_string).as_deref(), expected, "{path}");
        }
    }

    #[test]
    fn a_claim_is_a_text_or_contains_it() {
        let identity = identity(serde_json::json!({
            "one": "x", "list": ["x", 7, ["y"]], "number": 7, "flag": true, "none": null, "object": { "x": "x" },
        }));
        for (path, text) in [("one", "x"), ("list", "x"), ("list", "7"), ("number", "7"), ("flag", "true")] {
            assert!(identity.has_claim(path, text), "{path} {text}");
        }
        for (path, text) in
            [("one", ""), ("list", "y"), ("none", "null"), ("object", "x"), ("absent", ""), ("one", "X")]
        {
            assert!(!identity.has_claim(path, text), "{path} {text}");
        }
    }

    #[test]
    fn an_identity_expires_at_its_time() {
        let identity = identity(serde_json::json!({}));
        assert!(!identity.has_expired(CommitTime(9)) && identity.has_expired(CommitTime(10)));
        assert!(!Identity { expires_at: None, ..identity }.has_expired(CommitTime(i64::MAX)));
    }
}
