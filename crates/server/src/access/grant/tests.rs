use laredo_engine::{HashKey, ValueMask};
use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::access::pattern::TablePattern;

fn subjects(names: &[&str]) -> GrantSubjects {
    GrantSubjects { identities: names.iter().map(|name| (*name).to_owned()).collect(), claims: BTreeMap::new() }
}

fn identity(entry: &str, claims: Json) -> Identity {
    let claims = claims.as_object().cloned().unwrap();
    Identity { entry: entry.to_owned(), name: entry.to_owned(), claims, expires_at: None }
}

fn reader(names: &[&str], tables: &[&str], rows: Vec<RowRule>) -> ReaderGrant {
    let tables = tables.iter().map(|pattern| pattern.parse().unwrap()).collect();
    let (hidden_columns, masked_columns) = (Vec::new(), Vec::new());
    ReaderGrant { subjects: subjects(names), tables, rows, hidden_columns, masked_columns }
}

fn of_tenant() -> RowRule {
    RowRule { field: "tenant_id".to_owned(), test: RowTest::EqualsClaim("tenant".to_owned()) }
}

fn hiding(columns: &[&str]) -> ColumnRules {
    ColumnRules::new(columns.iter().map(|column| (*column).to_owned()).collect(), Vec::new())
}

fn masking(masked: &[(&str, CellReplacement)]) -> ColumnRules {
    let masked = masked.iter().map(|(column, mask)| ((*column).to_owned(), mask.clone()));
    ColumnRules::new(Vec::new(), masked.collect())
}

fn fixed(text: &str) -> CellReplacement {
    CellReplacement::Mask(ValueMask::Fixed(text.to_owned()))
}

fn hash(key: &[u8]) -> CellReplacement {
    CellReplacement::Hash(HashKey::new(key).unwrap())
}

fn orders() -> TableName {
    TableName::new("public", "orders")
}

#[test]
fn a_claim_becomes_a_condition_and_a_missing_one_denies() {
    let grants = AccessGrants { readers: vec![reader(&["a"], &["*"], vec![of_tenant()])], ..AccessGrants::default() };
    let condition = |claims: Json| {
        grants.scope(&identity("a", claims), &orders()).map(|scope| {
            let [predicate] = scope.predicates.as_slice() else { panic!("one rule, one predicate") };
            assert_eq!(predicate.field, "tenant_id");
            predicate.test.clone()
        })
    };
    let text = |text: &str| Value::String(text.to_owned());
    assert_eq!(condition(json!({ "tenant": "acme" })), Ok(MatchCondition::Equals(text("acme"))));
    assert_eq!(condition(json!({ "tenant": "" })), Ok(MatchCondition::Equals(text(""))));
    assert_eq!(
        condition(json!({ "tenant": 9_007_199_254_740_993_i64 })),
        Ok(MatchCondition::Equals(text("9007199254740993"))),
        "no digit is lost"
    );
    assert_eq!(condition(json!({ "tenant": true })), Ok(MatchCondition::Equals(Value::Bool(true))));
    assert_eq!(condition(json!({ "tenant": ["a", 2] })), Ok(MatchCondition::In(vec![text("a"), text("2")])));
    let denied = Err(ScopeDenial::Claim("tenant".to_owned()));
    for claims in [
        json!({}),
        json!({ "tenant": null }),
        json!({ "tenant": [] }),
        json!({ "tenant": [null] }),
        json!({ "tenant": ["a", ["b"]] }),
        json!({ "tenant": { "id": "a" } }),
    ] {
        assert_eq!(condition(claims.clone()), denied, "{claims}");
    }
}

#[test]
fn an_empty_claim_is_no_prefix() {
    let rule = RowRule { field: "path".to_owned(), test: RowTest::BeginsWithClaim("home".to_owned()) };
    let grants = AccessGrants { readers: vec![reader(&["a"], &["*"], vec![rule])], ..AccessGrants::default() };
    let scope = |claims: Json| grants.scope(&identity("a", claims), &orders());
    let prefix = scope(json!({ "home": "/a/" })).unwrap().predicates[0].test.clone();
    assert_eq!(prefix, MatchCondition::Prefix("/a/".to_owned()));
    for claims in [json!({}), json!({ "home": "" }), json!({ "home": 7 }), json!({ "home": ["/a/"] })] {
        assert_eq!(scope(claims.clone()), Err(ScopeDenial::Claim("home".to_owned())), "{claims}");
    }
}

#[test]
fn the_first_grant_that_fits_decides() {
    let grants = AccessGrants {
        readers: vec![
            reader(&["b"], &["*"], vec![]),
            reader(&["a"], &["private.*"], vec![]),
            reader(&["a", "b"], &["public.*"], vec![of_tenant()]),
            reader(&["a"], &["*"], vec![]),
        ],
        ..AccessGrants::default()
    };
    let scope = |schema: &str, name: &str| {
        grants.scope(&identity(name, json!({ "tenant": "t" })), &TableName::new(schema, "orders"))
    };
    assert!(scope("private", "a").unwrap().is_whole());
    assert_eq!(scope("public", "a").unwrap().predicates.len(), 1, "the last grant adds no rows");
    assert!(scope("other", "a").unwrap().is_whole());
    assert!(scope("public", "b").unwrap().is_whole());
    assert_eq!(scope("public", "c"), Err(ScopeDenial::NoGrant));
}

#[test]
fn a_grant_may_need_claims() {
    let subjects =
        GrantSubjects { claims: BTreeMap::from([("groups".to_owned(), "ops".to_owned())]), ..subjects(&["people"]) };
    let grants = AccessGrants {
        operators: vec![OperatorGrant { subjects: subjects.clone(), orders: vec!["ReloadTable".to_owned()] }],
        observers: vec![subjects],
        ..AccessGrants::default()
    };
    let (ops, guest) = (identity("people", json!({ "groups": ["ops"] })), identity("people", json!({})));
    let other = identity("robots", json!({ "groups": "ops" }));
    assert!(grants.orders(&ops, "ReloadTable") && grants.observes(&ops));
    assert!(!grants.orders(&ops, "ResetSource") && !grants.orders(&ops, "") && !grants.reads(&ops));
    for identity in [guest, other] {
        assert!(!grants.orders(&identity, "ReloadTable") && !grants.observes(&identity), "{identity:?}");
    }
}

#[test]
fn a_fingerprint_is_of_the_rows_and_the_columns() {
    let scope = |tenant: &str, hidden: &[&str]| RowScope {
        predicates: vec![Predicate {
            field: "tenant_id".to_owned(),
            test: MatchCondition::Equals(Value::String(tenant.to_owned())),
        }],
        columns: hiding(hidden),
        is_ruled: true,
    };
    assert_eq!(RowScope::default().fingerprint(), "");
    assert_eq!(scope("a", &[]).fingerprint(), scope("a", &[]).fingerprint());
    let all = [scope("a", &[]), scope("b", &[]), scope("a", &["x"]), scope("a", &["x", "y"])].map(|s| s.fingerprint());
    for (i, one) in all.iter().enumerate() {
        assert!(one.len() == 16 && one.bytes().all(|byte| byte.is_ascii_hexdigit()), "{one}");
        assert!(!all[..i].contains(one), "{one}");
    }
    assert_eq!(all[0], "fd73a4f4de4fba43", "other servers compare it, so it must not change");
}

#[test]
fn a_fingerprint_is_of_the_masks_too() {
    let partial = |keep_last| CellReplacement::Mask(ValueMask::Partial { keep_first: 1, keep_last, with: '*' });
    let (one_key, other_key) = (hash(b"0123456789abcdef"), hash(b"0123456789abcdeg"));
    let columns = [
        ColumnRules::default(),
        hiding(&["mail"]),
        masking(&[("mail", fixed("x"))]),
        masking(&[("mail", fixed("y"))]),
        masking(&[("phone", fixed("x"))]),
        masking(&[("mail", partial(0))]),
        masking(&[("mail", partial(1))]),
        masking(&[("mail", one_key.clone())]),
        masking(&[("mail", other_key)]),
        masking(&[("mail", one_key.clone()), ("phone", fixed("x"))]),
    ];
    let fingerprint =
        |columns: &ColumnRules| RowScope { columns: columns.clone(), ..RowScope::default() }.fingerprint();
    let all: Vec<String> = columns.iter().map(fingerprint).collect();
    for (i, one) in all.iter().enumerate() {
        assert!(all[..i].iter().all(|other| other != one), "{all:?}");
    }
    let turned = masking(&[("phone", fixed("x")), ("mail", one_key)]);
    assert_eq!(fingerprint(&turned), all[9], "the order does not count");
    assert_eq!(all[7], "098e719beef8aa8b", "other servers compare it, so it must not change");
    let masked = RowScope { columns: columns[2].clone(), ..RowScope::default() };
    assert!(!masked.is_whole(), "a checksum would be of other rows");
}

#[test]
fn the_first_mask_of_a_column_is_used_and_a_hidden_column_is_not_masked() {
    let masked = vec![("b".to_owned(), fixed("1")), ("a".to_owned(), fixed("2")), ("b".to_owned(), fixed("3"))];
    let rules = ColumnRules::new(vec!["a".to_owned(), "a".to_owned()], masked);
    assert_eq!(rules.hidden(), ["a"]);
    assert_eq!(rules.masked(), [("b".to_owned(), fixed("1"))]);
    assert!(rules.hides("a") && rules.mask_of("a").is_none() && rules.mask_of("b").is_some());
}

#[test]
fn the_fingerprint_travels_in_the_names_of_journals_and_snapshots() {
    let scope = RowScope { columns: hiding(&["x"]), ..RowScope::default() };
    let instance = InstanceId("abc.7".to_owned());
    assert_eq!(RowScope::default().name_instance(&instance), instance);
    let named = scope.name_instance(&instance);
    let definition = laredo_core::DefinitionVersion(42);
    for (sent, own) in [
        (named.0.clone(), instance.0.clone()),
        (named.snapshot_id(laredo_core::Sequence(5)), instance.snapshot_id(laredo_core::Sequence(5))),
        (
            named.snapshot_id_under(laredo_core::Sequence(5), definition),
            instance.snapshot_id_under(laredo_core::Sequence(5), definition),
        ),
    ] {
        assert_eq!(split_fingerprint(&sent), (own.clone(), scope.fingerprint()));
        assert_eq!(split_fingerprint(&own), (own, String::new()));
    }
    assert_eq!(split_fingerprint("~"), (String::new(), String::new()));
}

/// Returns identities and grants over few names, so that many of them fit.
fn any_reader() -> impl Strategy<Value = ReaderGrant> {
    let names = prop::sample::subsequence(vec!["a", "b", "c"], 1..=2);
    let tables = prop::sample::subsequence(vec!["public.orders", "public.*", "private.*", "*"], 1..=2);
    let rows = prop::collection::vec(
        prop::sample::select(vec!["tenant", "region"])
            .prop_map(|claim| RowRule { field: format!("{claim}_id"), test: RowTest::EqualsClaim(claim.to_owned()) }),
        0..3,
    );
    let hidden = prop::sample::subsequence(vec!["secret", "mail"], 0..=2);
    (names, tables, rows, hidden).prop_map(|(names, tables, rows, hidden)| ReaderGrant {
        hidden_columns: hidden.into_iter().map(str::to_owned).collect(),
        ..reader(&names, &tables, rows)
    })
}

fn any_identity() -> impl Strategy<Value = Identity> {
    let claim = prop::option::of(prop::sample::select(vec![json!("x"), json!(7), json!(["x", "y"]), json!(null)]));
    (prop::sample::select(vec!["a", "b", "c", "d"]), claim.clone(), claim).prop_map(|(entry, tenant, region)| {
        let claims = [("tenant", tenant), ("region", region)].into_iter();
        let claims = claims.filter_map(|(name, claim)| Some((name.to_owned(), claim?))).collect();
        identity(entry, Json::Object(claims))
    })
}

fn any_table() -> impl Strategy<Value = TableName> {
    prop::sample::select(vec!["public.orders", "public.users", "private.orders", "other.t"])
        .prop_map(|name| name.parse().unwrap())
}

proptest! {
    #[test]
    fn rows_are_granted_only_by_the_first_grant_that_fits_with_all_of_its_rules(
        readers in prop::collection::vec(any_reader(), 0..5),
        identity in any_identity(),
        table in any_table(),
    ) {
        let grants = AccessGrants { readers: readers.clone(), ..AccessGrants::default() };
        let fits = |grant: &&ReaderGrant| {
            grant.subjects.identities.contains(&identity.entry)
                && grant.tables.iter().any(|pattern: &TablePattern| pattern.matches(&table))
        };
        match (grants.scope(&identity, &table), readers.iter().find(fits)) {
            (Err(ScopeDenial::NoGrant), None) => {}
            (Err(ScopeDenial::Claim(claim)), Some(grant)) => {
                let needs = grant.rows.iter().any(|rule| rule.test == RowTest::EqualsClaim(claim.clone()));
                prop_assert!(needs && identity.claim(&claim).is_none_or(Json::is_null), "{claim}");
            }
            (Ok(scope), Some(grant)) => {
                let fields = |names: Vec<String>| names;
                prop_assert_eq!(
                    fields(scope.predicates.iter().map(|p| p.field.clone()).collect()),
                    fields(grant.rows.iter().map(|rule| rule.field.clone()).collect())
                );
                prop_assert_eq!(scope.columns.hidden().len(), grant.hidden_columns.len());
                prop_assert!(grants.reads(&identity));
            }
            (scope, grant) => prop_assert!(false, "{scope:?} by {grant:?}"),
        }
    }

    #[test]
    fn a_later_grant_changes_nothing_of_what_an_earlier_one_decides(
        readers in prop::collection::vec(any_reader(), 1..5),
        later in any_reader(),
        identity in any_identity(),
        table in any_table(),
    ) {
        let before = AccessGrants { readers: readers.clone(), ..AccessGrants::default() };
        let after = AccessGrants { readers: readers.into_iter().chain([later]).collect(), ..AccessGrants::default() };
        let scope = before.scope(&identity, &table);
        if scope != Err(ScopeDenial::NoGrant) {
            prop_assert_eq!(after.scope(&identity, &table), scope);
        }
    }

    #[test]
    fn an_identity_without_grants_may_do_nothing(
        readers in prop::collection::vec(any_reader(), 0..5),
        table in any_table(),
        order in "[A-Za-z*]{0,12}",
    ) {
        let operators = vec![OperatorGrant { subjects: subjects(&["a"]), orders: vec!["*".to_owned()] }];
        let grants = AccessGrants { readers, operators, observers: vec![subjects(&["b"])] };
        let stranger = identity("d", json!({ "tenant": "x", "region": "x" }));
        prop_assert!(!grants.reads(&stranger) && !grants.orders(&stranger, &order) && !grants.observes(&stranger));
        prop_assert_eq!(grants.scope(&stranger, &table), Err(ScopeDenial::NoGrant));
    }
}
