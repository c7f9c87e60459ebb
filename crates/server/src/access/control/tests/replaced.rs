//! Open calls when the rules are replaced: each is judged again by what its caller presented.

use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};

use laredo_values::MatchCondition;

use super::*;
use crate::access::grant::{RowRule, RowTest};
use crate::access::jwt::JwtKeySet;
use crate::access::limits::IdentityLimits;

const WATCH: &str = "/laredo.v1.LaredoOAMService/WatchStatus";

fn sync() -> String {
    format!("/{REPLICATION}/Sync")
}

fn orders() -> TableName {
    TableName::new("public", "orders")
}

/// Returns a rule that selects the rows with a value.
fn rule(field: &str, value: &str) -> RowRule {
    let value = laredo_values::Value::String(value.to_owned());
    RowRule { field: field.to_owned(), test: RowTest::Fixed(MatchCondition::Equals(value)) }
}

/// Returns the rules of [`options`] in which the reader's first grant is changed.
fn with_grant(change: impl FnOnce(&mut ReaderGrant)) -> AccessOptions {
    let mut options = options();
    change(&mut options.grants.readers[0]);
    options
}

/// Returns the code with which an open call ends, or `None` if it continues.
fn end_of(ended: Pin<&mut impl Future<Output = Status>>) -> Option<Code> {
    match ended.poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(status) => Some(status.code()),
        Poll::Pending => None,
    }
}

/// Opens a call of the reader for the table, replaces the rules, and returns its end.
async fn end_after(old: AccessOptions, new: AccessOptions) -> Option<Code> {
    let (server, path) = (RuledServer::new(old), sync());
    let caller = server.admit(&path, &[&bearer_of(1)]).unwrap();
    caller.scope(&orders()).unwrap();
    let mut ended = pin!(caller.ended(&path));
    assert_eq!(end_of(ended.as_mut()), None);
    server.rules.replace(new);
    end_of(ended.as_mut())
}

#[tokio::test]
async fn a_stream_continues_under_rules_that_grant_it_the_same() {
    let rotated = |tokens: &[u8]| {
        let mut options = options();
        options.identities[0].tokens =
            tokens.iter().map(|number| TokenOptions { hash: token(*number).hash(), expires_at: None }).collect();
        options
    };
    let same_rows = |rows: Vec<RowRule>| with_grant(|grant| grant.rows = rows);
    let mut others = options();
    others.identities.retain(|identity| identity.name != "guest");
    others.identities[0].claims.insert("tenant".to_owned(), "acme".to_owned());
    others.identities[0].limits = IdentityLimits { streams_max: Some(1), ..IdentityLimits::default() };
    others.grants.operators.clear();
    let narrow = with_grant(|grant| grant.tables = vec!["public.orders".parse().unwrap()]);
    let hides = |columns: [&str; 2]| with_grant(|grant| grant.hidden_columns = columns.map(str::to_owned).to_vec());
    for (what, old, new) in [
        ("the same rules", options(), options()),
        ("a second token", rotated(&[1]), rotated(&[1, 9])),
        ("other identities and grants", options(), others),
        ("a grant of fewer tables, which include this one", options(), narrow),
        ("conditions in another order", same_rows(vec![rule("a", "1"), rule("b", "2")]), {
            same_rows(vec![rule("b", "2"), rule("a", "1")])
        }),
        ("columns in another order", hides(["x", "y"]), hides(["y", "x"])),
    ] {
        assert_eq!(end_after(old, new).await, None, "{what}");
    }
}

#[tokio::test]
async fn a_stream_ends_if_its_caller_is_not_known_or_not_granted_the_table() {
    let without_token = || {
        let mut options = options();
        options.identities[0].tokens[0].hash = token(9).hash();
        options
    };
    let expires = |at: i64| {
        let mut options = options();
        options.identities[0].tokens[0].expires_at = Some(CommitTime(at));
        options
    };
    let no_grant = with_grant(|grant| grant.subjects = subjects("guest"));
    let another_table = with_grant(|grant| grant.tables = vec!["public.items".parse().unwrap()]);
    for (what, new, code) in [
        ("the token was removed", without_token(), Code::Unauthenticated),
        ("the token has expired", expires(0), Code::Unauthenticated),
        ("the identity was removed", AccessOptions { identities: Vec::new(), ..options() }, Code::Unauthenticated),
        ("no grant names the identity", no_grant, Code::PermissionDenied),
        ("no grant names the table", another_table, Code::PermissionDenied),
    ] {
        assert_eq!(end_after(options(), new).await, Some(code), "{what}");
    }
    assert_eq!(end_after(options(), expires(1)).await, None, "the token is valid for a while");
}

#[tokio::test]
async fn a_stream_begins_again_if_its_rows_columns_or_identity_differ() {
    let mut moved = options();
    let tokens = std::mem::take(&mut moved.identities[0].tokens);
    moved.identities[4].tokens = tokens;
    for (what, new) in [
        ("fewer rows", with_grant(|grant| grant.rows = vec![rule("tenant", "acme")])),
        ("a hidden column", with_grant(|grant| grant.hidden_columns = vec!["secret".to_owned()])),
        ("the token of another reader", moved),
    ] {
        assert_eq!(end_after(options(), new).await, Some(Code::Unavailable), "{what}");
    }
    let narrow = with_grant(|grant| grant.rows = vec![rule("tenant", "acme")]);
    assert_eq!(end_after(narrow, options()).await, Some(Code::Unavailable), "more rows");
}

#[tokio::test]
async fn a_call_of_another_kind_ends_with_its_right() {
    let without = |change: fn(&mut AccessOptions)| {
        let mut options = options();
        change(&mut options);
        options
    };
    let open = AccessOptions { health_is_open: true, ..options() };
    let health = format!("/{HEALTH}/Watch");
    for (what, old, new, (path, number), code) in [
        ("an observer", options(), without(|o| o.grants.observers.clear()), (WATCH, 3), Some(Code::PermissionDenied)),
        ("an observer", options(), without(|o| o.grants.readers.clear()), (WATCH, 3), None),
        ("health that is closed", open.clone(), options(), (health.as_str(), 9), Some(Code::Unavailable)),
        ("health that stays open", open.clone(), without(|o| o.health_is_open = true), (health.as_str(), 9), None),
        ("health that is opened", options(), open, (health.as_str(), 3), None),
    ] {
        let server = RuledServer::new(old);
        let mut ended = pin!(server.admit(path, &[&bearer_of(number)]).unwrap().ended(path));
        assert_eq!(end_of(ended.as_mut()), None, "{what}");
        server.rules.replace(new);
        assert_eq!(end_of(ended.as_mut()), code, "{what}");
    }
}

#[tokio::test]
async fn a_call_that_was_admitted_before_is_judged_by_the_newest_rules() {
    let (server, path) = (RuledServer::new(options()), sync());
    let caller = server.admit(&path, &[&bearer_of(1)]).unwrap();
    server.rules.replace(options());
    server.rules.replace(with_grant(|grant| grant.rows = vec![rule("tenant", "acme")]));
    // The service asks only now, and is answered by the rules of the admission.
    assert!(caller.scope(&orders()).unwrap().is_whole());
    let mut ended = pin!(caller.ended(&path));
    assert_eq!(end_of(ended.as_mut()), Some(Code::Unavailable));
    let again = server.admit(&path, &[&bearer_of(1)]).unwrap();
    assert_eq!(again.scope(&orders()).unwrap().predicates.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_expiry_that_was_added_ends_an_open_stream() {
    let (server, path) = (RuledServer::new(options()), sync());
    let caller = server.admit(&path, &[&bearer_of(1)]).unwrap();
    caller.scope(&orders()).unwrap();
    let now = server.now.clone();
    let ended = tokio::spawn(async move { caller.ended(&path).await });
    let mut expiring = options();
    expiring.identities[0].tokens[0].expires_at = Some(CommitTime(50));
    server.rules.replace(expiring);
    tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    assert!(!ended.is_finished());
    *now.lock() = 50;
    assert_eq!(ended.await.unwrap().code(), Code::Unauthenticated);
}

#[tokio::test]
async fn a_stream_ends_when_the_key_that_proved_its_caller_is_removed() {
    let (signer, next) = (TestSigner::ed25519("a"), TestSigner::ed25519("b"));
    let set = |signers: &[&TestSigner]| {
        let keys: Vec<_> = signers.iter().map(|signer| signer.public_key()).collect();
        JwtKeySet::parse(serde_json::json!({ "keys": keys }).to_string().as_bytes()).unwrap()
    };
    let mut options = jwt_options(&signer);
    let (keys, mut feed) = JwtKeys::new("test");
    feed.replace(set(&[&signer]));
    options.identities.last_mut().unwrap().jwt.as_mut().unwrap().keys = keys;
    let (server, path) = (RuledServer::new(options), sync());
    let bearer = format!("Bearer {}", signer.sign(&claims_of("web")));
    let mut ended = pin!(server.admit(&path, &[&bearer]).unwrap().ended(&path));
    for (what, signers, end) in [
        ("the same keys", vec![&signer], None),
        ("a second key", vec![&signer, &next], None),
        ("another key alone", vec![&next], Some(Code::Unauthenticated)),
    ] {
        feed.replace(set(&signers));
        server.rules.publish_new_keys();
        assert_eq!(end_of(ended.as_mut()), end, "{what}");
    }
}

#[test]
fn the_usage_of_an_identity_outlives_the_rules() {
    let limited = |streams| {
        let mut options = options();
        options.identities[0].limits = IdentityLimits { streams_max: Some(streams), ..IdentityLimits::default() };
        options
    };
    let server = RuledServer::new(limited(2));
    let begin = || server.admit(&sync(), &[&bearer_of(1)]).unwrap().begin_stream().map(Option::unwrap);
    let (one, _two) = (begin().unwrap(), begin().unwrap());
    server.rules.replace(limited(1));
    drop(one);
    assert_eq!(begin().map(drop).map_err(|refused| refused.code()), Err(Code::ResourceExhausted), "one is left");
    server.rules.replace(limited(2));
    begin().unwrap();
}
