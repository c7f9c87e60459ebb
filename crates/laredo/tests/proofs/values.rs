//! Values mean the same in a filter, in a key and as an amount, in every kind of client.

use std::path::Path;
use std::process::Command;

use laredo_client::{ColumnPredicate, PredicateValue, Replica, ReplicaError};
use laredo_core::TableName;
use laredo_testkit::oracle::{flushed, rows_at_rest};
use laredo_testkit::{Cluster, ClusterOptions, eventually};

use super::bad_input::run;
use crate::support::fleet::{CategoryFilter, ClientPair};
use crate::support::server::{PATIENCE, PATIENT, ServerProcess, ServerProcessConfig};

const TYPES: &str = "
    CREATE EXTENSION citext; CREATE EXTENSION ltree;
    CREATE TYPE mood AS ENUM ('sad', 'glad');
    CREATE DOMAIN code AS char(3);
    CREATE TABLE t (id int PRIMARY KEY, c char(3), d code, u uuid, at timestamptz, day date, n numeric, b boolean, e citext,
        p ltree, m mood, ip inet, a numeric[], r int4range, j jsonb, i interval, h bytea);
    INSERT INTO t VALUES (1, 'DE', 'DE', 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', '2024-01-01Z', '2024-01-01', 1.50, true, 'Foo',
        'Top.A', 'sad', '10.0.0.1', '{1.0}', '[1,5)', '{\"a\": 1.0}', '1 day', '\\x00ff');
    INSERT INTO t VALUES (2);";

fn table(name: &str) -> TableName {
    TableName::new("public", name)
}

async fn serve(cluster: &Cluster, name: &str) -> ServerProcess {
    ServerProcessConfig::new(cluster.url("postgres"), [table(name)]).slot("laredo_values").target(PATIENT).start().await
}

fn replica(server: &ServerProcess, predicate: ColumnPredicate) -> Replica {
    Replica::builder(server.url(), table("t")).filter(predicate).seed(1).start().unwrap()
}

/// Waits until a replica is refused, and returns the reason.
async fn refusal(replica: &Replica) -> String {
    let refused = async || matches!(replica.status().error, Some(ReplicaError::Refused { .. }));
    eventually(PATIENCE, refused).await.unwrap_or_else(|_| panic!("not refused: {:?}", replica.status()));
    replica.status().error.unwrap().to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_in_any_spelling_finds_its_row() {
    let cluster = Cluster::start(ClusterOptions::default()).unwrap();
    cluster.psql(TYPES).unwrap();
    let server = serve(&cluster, "t").await;
    for (column, value) in [
        ("c", PredicateValue::from("DE")),
        ("d", "DE ".into()),
        ("u", "A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11".into()),
        ("at", "2024-01-01T02:00:00+02".into()),
        ("day", "2024-1-1".into()),
        ("n", 1.5.into()),
        ("b", "yes".into()),
        ("e", "fOO".into()),
        ("p", "Top.A".into()),
        ("m", "sad".into()),
        ("ip", "10.0.0.1/32".into()),
        ("a", "{1}".into()),
        ("r", "[1,4]".into()),
        ("j", "{\"a\":1}".into()),
        ("i", "24:00".into()),
        ("h", "AP8=".into()),
    ] {
        let replica = replica(&server, ColumnPredicate::any_of(column, [value]));
        replica.ready(PATIENCE).await.unwrap();
        assert_eq!(replica.view().len(), 1, "{column}");
    }
    for (column, prefix) in [("c", "DE "), ("e", "FO"), ("p", "Top."), ("m", "s")] {
        let replica = replica(&server, ColumnPredicate::prefix(column, prefix));
        replica.ready(PATIENCE).await.unwrap();
        assert_eq!(replica.view().len(), 1, "{column}");
    }
    for (predicate, reason) in [
        (
            ColumnPredicate::equals("u", "x"),
            "`filters[0]` is malformed: column `u` is of type uuid: \"x\" is not one of its values",
        ),
        (ColumnPredicate::equals("at", "2024-01-01"), "a timestamp with its zone (2024-01-31T04:05:06Z)"),
        (ColumnPredicate::equals("m", "m".repeat(64)), "this is not how a label (63 bytes at most) is written"),
        (
            ColumnPredicate::any_of("n", ["1", "one"]),
            "\"one\" is not one of its values: this is not how a number is written",
        ),
        (ColumnPredicate::prefix("day", "2024"), "column `day` is of type date: it is not text"),
    ] {
        let reason_said = refusal(&replica(&server, predicate)).await;
        assert!(reason_said.contains(reason), "{reason_said}");
    }
}

/// `citext` values are equal if `lower()` of them is, which depends on the database's locale.
#[tokio::test(flavor = "multi_thread")]
async fn upper_and_lower_case_are_those_of_the_database() {
    let cluster = Cluster::start(ClusterOptions::default()).unwrap();
    for (database, locale) in [("ascii", "C"), ("unicode", "C.UTF-8")] {
        cluster.psql(&format!("CREATE DATABASE {database} TEMPLATE template0 LOCALE '{locale}'")).unwrap();
        let sql = |sql: &str| cluster.psql_in(database, sql).unwrap();
        sql(
            "CREATE EXTENSION citext; CREATE TABLE t (id int PRIMARY KEY, e citext); INSERT INTO t VALUES (1, 'É'), (2, 'Foo')",
        );
        let config = ServerProcessConfig::new(cluster.url(database), [table("t")]);
        let server = config.slot(&format!("laredo_{database}")).start().await;
        for value in ["é", "É", "fOO"] {
            let replica = replica(&server, ColumnPredicate::equals("e", value));
            replica.ready(PATIENCE).await.unwrap();
            let count = sql(&format!("SELECT count(*) FROM t WHERE e = '{value}'"));
            assert_eq!(replica.view().len().to_string(), count, "{value} in {database}");
        }
    }
}

/// A new label causes no copy. A filter may name it before it exists, and a new client may name it
/// afterwards.
#[tokio::test(flavor = "multi_thread")]
async fn a_filter_finds_a_label_that_was_added_since_the_copy() {
    let cluster = Cluster::start(ClusterOptions::default()).unwrap();
    cluster.psql(TYPES).unwrap();
    let server = serve(&cluster, "t").await;
    let early = replica(&server, ColumnPredicate::equals("m", "mad"));
    let early_prefix = replica(&server, ColumnPredicate::prefix("m", "ma"));
    for replica in [&early, &early_prefix] {
        replica.ready(PATIENCE).await.unwrap();
        assert_eq!(replica.view().len(), 0);
    }
    cluster.psql("ALTER TYPE mood ADD VALUE 'mad'").unwrap();
    cluster.psql("INSERT INTO t (id, m) VALUES (3, 'mad')").unwrap();
    let late = replica(&server, ColumnPredicate::any_of("m", ["mad", "glad"]));
    for replica in [early, early_prefix, late] {
        eventually(PATIENCE, async || replica.view().len() == 1).await.unwrap();
        assert_eq!(replica.status().resyncs, 0);
    }
    assert_eq!(server.metric("laredo_copies_total", &table("t")).await, Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_filter_is_read_again_where_its_column_changes() {
    let cluster = Cluster::start(ClusterOptions::default()).unwrap();
    cluster.psql("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, '5'), (2, 'five')").unwrap();
    let server = serve(&cluster, "t").await;
    let (stays, ends) =
        (replica(&server, ColumnPredicate::equals("v", "5")), replica(&server, ColumnPredicate::equals("v", "five")));
    for replica in [&stays, &ends] {
        replica.ready(PATIENCE).await.unwrap();
        assert_eq!(replica.view().len(), 1);
    }
    cluster
        .psql("DELETE FROM t WHERE id = 2; ALTER TABLE t ALTER v TYPE numeric USING v::numeric; INSERT INTO t VALUES (3, 5.00), (4, 6)")
        .unwrap();
    let both = async || stays.view().len() == 2;
    eventually(PATIENCE, both).await.unwrap();
    let reason = refusal(&ends).await;
    assert!(reason.contains("column `v` is of type numeric: \"five\" is not one of its values"), "{reason}");
    assert_eq!(stays.status().connects, 1, "{:?}", stays.status());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_configured_filter_that_means_nothing_is_refused_before_anything_is_made() {
    let cluster = Cluster::start(ClusterOptions::default()).unwrap();
    cluster.psql(TYPES).unwrap();
    for (filter, reason) in [
        (
            "type = field-equals, field = u, value = x",
            "filters[0]: column `u` is of type uuid: \"x\" is not one of its values",
        ),
        (
            "type = field-equals, field = c, value = true",
            "column `c` is of type character(3): true is not one of its values",
        ),
        ("type = field-equals, field = at, value = \"2024-01-01\"", "a timestamp with its zone"),
        ("type = field-prefix, field = day, prefix = \"2024\"", "column `day` is of type date: it is not text"),
        ("type = field-regex, field = id, pattern = \"1\"", "column `id` is of type integer: it is not text"),
        ("type = field-equals, field = gone, value = 1", "a filter names column `gone`"),
    ] {
        let config = format!(
            "sources {{ db {{ type = postgresql, connection = \"{}\", publication {{ name = p, create = true }} }} }}
             tables = [{{ source = db, schema = public, table = t, targets = [{{ type = replication-fanout, grpc {{ port = 0 }}
                filters = [{{ {filter} }}] }}] }}]
             grpc {{ port = 0 }}, health {{ http_port = 0 }}, observability {{ metrics {{ port = 0 }} }}",
            cluster.url("postgres")
        );
        let (code, said) = run(&config, &["--strict"]).await;
        assert_eq!(code, Some(2), "{said}");
        assert!(said.contains("table public.t: ") && said.contains(reason), "{reason} is not in\n{said}");
    }
    assert_eq!(cluster.psql("SELECT count(*) FROM pg_publication").unwrap(), "0");
}

const KEYS: &str = "
    CREATE TABLE t (k int[] NOT NULL, j jsonb NOT NULL, q tsquery NOT NULL, n int, PRIMARY KEY (k, j, q));
    INSERT INTO t VALUES ('{1}', '5', 'a', 1), ('[5:5]={1}', '5', 'a', 2), ('{1}', '\"5\"', 'a', 3), ('{1}', 'null', 'a', 4),
        ('{1}', '\"null\"', 'a', 5), ('{{1}}', '9007199254740993', 'a', 6), ('{{1}}', '\"9007199254740993\"', 'a', 7),
        ('{1}', '{}', 'a & b & c', 8), ('{1}', '{}', 'a & (b & c)', 9);";

#[tokio::test(flavor = "multi_thread")]
async fn keys_stay_apart_for_clients_of_every_kind() {
    let cluster = Cluster::start(ClusterOptions::default()).unwrap();
    cluster.psql(KEYS).unwrap();
    let server = serve(&cluster, "t").await;
    let pair = ClientPair::start(&server.url(), &table("t"), &["k", "j", "q"], CategoryFilter::All);
    let sql = cluster.connect().await.unwrap();
    for (mark, change) in [
        (100, "UPDATE t SET n = 100 WHERE k = '[5:5]={1}'"),
        (101, "UPDATE t SET n = 101 WHERE j = '\"5\"'; DELETE FROM t WHERE j = '5' AND n = 1"),
        (102, "UPDATE t SET k = '[0:0]={1}', n = 102 WHERE n = 100; UPDATE t SET j = '9007199254740992' WHERE n = 7"),
        (103, "UPDATE t SET n = 103 WHERE q = 'a & (b & c)'; DELETE FROM t WHERE q = 'a & b & c' OR j = 'null'"),
    ] {
        sql.batch_execute(change).await.unwrap();
        pair.reach(flushed(&sql).await.unwrap(), mark).await;
        let rows = rows_at_rest(&sql, &table("t"), pair.key, "true").await.unwrap();
        pair.settle(&rows).await;
        let differences = pair.differences(&rows);
        assert!(differences.is_empty(), "after {change}:\n{differences}");
    }
}

/// Compiles a locale from the system's sources. Returns `None` if that is not possible.
fn make_locale(folder: &Path, name: &str) -> Option<()> {
    let to = folder.join(format!("{name}.utf8"));
    // The program warns, and then exits with an error code.
    Command::new("localedef").args(["-i", name, "-f", "UTF-8"]).arg(&to).output().ok()?;
    to.join("LC_MONETARY").exists().then_some(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_amount_has_the_decimals_that_the_database_gives_it() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    for name in ["ja_JP", "ar_KW"] {
        if make_locale(folder.path(), name).is_none() {
            eprintln!("skipped: localedef has no {name}");
            return;
        }
    }
    let locales = folder.path().to_str().unwrap().to_owned();
    let options = ClusterOptions { environment: vec![("LOCPATH".to_owned(), locales)], ..ClusterOptions::default() };
    let cluster = Cluster::start(options.set("lc_monetary", "ja_JP.utf8")).unwrap();
    cluster
        .psql("CREATE TABLE t (id int PRIMARY KEY, n int, m money, l money[]); INSERT INTO t VALUES (1, 1, 100::money, ARRAY[(-5)::money])")
        .unwrap();
    let server = serve(&cluster, "t").await;
    let pair = ClientPair::start(&server.url(), &table("t"), &["id"], CategoryFilter::All);
    let found = replica(&server, ColumnPredicate::equals("m", "100"));
    found.ready(PATIENCE).await.unwrap();
    assert_eq!(found.view().len(), 1);
    let sql = cluster.connect().await.unwrap();
    // Locales with 0, 3 and 2 decimals. Two decimals are usual.
    for (mark, locale, one_hundred) in [(2, "ja_JP.utf8", "100"), (3, "ar_KW.utf8", "0.100"), (4, "C", "1.00")] {
        cluster.psql(&format!("ALTER SYSTEM SET lc_monetary = '{locale}'")).unwrap();
        cluster.psql("SELECT pg_reload_conf()").unwrap();
        let shown = async || pair.simple.state().rows.values().any(|row| row["m"] == one_hundred);
        eventually(PATIENCE, shown).await.unwrap_or_else(|_| panic!("{:?}", pair.simple.state().rows));
        sql.batch_execute(&format!("INSERT INTO t VALUES ({mark}, {mark}, 250::money, NULL)")).await.unwrap();
        pair.reach(flushed(&sql).await.unwrap(), mark).await;
        let rows = rows_at_rest(&sql, &table("t"), pair.key, "true").await.unwrap();
        pair.settle(&rows).await;
        let differences = pair.differences(&rows);
        assert!(differences.is_empty(), "{locale}:\n{differences}");
        let amount = |id: i32| cluster.psql(&format!("SELECT m::numeric FROM t WHERE id = {id}")).unwrap();
        for id in [1, mark] {
            let key = format!("[{id}]");
            assert_eq!(pair.simple.state().rows[&key]["m"], amount(id).as_str(), "{locale}");
        }
    }
    // The stored amount of 100 yen is 0.100 dinar or 1.00 dollar.
    let none = async || found.view().is_empty();
    eventually(PATIENCE, none).await.unwrap_or_else(|_| panic!("an amount is still 100: {:?}", found.status()));
}
