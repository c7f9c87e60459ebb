use proptest::prelude::*;
use serde_json::{Value as Json, json};

use super::*;

mod signer;

pub(in crate::access) use signer::TestSigner;
use signer::encode;

const ISSUER: &str = "https://issuer.example";
const AUDIENCE: &str = "https://laredo.example";
/// The time of the tests, in seconds since 1970.
const NOW: i64 = 1_900_000_000;

fn at(seconds: i64) -> CommitTime {
    CommitTime::from_unix_us(seconds * 1_000_000)
}

/// Returns rules for the keys of a set, without leeway.
fn options(keys: JwtKeys) -> JwtOptions {
    JwtOptions {
        issuer: ISSUER.to_owned(),
        audiences: vec!["other".to_owned(), AUDIENCE.to_owned()],
        keys,
        algorithms: JwtAlgorithm::DEFAULT.to_vec(),
        subjects: Vec::new(),
        required_claims: BTreeMap::new(),
        leeway: Duration::ZERO,
    }
}

/// Returns keys that were read once.
pub(in crate::access) fn keys_of(set: JwtKeySet) -> JwtKeys {
    let (keys, mut feed) = JwtKeys::new("test");
    feed.replace(set);
    keys
}

fn claims() -> Json {
    json!({ "iss": ISSUER, "aud": AUDIENCE, "sub": "alice", "exp": NOW + 60, "tenant": "acme" })
}

/// Returns the claims with others instead of some of them; null removes one.
fn claims_with(other: &Json) -> Json {
    let mut claims = claims();
    for (name, value) in other.as_object().unwrap() {
        match value {
            Json::Null => drop(claims.as_object_mut().unwrap().remove(name)),
            value => claims[name] = value.clone(),
        }
    }
    claims
}

/// Verifies a token with one entry.
fn refusal(options: &JwtOptions, token: &str) -> Option<JwtRefusal> {
    verify(token, std::iter::once(((), options)), at(NOW)).err()
}

#[test]
fn the_examples_of_the_standards_verify() {
    let rsa = TestSigner::rsa("a");
    let payload = "eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ";
    let p256 = json!({ "kty": "EC", "crv": "P-256", "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
        "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0" });
    let ed25519 = json!({ "kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo" });
    for (standard, key, algorithm, signed, signature) in [
        (
            "RFC 7515, A.2",
            rsa.public_key(),
            JwtAlgorithm::Rs256,
            format!("eyJhbGciOiJSUzI1NiJ9.{payload}"),
            "cC4hiUPoj9Eetdgtv3hF80EGrhuB__dzERat0XF9g2VtQgr9PJbu3XOiZj5RZmh7AAuHIm4Bh-0Qc_lF5YKt_O8W2Fp5jujGbds9uJdbF9CUAr7t1\
             dnZcAcQjbKBYNX4BAynRFdiuB--f_nZLgrnbyTyWzO75vRK5h6xBArLIARNPvkSjtQBMHlb1L07Qe7K0GarZRmB_eSN9383LcOLn6_dO--xi12jzD\
             wusC-eOkHWEsqtFZESc6BfI7noOPqvhJ1phCnvWh6IeYI2w9QOYEUipUTI8np6LbgGY9Fs98rqVt5AXLIhWkWywlVmtVrBp0igcN_IoypGlUPQGe7\
             7Rw",
        ),
        (
            "RFC 7515, A.3",
            p256,
            JwtAlgorithm::Es256,
            format!("eyJhbGciOiJFUzI1NiJ9.{payload}"),
            "DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q",
        ),
        (
            "RFC 8037, A.4",
            ed25519,
            JwtAlgorithm::EdDsa,
            "eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc".to_owned(),
            "hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg",
        ),
    ] {
        let set = JwtKeySet::parse(json!({ "keys": [key] }).to_string().as_bytes()).unwrap();
        let signature = base64::Engine::decode(&base64::prelude::BASE64_URL_SAFE_NO_PAD, signature).unwrap();
        assert!(set.verifies((None, algorithm), signed.as_bytes(), &signature), "{standard}");
        assert!(!set.verifies((None, algorithm), format!("{signed}.").as_bytes(), &signature), "{standard}");
    }
}

#[test]
fn each_algorithm_verifies_if_it_is_accepted() {
    let (rsa, p256, p384) = (TestSigner::rsa("a"), TestSigner::p256("a"), TestSigner::p384("a"));
    let ed25519 = TestSigner::ed25519("a");
    for algorithm in JwtAlgorithm::ALL {
        assert_eq!(JwtAlgorithm::from_name(algorithm.name()), Some(algorithm));
        let signer = match algorithm {
            JwtAlgorithm::Es256 => &p256,
            JwtAlgorithm::Es384 => &p384,
            JwtAlgorithm::EdDsa => &ed25519,
            _ => &rsa,
        };
        let token = signer.sign_with(algorithm, &claims());
        let accepting = |algorithms: Vec<JwtAlgorithm>| {
            let options = JwtOptions { algorithms, ..options(keys_of(signer.key_set())) };
            refusal(&options, &token)
        };
        assert_eq!(accepting(vec![algorithm]), None, "{algorithm:?}");
        let others = JwtAlgorithm::ALL.into_iter().filter(|other| *other != algorithm).collect();
        assert_eq!(accepting(others), Some(JwtRefusal::Algorithm), "{algorithm:?}");
    }
    for name in ["none", "None", "HS256", "HS384", "HS512", "rs256", "RS1", "ES256K", "ES512", ""] {
        assert_eq!(JwtAlgorithm::from_name(name), None, "{name}");
    }
}

#[test]
fn each_check_of_a_claim_refuses() {
    let signer = TestSigner::ed25519("a");
    let options = JwtOptions {
        subjects: vec![NamePattern::new("alice"), NamePattern::new("system:serviceaccount:*:reader")],
        required_claims: [("realm.roles".to_owned(), "laredo".to_owned())].into(),
        ..options(keys_of(signer.key_set()))
    };
    let roles = json!({ "roles": ["other", "laredo"] });
    let check = |other: Json| {
        let mut claims = claims_with(&other);
        if claims.get("realm").is_none() {
            claims["realm"] = roles.clone();
        }
        refusal(&options, &signer.sign(&claims))
    };
    for accepted in [
        json!({}),
        json!({ "aud": ["x", AUDIENCE], "nbf": NOW, "iat": NOW + 5 }),
        json!({ "exp": 1_900_000_000.5 }),
        json!({ "exp": i64::MAX }),
        json!({ "exp": u64::MAX, "nbf": -1 }),
        json!({ "sub": "system:serviceaccount:shop:reader" }),
        json!({ "realm": { "roles": "laredo" } }),
    ] {
        assert_eq!(check(accepted.clone()), None, "{accepted}");
    }
    for (other, expected) in [
        (json!({ "iss": "https://issuer.example/" }), JwtRefusal::Issuer),
        (json!({ "iss": [ISSUER] }), JwtRefusal::Issuer),
        (json!({ "iss": null }), JwtRefusal::Issuer),
        (json!({ "aud": "laredo.example" }), JwtRefusal::Audience),
        (json!({ "aud": [] }), JwtRefusal::Audience),
        (json!({ "aud": [[AUDIENCE]] }), JwtRefusal::Audience),
        (json!({ "aud": { AUDIENCE: true } }), JwtRefusal::Audience),
        (json!({ "aud": null }), JwtRefusal::Audience),
        (json!({ "exp": NOW }), JwtRefusal::Expired),
        (json!({ "exp": 0 }), JwtRefusal::Expired),
        (json!({ "exp": i64::MIN }), JwtRefusal::Expired),
        (json!({ "exp": null }), JwtRefusal::NoExpiry),
        (json!({ "exp": "never" }), JwtRefusal::Malformed),
        (json!({ "exp": (NOW + 60).to_string() }), JwtRefusal::Malformed),
        (json!({ "nbf": NOW + 1 }), JwtRefusal::NotYetValid),
        (json!({ "nbf": "0" }), JwtRefusal::Malformed),
        (json!({ "nbf": false }), JwtRefusal::Malformed),
        (json!({ "sub": null }), JwtRefusal::NoSubject),
        (json!({ "sub": "" }), JwtRefusal::NoSubject),
        (json!({ "sub": 7 }), JwtRefusal::NoSubject),
        (json!({ "sub": "a\nb" }), JwtRefusal::NoSubject),
        (json!({ "sub": "x".repeat(256) }), JwtRefusal::NoSubject),
        (json!({ "sub": "bob" }), JwtRefusal::Claims),
        (json!({ "sub": "system:serviceaccount:a:b:reader" }), JwtRefusal::Claims),
        (json!({ "realm": { "roles": ["lared"] } }), JwtRefusal::Claims),
        (json!({ "realm": "laredo" }), JwtRefusal::Claims),
    ] {
        assert_eq!(check(other.clone()), Some(expected), "{other}");
    }
}

#[test]
fn a_token_is_valid_for_the_leeway_longer() {
    let signer = TestSigner::ed25519("a");
    let options = JwtOptions { leeway: Duration::from_secs(30), ..options(keys_of(signer.key_set())) };
    let token = signer.sign(&claims_with(&json!({ "exp": NOW, "nbf": NOW - 10 })));
    let check =
        |seconds: i64| verify(&token, std::iter::once(((), &options)), at(seconds)).map(|(_, jwt)| jwt.expires_at);
    assert_eq!(check(NOW - 41).err(), Some(JwtRefusal::NotYetValid));
    assert_eq!(check(NOW - 40).ok(), Some(at(NOW + 30)));
    assert_eq!(check(NOW + 29).ok(), Some(at(NOW + 30)));
    assert_eq!(check(NOW + 30).err(), Some(JwtRefusal::Expired));
}

#[test]
fn a_token_without_a_signature_or_with_that_of_a_secret_is_refused() {
    let signer = TestSigner::rsa("a");
    let options = options(keys_of(signer.key_set()));
    let body = encode(claims().to_string());
    for name in ["none", "None", "NONE", ""] {
        for signature in [String::new(), encode("x")] {
            let token = format!("{}.{body}.{signature}", encode(json!({ "alg": name, "kid": "a" }).to_string()));
            assert!(is_jwt(&token));
            assert_eq!(refusal(&options, &token), Some(JwtRefusal::Algorithm), "{name}");
        }
    }
    let without = format!("{}.{body}.", encode(r#"{"alg":"RS256","kid":"a"}"#));
    assert_eq!(refusal(&options, &without), Some(JwtRefusal::Signature));
    // The public key is known, so that anyone could sign with it as a secret.
    let public = signer.public_key();
    for secret in [public.to_string().into_bytes(), public["n"].as_str().unwrap().as_bytes().to_vec()] {
        let secret = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &secret);
        for (name, expected) in [("HS256", JwtRefusal::Algorithm), ("RS256", JwtRefusal::Signature)] {
            let signed = format!("{}.{body}", encode(json!({ "alg": name, "kid": "a" }).to_string()));
            let token = format!("{signed}.{}", encode(ring::hmac::sign(&secret, signed.as_bytes())));
            assert_eq!(refusal(&options, &token), Some(expected), "{name}");
        }
    }
}

#[test]
fn the_key_has_the_name_that_the_token_names() {
    let (one, two) = (TestSigner::ed25519("one"), TestSigner::ed25519("two"));
    let mut other_kind = TestSigner::p256("one");
    let json = json!({ "keys": [one.public_key(), two.public_key(), other_kind.public_key()] });
    let options = options(keys_of(JwtKeySet::parse(json.to_string().as_bytes()).unwrap()));
    assert_eq!(refusal(&options, &one.sign(&claims())), None);
    assert_eq!(refusal(&options, &two.sign(&claims())), None);
    assert_eq!(refusal(&options, &other_kind.sign(&claims())), None, "two keys of different kinds have one name");
    other_kind.id = Some("two".to_owned());
    assert_eq!(
        refusal(&options, &other_kind.sign(&claims())),
        Some(JwtRefusal::UnknownKey),
        "no key fits the algorithm"
    );
    let mut renamed = TestSigner::ed25519("one");
    assert_eq!(refusal(&options, &renamed.sign(&claims())), Some(JwtRefusal::Signature), "another key has this name");
    renamed.id = Some("three".to_owned());
    assert_eq!(refusal(&options, &renamed.sign(&claims())), Some(JwtRefusal::UnknownKey));
    renamed.id = None;
    assert_eq!(refusal(&options, &renamed.sign(&claims())), Some(JwtRefusal::Signature));
    // Without a name, each key that fits is tried.
    let mut two = two;
    two.id = None;
    assert_eq!(refusal(&options, &two.sign(&claims())), None);
}

#[test]
fn a_key_is_only_for_the_algorithm_that_it_names() {
    let signer = TestSigner::rsa("a");
    let mut key = signer.public_key();
    key["alg"] = json!("RS512");
    let set = JwtKeySet::parse(json!({ "keys": [key] }).to_string().as_bytes()).unwrap();
    let options = JwtOptions { algorithms: JwtAlgorithm::ALL.to_vec(), ..options(keys_of(set)) };
    assert_eq!(refusal(&options, &signer.sign_with(JwtAlgorithm::Rs512, &claims())), None);
    let token = signer.sign_with(JwtAlgorithm::Rs256, &claims());
    assert_eq!(refusal(&options, &token), Some(JwtRefusal::UnknownKey));
}

#[test]
fn unsafe_and_foreign_keys_are_left_out_of_a_set() {
    let signer = TestSigner::ed25519("good");
    let parse = |keys: Json| JwtKeySet::parse(json!({ "keys": keys }).to_string().as_bytes());
    let rsa = |bytes: usize| json!({ "kty": "RSA", "kid": "weak", "n": encode(vec![0xc3; bytes]), "e": "AQAB" });
    for (key, reason) in [
        (
            rsa(128),
            Some("key `weak` is an RSA key of 1024 bits, and keys have 2048 to 8192; the issuer must replace it"),
        ),
        (rsa(1025), Some("key `weak` is an RSA key of 8200 bits")),
        (json!({ "kty": "RSA", "n": "", "e": "AQAB" }), Some("key `without kid` is an RSA key of 0 bits")),
        (json!({ "kty": "RSA", "n": "A+/=", "e": "AQAB" }), Some("key `without kid` has no valid `n`")),
        (
            json!({ "kty": "EC", "crv": "P-256", "kid": "a", "x": "AQAB", "y": "AQAB" }),
            Some("key `a` has no valid `x`"),
        ),
        (json!({ "kty": "OKP", "crv": "Ed25519", "kid": "a" }), Some("key `a` has no valid `x`")),
        (json!("text"), Some("key 0 is malformed")),
        (json!({ "kid": "a" }), Some("key 0 is malformed")),
        (json!({ "kty": "oct", "kid": "a", "k": "c2VjcmV0" }), None),
        (json!({ "kty": "EC", "crv": "P-521", "x": "", "y": "" }), None),
        (json!({ "kty": "OKP", "crv": "X25519", "x": "" }), None),
    ] {
        let set = parse(json!([key, signer.public_key()])).unwrap();
        assert_eq!(set.key_count(), 1, "{key}");
        assert_eq!(set.refused_keys().len(), usize::from(reason.is_some()), "{key}");
        let found = set.refused_keys().first().map_or("", String::as_str);
        assert!(found.starts_with(reason.unwrap_or_default()), "{found}");
        let alone = parse(json!([key])).unwrap_err().to_string();
        assert!(alone.contains("has no key for signatures") && alone.contains(reason.unwrap_or_default()), "{alone}");
    }
    for (name, value) in [("use", json!("enc")), ("key_ops", json!(["sign"])), ("alg", json!("RSA-OAEP"))] {
        let mut key = signer.public_key();
        key[name] = value;
        assert!(parse(json!([key])).is_err(), "{name}");
    }
    // An even exponent, or one of 1, is in no key of RSA.
    for exponent in [vec![1], vec![2], vec![0]] {
        let mut key = TestSigner::rsa("a").public_key();
        key["e"] = json!(encode(exponent));
        let options = options(keys_of(parse(json!([key])).unwrap()));
        assert_eq!(refusal(&options, &TestSigner::rsa("a").sign(&claims())), Some(JwtRefusal::Signature));
    }
    let many = vec![signer.public_key(); 101];
    assert_eq!(parse(json!(many)), Err(JwtKeySetError::Size(101)));
    for text in ["", "[]", "{}", "{\"keys\": 1}", "<html>", "{\"keys\": []}"] {
        assert!(JwtKeySet::parse(text.as_bytes()).is_err(), "{text}");
    }
}

#[test]
fn an_rsa_key_of_1024_bits_does_not_verify_even_if_it_were_in_a_set() {
    // The set refuses such keys, and so does the verification itself.
    let key = ring::signature::RsaPublicKeyComponents { n: vec![0xc3; 128], e: vec![1, 0, 1] };
    let verified = key.verify(&ring::signature::RSA_PKCS1_2048_8192_SHA256, b"message", &[1; 128]);
    assert!(verified.is_err());
}

#[test]
fn malformed_and_long_tokens_are_refused() {
    let signer = TestSigner::ed25519("a");
    let options = options(keys_of(signer.key_set()));
    let header = r#"{"alg":"EdDSA","kid":"a"}"#;
    let sign = |header: &str, claims: &str| signer.sign_parts(JwtAlgorithm::EdDsa, header, claims);
    let text = claims().to_string();
    assert_eq!(refusal(&options, &sign(header, &text)), None);
    let deep = format!("{}1{}", "[".repeat(1000), "]".repeat(1000));
    for token in [
        "..".to_owned(),
        "a.b.c".to_owned(),
        sign("", &text),
        sign("{}", &text),
        sign("[]", &text),
        sign(r#"{"alg":7}"#, &text),
        sign(r#"{"alg":"EdDSA","alg":"none"}"#, &text),
        sign(r#"{"alg":"EdDSA","kid":["a"]}"#, &text),
        sign(r#"{"alg":"EdDSA","kid":"a","crit":["b64"],"b64":false}"#, &text),
        sign(header, ""),
        sign(header, "[]"),
        sign(header, "{"),
        sign(header, &deep),
        format!("{}=", sign(header, &text)),
        format!(" {}", sign(header, &text)),
        format!("{}.{}.é", encode(header), encode(&text)),
    ] {
        assert_eq!(refusal(&options, &token), Some(JwtRefusal::Malformed), "{token}");
    }
    for length in [16 * 1024 + 1, 100_000] {
        let long = sign(header, &claims_with(&json!({ "padding": "x".repeat(length) })).to_string());
        assert_eq!(refusal(&options, &long), Some(JwtRefusal::Length));
    }
    let long = sign(header, &claims_with(&json!({ "padding": "x".repeat(11_000) })).to_string());
    assert_eq!(refusal(&options, &long), None, "a token of {} bytes", long.len());
}

#[test]
fn a_change_of_any_character_is_noticed() {
    for signer in [TestSigner::p256("a"), TestSigner::ed25519("a")] {
        let options = options(keys_of(signer.key_set()));
        let token = signer.sign(&claims());
        for at in 0..token.len() {
            for other in ['A', 'B', '.', '!'] {
                let mut changed = token.clone();
                changed.replace_range(at..=at, &other.to_string());
                assert_eq!(changed == token, refusal(&options, &changed).is_none(), "{at} {other}");
            }
        }
    }
}

proptest! {
    #[test]
    fn nothing_that_a_caller_invents_is_accepted(header in ".{0,40}", claims in ".{0,40}", signature in ".{0,40}", raw in ".{0,80}") {
        let options = options(keys_of(TestSigner::ed25519("a").key_set()));
        let token = format!("{}.{}.{}", encode(&header), encode(&claims), encode(&signature));
        for token in [&token, &raw, &format!("{header}.{claims}.{signature}")] {
            prop_assert!(refusal(&options, token).is_some());
        }
    }
}

#[test]
fn the_first_entry_that_accepts_a_token_has_it() {
    // Two clusters whose issuers have the same name, and two roles of one of them.
    let (east, west) = (TestSigner::ed25519("east"), TestSigner::ed25519("west"));
    let east_keys = keys_of(east.key_set());
    let of = |keys: &JwtKeys, subject: &str| JwtOptions {
        subjects: vec![NamePattern::new(subject)],
        ..options(keys.clone())
    };
    let west_keys = keys_of(west.key_set());
    let entries =
        [("operator", of(&east_keys, "alice")), ("reader", of(&east_keys, "*")), ("west", of(&west_keys, "alice"))];
    let find = |token: &str| verify(token, entries.iter().map(|(name, options)| (*name, options)), at(NOW));
    let bob = claims_with(&json!({ "sub": "bob" }));
    assert_eq!(find(&east.sign(&claims())).unwrap().0, "operator");
    assert_eq!(find(&east.sign(&bob)).unwrap().0, "reader");
    let (entry, jwt) = find(&west.sign(&claims())).unwrap();
    assert_eq!((entry, jwt.subject.as_str(), jwt.expires_at), ("west", "alice", at(NOW + 60)));
    assert_eq!(jwt.claims["tenant"], "acme");
    assert_eq!(find(&west.sign(&bob)).unwrap_err(), JwtRefusal::Claims);
    assert_eq!(find(&TestSigner::ed25519("north").sign(&bob)).unwrap_err(), JwtRefusal::UnknownKey);
    let expired = claims_with(&json!({ "exp": NOW, "sub": "bob" }));
    assert_eq!(find(&west.sign(&expired)).unwrap_err(), JwtRefusal::Expired);
}

#[test]
fn without_keys_a_caller_may_retry() {
    let (keys, mut feed) = JwtKeys::new("test");
    let (signer, options) = (TestSigner::ed25519("a"), options(keys));
    feed.record_failure();
    let refused = refusal(&options, &signer.sign(&claims())).unwrap();
    assert_eq!(refused, JwtRefusal::NoKeys);
    assert_eq!(Status::from(refused).code(), tonic::Code::Unavailable);
    feed.replace(signer.key_set());
    assert_eq!(refusal(&options, &signer.sign(&claims())), None);
    // A failure, and another set without the key.
    feed.record_failure();
    assert_eq!(refusal(&options, &signer.sign(&claims())), None);
    feed.replace(TestSigner::ed25519("b").key_set());
    assert_eq!(refusal(&options, &signer.sign(&claims())), Some(JwtRefusal::UnknownKey));
}

#[tokio::test(start_paused = true)]
async fn an_unknown_key_is_waited_for_and_a_known_one_is_not() {
    let (keys, mut feed) = JwtKeys::new("test");
    let (old, new) = (TestSigner::ed25519("old"), TestSigner::ed25519("new"));
    let options = options(keys);
    feed.replace(old.key_set());
    tokio::time::advance(Duration::from_secs(3600)).await;
    let begun = tokio::time::Instant::now();
    let token = old.sign(&claims());
    await_key(&token, std::iter::once(&options)).await;
    let foreign = old.sign(&claims_with(&json!({ "iss": "https://other.example" })));
    for token in [foreign.as_str(), "a.b.c", &new.sign_with(JwtAlgorithm::EdDsa, &json!({}))] {
        await_key(token, std::iter::once(&options)).await;
    }
    assert_eq!(begun.elapsed(), Duration::ZERO, "none of them waits");
    let token = new.sign(&claims());
    assert_eq!(refusal(&options, &token), Some(JwtRefusal::UnknownKey));
    let reads = async {
        assert!(feed.wait_requested().await);
        tokio::time::sleep(Duration::from_secs(1)).await;
        feed.replace(new.key_set());
    };
    tokio::join!(await_key(&token, std::iter::once(&options)), reads);
    assert!(begun.elapsed() >= Duration::from_secs(1), "it waited for the reading");
    assert_eq!(refusal(&options, &token), None);
}

#[test]
fn a_refusal_shows_nothing_of_the_token_or_the_rules() {
    for refusal in [
        JwtRefusal::Length,
        JwtRefusal::Malformed,
        JwtRefusal::Issuer,
        JwtRefusal::Algorithm,
        JwtRefusal::Signature,
        JwtRefusal::UnknownKey,
        JwtRefusal::NoExpiry,
        JwtRefusal::Expired,
        JwtRefusal::NotYetValid,
        JwtRefusal::NoSubject,
        JwtRefusal::Audience,
        JwtRefusal::Claims,
    ] {
        let status = Status::from(refusal);
        assert_eq!(status.code(), tonic::Code::Unauthenticated, "{status}");
        assert!(status.message().contains("JWT"), "{status}");
    }
}
