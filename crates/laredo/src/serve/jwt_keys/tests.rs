use std::time::Duration;

use super::*;
use crate::config::server::AccessIdentityConfig;
use crate::serve::key_request::tests::{TestIssuer, key_set};

/// Returns rules with identities that these JWTs prove.
fn access(jwts: impl IntoIterator<Item = JwtConfig>) -> AccessConfig {
    let identity = |(i, jwt): (usize, JwtConfig)| {
        (format!("identity{i}"), AccessIdentityConfig { jwt: Some(jwt), ..AccessIdentityConfig::default() })
    };
    AccessConfig { identities: jwts.into_iter().enumerate().map(identity).collect(), ..AccessConfig::default() }
}

fn of_file(file: &Path) -> JwtConfig {
    JwtConfig { jwks_file: Some(file.to_owned()), ..JwtConfig::default() }
}

/// Waits until the keys are as expected.
async fn wait_for(keys: &JwtKeys, expected: (usize, bool)) {
    let wait = async {
        while (keys.key_count(), keys.has_failed()) != expected {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), wait).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_file_is_read_at_once_and_again_and_a_broken_one_keeps_the_keys() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keys.json");
    std::fs::write(&file, key_set(&["a"])).unwrap();
    let (sources, reader) = JwtKeySources::new();
    let keys = sources.replace(&access([of_file(&file), of_file(&file)])).unwrap();
    assert_eq!(keys.len(), 2);
    assert_eq!(keys["identity0"], keys["identity1"], "one file has one set of keys");
    let keys = &keys["identity0"];
    assert_eq!((keys.key_count(), keys.has_failed()), (1, false));
    let reading = tokio::spawn(reader.keep_current());
    std::fs::write(&file, key_set(&["b", "c"])).unwrap();
    wait_for(keys, (2, false)).await;
    std::fs::write(&file, "{").unwrap();
    wait_for(keys, (2, true)).await;
    std::fs::write(&file, key_set(&["d"])).unwrap();
    wait_for(keys, (1, false)).await;
    std::fs::remove_file(&file).unwrap();
    wait_for(keys, (1, true)).await;
    assert!(!reading.is_finished());
    reading.abort();
}

#[tokio::test]
async fn each_file_that_cannot_be_read_is_a_problem_and_the_sources_remain() {
    let folder = tempfile::tempdir().unwrap();
    let (good, bad) = (folder.path().join("good.json"), folder.path().join("bad.json"));
    std::fs::write(&good, key_set(&["a"])).unwrap();
    std::fs::write(&bad, "{\"keys\": []}").unwrap();
    let (sources, _reader) = JwtKeySources::new();
    let before = sources.replace(&access([of_file(&good)])).unwrap();
    let missing = folder.path().join("missing.json");
    let problems = sources.replace(&access([of_file(&bad), of_file(&missing), of_file(&good)])).unwrap_err();
    assert_eq!(problems.len(), 2, "{problems:?}");
    let path = bad.display();
    assert!(problems[0].starts_with(&format!("access.identities.identity0.jwt.jwks_file: {path}: it has no key")));
    let path = missing.display();
    assert!(problems[1].starts_with(&format!("access.identities.identity1.jwt.jwks_file: cannot read {path}: ")));
    let after = sources.replace(&access([of_file(&good)])).unwrap();
    assert_eq!(before["identity0"], after["identity0"], "the same source has the same keys");
}

#[tokio::test]
async fn an_address_that_does_not_answer_at_first_is_read_later() {
    let issuer = TestIssuer::start(None);
    issuer.set("/keys", "503 Service Unavailable", "");
    let url = format!("http://127.0.0.1:{}/keys", issuer.port);
    let (sources, reader) = JwtKeySources::new();
    let config = JwtConfig { jwks_url: Some(url), ..JwtConfig::default() };
    let keys = sources.replace(&access([config])).unwrap().remove("identity0").unwrap();
    let reading = tokio::spawn(reader.keep_current());
    wait_for(&keys, (0, true)).await;
    issuer.set("/keys", "200 OK", &key_set(&["a", "b"]));
    wait_for(&keys, (2, false)).await;
    reading.abort();
}
