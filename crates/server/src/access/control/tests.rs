use std::time::Duration;

use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderValue};
use laredo_values::{MatchCondition, Value};
use parking_lot::Mutex;
use tonic::Code;

use super::*;
use crate::access::grant::{GrantSubjects, OperatorGrant, ReaderGrant, RowRule, RowTest};
use crate::access::jwt::JwtAlgorithm;
use crate::access::jwt::tests::{TestSigner, keys_of};
use crate::access::rules::{AccessRules, CallRefusal};
use crate::access::token::AccessToken;
use crate::peer::{PeerAddress, PeerInfo};
use crate::rpc_rules::{HEALTH, REFLECTION, REPLICATION};

mod replaced;

fn token(number: u8) -> AccessToken {
    AccessToken::from_random([number; 32])
}

fn identity(name: &str, number: u8, expires_at: Option<CommitTime>) -> IdentityOptions {
    let tokens = vec![TokenOptions { hash: token(number).hash(), expires_at }];
    IdentityOptions { name: name.to_owned(), tokens, ..IdentityOptions::default() }
}

fn subjects(name: &str) -> GrantSubjects {
    GrantSubjects { identities: vec![name.to_owned()], claims: BTreeMap::new() }
}

/// Returns rules with a reader (token 1), an operator of two orders (2), an observer (3), an
/// identity without grants (4) and one that expires at 100 (5).
fn options() -> AccessOptions {
    let tables = vec!["public.*".parse().unwrap()];
    AccessOptions {
        identities: vec![
            identity("reader", 1, None),
            identity("operator", 2, None),
            identity("observer", 3, None),
            identity("guest", 4, None),
            identity("visitor", 5, Some(CommitTime(100))),
        ],
        grants: AccessGrants {
            readers: vec![
                ReaderGrant {
                    subjects: subjects("reader"),
                    tables: tables.clone(),
                    rows: vec![],
                    hidden_columns: vec![],
                    masked_columns: vec![],
                },
                ReaderGrant {
                    subjects: subjects("visitor"),
                    tables,
                    rows: vec![],
                    hidden_columns: vec![],
                    masked_columns: vec![],
                },
            ],
            operators: vec![OperatorGrant {
                subjects: subjects("operator"),
                orders: vec!["ReloadTable".to_owned(), "PauseSync".to_owned()],
            }],
            observers: vec![subjects("observer")],
        },
        ..AccessOptions::default()
    }
}

struct RuledServer {
    rules: AccessRules,
    now: Arc<Mutex<i64>>,
}

impl RuledServer {
    fn new(options: AccessOptions) -> RuledServer {
        let now = Arc::new(Mutex::new(0));
        let clock_now = now.clone();
        let clock: Clock = Arc::new(move || CommitTime(*clock_now.lock()));
        RuledServer { rules: AccessRules::new(options, clock), now }
    }

    fn code(&self, path: &str, authorization: &[&str]) -> Code {
        self.admit(path, authorization).map_or_else(|refused| refused.status.code(), |_| Code::Ok)
    }

    fn admit(&self, path: &str, authorization: &[&str]) -> Result<Caller, CallRefusal> {
        let mut headers = HeaderMap::new();
        for value in authorization {
            headers.append(AUTHORIZATION, HeaderValue::from_str(value).unwrap());
        }
        self.rules.admit(path, &headers, None)
    }
}

fn bearer_of(number: u8) -> String {
    format!("Bearer {}", token(number).expose())
}

#[test]
fn callers_share_limits_by_identity_and_the_others_by_network() {
    let rules = RuledServer::new(options());
    let peer = |text: &str| PeerInfo {
        address: PeerAddress::Tcp(text.parse().unwrap()),
        has_tls: false,
        certificates: Arc::new([]),
    };
    let identified = |number: u8, from: &str| {
        let headers = HeaderMap::from_iter([(AUTHORIZATION, HeaderValue::from_str(&bearer_of(number)).unwrap())]);
        let path = "/laredo.replication.v1.LaredoReplicationService/Sync";
        rules.rules.admit(path, &headers, Some(&peer(from))).unwrap().group()
    };
    assert_eq!(identified(1, "10.0.0.1:1"), identified(1, "10.0.0.2:1"), "one identity, two addresses");
    assert_ne!(identified(1, "10.0.0.1:1"), identified(5, "10.0.0.1:1"), "two identities behind one address");
    let unlimited = |from: &str| Caller::unlimited(Some(&peer(from))).group();
    assert_eq!(unlimited("10.0.0.1:1"), unlimited("10.0.0.1:2"));
    assert_ne!(unlimited("10.0.0.1:1"), unlimited("10.0.0.2:1"));
    assert_ne!(unlimited("10.0.0.1:1"), identified(1, "10.0.0.1:1"));
}

#[test]
fn no_rpc_is_open_to_a_caller_that_is_not_known() {
    let rules = RuledServer::new(options());
    let (wrong, basic) = (bearer_of(9), format!("Basic {}", token(1).expose()));
    let twice = [bearer_of(1), bearer_of(1)];
    *rules.now.lock() = 100;
    let paths = rpc_rules::described_paths();
    assert!(paths.len() > 35, "{paths:?}");
    for path in &paths {
        for authorization in [
            vec![],
            vec![wrong.as_str()],
            vec![basic.as_str()],
            vec![token(1).expose()],
            vec!["Bearer "],
            vec!["Bearer"],
            vec![twice[0].as_str(), twice[1].as_str()],
            // Its time is over.
            vec![bearer_of(5).as_str()],
        ] {
            assert_eq!(rules.code(path, &authorization), Code::Unauthenticated, "{path} {authorization:?}");
        }
        assert!(!matches!(rules.code(path, &[&bearer_of(4)]), Code::Unauthenticated), "{path}: the caller is known");
    }
}

#[test]
fn each_role_may_call_its_own_rpcs_and_no_others() {
    let rules = RuledServer::new(options());
    for path in &rpc_rules::described_paths() {
        let effect = rpc_rules::find_effect(path);
        let is_of = |service: &str| path.starts_with(&format!("/{service}/"));
        let (is_replication, is_health, is_reflection) = (is_of(REPLICATION), is_of(HEALTH), is_of(REFLECTION));
        let is_granted_order = ["/ReloadTable", "/PauseSync"].iter().any(|order| path.ends_with(order));
        let reads = effect == Some(RpcEffect::Reads) || is_replication || is_reflection;
        let observes = effect == Some(RpcEffect::Observes) || is_reflection || is_health;
        let expected = |is_allowed| if is_allowed { Code::Ok } else { Code::PermissionDenied };
        assert_eq!(rules.code(path, &[&bearer_of(1)]), expected(reads), "reader {path}");
        assert_eq!(rules.code(path, &[&bearer_of(2)]), expected(is_granted_order || is_reflection), "operator {path}");
        assert_eq!(rules.code(path, &[&bearer_of(3)]), expected(observes), "observer {path}");
        assert_eq!(rules.code(path, &[&bearer_of(4)]), expected(is_reflection), "guest {path}");
    }
}

#[test]
fn a_path_that_is_no_rpc_is_refused_to_everyone() {
    let rules = RuledServer::new(options());
    for path in ["/", "", "/laredo.replication.v1.LaredoReplicationService/x/Sync", "/laredo.v1.Other/GetStatus"] {
        assert_eq!(rules.code(path, &[]), Code::Unauthenticated, "{path}");
        for number in 1..=4 {
            assert_eq!(rules.code(path, &[&bearer_of(number)]), Code::Unimplemented, "{path}");
        }
    }
}

#[test]
fn a_token_is_valid_until_its_time() {
    let rules = RuledServer::new(options());
    let sync = format!("/{REPLICATION}/Sync");
    for (now, code) in [(0, Code::Ok), (99, Code::Ok), (100, Code::Unauthenticated)] {
        *rules.now.lock() = now;
        assert_eq!(rules.code(&sync, &[&bearer_of(5)]), code, "{now}");
    }
    let revoked = RuledServer::new(AccessOptions { identities: vec![identity("visitor", 6, None)], ..options() });
    assert_eq!(revoked.code(&sync, &[&bearer_of(5)]), Code::Unauthenticated, "its hash is no longer configured");
    assert_eq!(revoked.code(&sync, &[&bearer_of(6)]), Code::Ok, "the identity has another token");
}

#[test]
fn the_scheme_may_have_any_case() {
    let rules = RuledServer::new(options());
    let sync = format!("/{REPLICATION}/Sync");
    for scheme in ["Bearer", "bearer", "BEARER"] {
        assert_eq!(rules.code(&sync, &[&format!("{scheme} {}", token(1).expose())]), Code::Ok, "{scheme}");
    }
    let upper = token(1).expose().to_uppercase();
    assert_eq!(rules.code(&sync, &[&format!("Bearer {upper}")]), Code::Unauthenticated, "a token has one spelling");
}

#[test]
fn an_open_health_needs_no_identity_and_shows_no_state() {
    let rules = RuledServer::new(AccessOptions { health_is_open: true, ..options() });
    let caller = rules.admit(&format!("/{HEALTH}/Check"), &[]).unwrap();
    assert!(!caller.is_observer() && caller.scope(&TableName::new("public", "t")).is_err());
    assert_eq!(rules.code("/laredo.v1.LaredoOAMService/CheckReady", &[]), Code::Unauthenticated);
    let http = |is_metrics, headers: &HeaderMap| {
        rules.rules.admit_http(is_metrics, headers, None).map_err(|refused| refused.status.code())
    };
    let of = |number| HeaderMap::from_iter([(AUTHORIZATION, HeaderValue::from_str(&bearer_of(number)).unwrap())]);
    let none = HeaderMap::new();
    assert!(http(false, &none).is_ok_and(|caller| !caller.is_observer()));
    assert!(http(false, &of(1)).is_ok_and(|caller| !caller.is_observer()));
    assert!(http(false, &of(3)).is_ok_and(|caller| caller.is_observer()));
    assert_eq!(http(false, &of(9)).err(), Some(Code::Unauthenticated), "a wrong token is not ignored");
    assert_eq!(http(true, &none).err(), Some(Code::Unauthenticated));
    assert_eq!(http(true, &of(1)).err(), Some(Code::PermissionDenied));
    assert!(http(true, &of(3)).is_ok());
}

#[test]
fn a_caller_reads_the_tables_of_its_grant() {
    let rules = RuledServer::new(options());
    let caller = rules.admit(&format!("/{REPLICATION}/Sync"), &[&bearer_of(1)]).unwrap();
    assert_eq!(caller.identity_name(), "reader");
    assert!(caller.scope(&TableName::new("public", "t")).unwrap().is_whole());
    let denied = caller.scope(&TableName::new("private", "t")).unwrap_err();
    assert_eq!(denied.code(), Code::PermissionDenied);
    assert!(denied.message().contains("reader") && denied.message().contains("private.t"), "{denied}");
}

/// Returns rules in which a JWT of the signer proves `tenant`, with the claims of the token and the
/// claim `region` of the configuration.
fn jwt_options(signer: &TestSigner) -> AccessOptions {
    let jwt = JwtOptions {
        issuer: "https://issuer.example".to_owned(),
        audiences: vec!["laredo".to_owned()],
        keys: keys_of(signer.key_set()),
        algorithms: JwtAlgorithm::DEFAULT.to_vec(),
        subjects: Vec::new(),
        required_claims: BTreeMap::new(),
        leeway: Duration::ZERO,
    };
    let tenant = IdentityOptions {
        name: "tenant".to_owned(),
        claims: [("region".to_owned(), "eu".to_owned())].into(),
        jwt: Some(jwt),
        limits: IdentityLimits { streams_max: Some(1), ..IdentityLimits::default() },
        ..IdentityOptions::default()
    };
    let rule =
        |field: &str, claim: &str| RowRule { field: field.to_owned(), test: RowTest::EqualsClaim(claim.to_owned()) };
    let grant = ReaderGrant {
        subjects: subjects("tenant"),
        tables: vec!["public.*".parse().unwrap()],
        rows: vec![rule("tenant_id", "app.tenants"), rule("region", "region")],
        hidden_columns: vec![],
        masked_columns: vec![],
    };
    let mut options = options();
    options.identities.push(tenant);
    options.grants.readers.push(grant);
    options
}

fn claims_of(subject: &str) -> serde_json::Value {
    let exp = CommitTime(100).unix_us() / 1_000_000 + 1;
    serde_json::json!({
        "iss": "https://issuer.example", "aud": ["laredo"], "sub": subject, "exp": exp,
        "app": { "tenants": ["acme", 7] }, "region": "us",
    })
}

#[test]
fn a_jwt_proves_an_identity_with_its_claims_until_it_expires() {
    let signer = TestSigner::p256("a");
    let rules = RuledServer::new(jwt_options(&signer));
    let sync = format!("/{REPLICATION}/Sync");
    let bearer = |subject: &str| format!("Bearer {}", signer.sign(&claims_of(subject)));
    let caller = rules.admit(&sync, &[&bearer("auth0|7")]).unwrap();
    assert_eq!(caller.identity_name(), "tenant/auth0|7");
    let scope = caller.scope(&TableName::new("public", "t")).unwrap();
    let texts = |texts: &[&str]| texts.iter().map(|text| Value::String((*text).to_owned())).collect::<Vec<_>>();
    let tests: Vec<_> = scope.predicates.into_iter().map(|predicate| predicate.test).collect();
    let of_configuration = MatchCondition::Equals(Value::String("eu".to_owned()));
    assert_eq!(tests, [MatchCondition::In(texts(&["acme", "7"])), of_configuration]);

    let again = rules.admit(&sync, &[&bearer("auth0|7")]).unwrap();
    let another = rules.admit(&sync, &[&bearer("auth0|8")]).unwrap();
    let stream = caller.begin_stream().unwrap();
    assert_eq!(again.begin_stream().unwrap_err().code(), Code::ResourceExhausted, "they have the same subject");
    assert!(another.begin_stream().is_ok());
    drop(stream);
    assert!(again.begin_stream().is_ok());

    assert_eq!(rules.code("/laredo.v1.LaredoOAMService/GetStatus", &[&bearer("a")]), Code::PermissionDenied);
    *rules.now.lock() = 2_000_000;
    let expired = rules.admit(&sync, &[&bearer("a")]).map(drop).unwrap_err();
    assert_eq!(expired.status.code(), Code::Unauthenticated);
    assert!(expired.status.message().contains("has expired"), "{}", expired.status);
    assert!(expired.identity.is_none());
}

#[test]
fn no_rpc_takes_a_jwt_that_is_not_right() {
    let signer = TestSigner::p256("a");
    let rules = RuledServer::new(jwt_options(&signer));
    let mut other_audience = claims_of("a");
    other_audience["aud"] = "other".into();
    let tokens = [
        "a.b.c".to_owned(),
        signer.sign(&other_audience),
        TestSigner::p256("a").sign(&claims_of("a")),
        TestSigner::p256("b").sign(&claims_of("a")),
    ];
    for path in &rpc_rules::described_paths() {
        for token in &tokens {
            assert_eq!(rules.code(path, &[&format!("Bearer {token}")]), Code::Unauthenticated, "{path} {token}");
        }
    }
    assert_eq!(rules.code(&format!("/{REPLICATION}/Sync"), &[&bearer_of(1)]), Code::Ok, "static tokens are as before");
}
