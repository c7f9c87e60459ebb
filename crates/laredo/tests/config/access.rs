//! Refused access rules and their messages.

use super::{MINIMAL, load, problems};

#[test]
fn access_names_what_exists_and_what_can_be_granted() {
    let hash = "00".repeat(32);
    let access =
        |identities: &str, rest: &str| format!("{MINIMAL}\naccess {{ identities {{ {identities} }}\n{rest} }}");
    let ok = format!("a {{ tokens = [{{ sha256 = \"{hash}\" }}] }}");
    let wrong = access("a { tokens = [{ sha256 = laredo_0123456789 }] }", "");
    for (identities, rest, error) in [
        ("", "", "access.identities: there is no identity, so every call would be refused; name at least one"),
        ("a { }", "", "access.identities.a.tokens: nothing proves this identity; name a token, a certificate, or JWTs"),
        (
            "a { tokens = [{ sha256 = laredo_0123456789 }] }",
            "",
            "access.identities.a.tokens[0].sha256: expected the SHA-256 of a token as 64 hexadecimal digits",
        ),
        (
            "a { certificates = [\"*\"] }",
            "",
            "access.identities: an identity has certificates, but the server asks clients for none; set grpc.tls.enabled",
        ),
        (
            &ok,
            "observers = [{ identities = [aa] }]",
            "access.observers[0].identities[0]: access.identities has no \"aa\" (there are a)",
        ),
        (
            &ok,
            "operators = [{ identities = [a], orders = [reloadtable] }]",
            "access.operators[0].orders[0]: expected the name of an order of the OAM service, such as ReloadTable, or *",
        ),
        (
            &ok,
            "readers = [{ identities = [a], tables = [] }]",
            "access.readers[0].tables: is empty, so the grant is for nothing; name at least one, or remove the grant",
        ),
        (
            &ok,
            "readers = [{ identities = [a], tables = [orders] }]",
            "access.readers[0].tables[0]: expected SCHEMA.TABLE, in which * matches any characters, or * for all tables",
        ),
        (
            &ok,
            "readers = [{ identities = [a], tables = [\"*\"]
                rows = [{ type = field-equals, field = t, value = \"x${claims.t}\" }] }]",
            "access.readers[0].rows[0].value: a claim is the whole value; write \"${claims.NAME}\", in quotes and with nothing",
        ),
        (
            &format!("{ok}, b {{ tokens = [{{ sha256 = \"{hash}\" }}] }}"),
            "",
            "access.identities: a and b have the same token; give each its own",
        ),
    ] {
        let found = problems(&access(identities, rest));
        let is_reported = |found: &String| found.split_once(": ").is_some_and(|(_, text)| text.starts_with(error));
        assert!(found.iter().any(is_reported), "{error}: {found:#?}");
        assert!(found.iter().all(|problem| problem.starts_with("laredo.conf:")), "{found:#?}");
    }
    assert!(!problems(&wrong).join("").contains("0123456789"), "a token is not printed: {:?}", problems(&wrong));
    assert!(load(&access(&ok, "")).is_ok(), "an identity may have no grants");
}

#[test]
fn a_grant_masks_each_column_once_and_has_claims_in_its_conditions_alone() {
    let hash = "00".repeat(32);
    let grant = |keys: &str| {
        format!(
            "{MINIMAL}\naccess {{ identities {{ a {{ tokens = [{{ sha256 = \"{hash}\" }}] }} }}
             readers = [{{ identities = [a], tables = [\"*\"], {keys} }}] }}"
        )
    };
    for (keys, error) in [
        (
            "mask = [{ type = drop-fields, fields = [a] }]",
            "mask[0].type: \"drop-fields\" is not a mask type of this version; expected hash or mask",
        ),
        ("mask = [{ type = mask, value = x }]", "mask[0].fields: is required"),
        ("mask = [{ type = mask, fields = [a] }]", "mask[0].value: is required, unless keep_first, keep_last or with"),
        ("mask = [{ type = hash, fields = [a] }]", "mask[0].key: is required, unless key_file is given"),
        (
            "mask = [{ type = hash, fields = [a], key = short }]",
            "mask[0].key: the key has 5 bytes and needs at least 16",
        ),
        ("mask = [{ type = mask, fields = [a, b, a], value = x }]", "mask[0].fields: names a twice"),
        (
            "mask = [{ type = mask, fields = [a], value = x }, { type = mask, fields = [b, a], keep_last = 2 }]",
            "mask[1].fields: names a, which an earlier mask replaces already",
        ),
        (
            "hide = [a], mask = [{ type = mask, fields = [a], value = x }]",
            "mask[0].fields: names a, which hide leaves out; remove it from one of them",
        ),
        ("hide = [\"${claims.a}\"]", "hide[0]: has ${…} inside quotes, where it is not replaced"),
        (
            "mask = [{ type = mask, fields = [a], value = \"${claims.a}\" }]",
            "mask[0].value: has ${…} inside quotes, where it is not replaced",
        ),
        ("claims { a = \"${claims.a}\" }", "claims.a: has ${…} inside quotes, where it is not replaced"),
    ] {
        let found = problems(&grant(keys));
        assert!(
            found.iter().any(|problem| problem.contains(&format!("access.readers[0].{error}"))),
            "{error}: {found:#?}"
        );
    }
    let rows = "rows = [{ type = field-prefix, field = p, prefix = \"${claims.a}\" }]";
    assert!(load(&grant(rows)).is_ok(), "a claim is the whole prefix");
    let rows = "rows = [{ type = field-prefix, field = p, prefix = \"${claims.a}/\" }]";
    assert!(problems(&grant(rows)).join("").contains("a claim is the whole value"));
    let filters = "filters = [{ type = field-prefix, field = p, prefix = \"${claims.a}\" }]";
    let filters = MINIMAL.replace("type = replication-fanout", &format!("type = replication-fanout, {filters}"));
    assert!(problems(&filters).join("").contains("has ${…} inside quotes"), "a table's filter has no caller");
}

#[test]
fn jwts_have_an_issuer_an_audience_and_one_place_of_keys() {
    let access = |jwt: &str| format!("{MINIMAL}\naccess {{ identities {{ a {{ jwt {{ {jwt} }} }} }} }}");
    let right = "issuer = \"https://i.example\", audiences = [laredo]";
    for (jwt, error) in [
        ("audiences = [laredo]".to_owned(), "jwt.issuer: is required"),
        ("issuer = \"https://i.example\"".to_owned(), "jwt.audiences: is required"),
        (
            "issuer = \"https://i.example\", audiences = []".to_owned(),
            "jwt.audiences: is empty, so no JWT would be accepted",
        ),
        (format!("{right}, algorithms = [HS256]"), "jwt.algorithms[0]: expected RS256, RS384, RS512, PS256"),
        (format!("{right}, algorithms = [none]"), "jwt.algorithms[0]: expected RS256, RS384, RS512, PS256"),
        (format!("{right}, algorithms = []"), "jwt.algorithms: is empty, so no JWT would be accepted"),
        (format!("{right}, subjects = []"), "jwt.subjects: is empty, so no JWT would be accepted"),
        (
            format!("{right}, jwks_url = \"http://i.example/keys\""),
            "jwt.jwks_url: expected an address such as https://",
        ),
        (
            format!("{right}, jwks_file = \"/k\", jwks_url = \"https://i.example/keys\""),
            "jwt.jwks_url: is given as well as jwks_file; keep one of them",
        ),
        (
            format!("{right}, jwks_file = \"/k\", ca_file = \"/ca\""),
            "jwt.ca_file: has a meaning only without jwks_file",
        ),
        (
            "issuer = kubernetes, audiences = [laredo]".to_owned(),
            "jwt.issuer: is not an https:// address, so its keys cannot be found there; set jwks_url or jwks_file",
        ),
        (format!("{right}, leeway = 1h"), "jwt.leeway: expected"),
    ] {
        let found = problems(&access(&jwt));
        let error = format!("access.identities.a.{error}");
        let is_reported = |found: &String| found.split_once(": ").is_some_and(|(_, text)| text.starts_with(&error));
        assert!(found.len() == 1 && is_reported(&found[0]), "{error}: {found:#?}");
    }
    let config = load(&access(right)).expect("keys are found by the issuer");
    let jwt = config.access.expect("it has rules").identities["a"].jwt.clone().expect("it has JWTs");
    assert_eq!((jwt.jwks_file, jwt.jwks_url, jwt.leeway), (None, None, std::time::Duration::from_secs(60)));
}

#[test]
fn optional_certificates_need_an_authority_and_access_rules() {
    let access = format!("access {{ identities {{ a {{ tokens = [{{ sha256 = \"{}\" }}] }} }} }}", "00".repeat(32));
    let tls = |keys: &str| format!("enabled = true, cert_path = c, key_path = k, {keys}");
    let optional = "client_certificates = optional";
    let both = format!("client_ca_path = ca, {optional}");
    for port in ["grpc", "health", "observability.metrics"] {
        let of = |keys: &str, access: &str| format!("{MINIMAL}\n{port}.tls {{ {} }}\n{access}", tls(keys));
        assert!(load(&of(&both, &access)).is_ok(), "{port}");
        assert!(load(&of("client_ca_path = ca, client_certificates = required", "")).is_ok(), "{port}");
        for (keys, access, problem) in [
            (&both[..], "", "without access rules, everyone would be let in without a certificate"),
            (optional, &access, "no client is asked for a certificate; set client_ca_path"),
        ] {
            let found = problems(&of(keys, access));
            let expected = format!("{port}.tls.client_certificates: {problem}");
            assert!(found.len() == 1 && found[0].contains(&expected), "{expected}: {found:?}");
        }
    }
}
