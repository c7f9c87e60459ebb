//! Configuration mistakes end a strict start with exit code 2 and a message that says what to do,
//! before anything is changed. The program ends at its first check, because only an operator can
//! fix them.

use laredo_testkit::{Cluster, ClusterOptions, ClusterTls, clean_command};

use crate::support::server::PATIENCE;

/// The log line of a server that waits for its database.
const WAITS: &str = "cannot reach the source yet";

/// Runs the server until it ends by itself. Returns its exit code and its output.
pub(crate) async fn run(config: &str, arguments: &[&str]) -> (Option<i32>, String) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("laredo.conf");
    std::fs::write(&file, config).unwrap();
    let mut command = clean_command(env!("CARGO_BIN_EXE_laredo-server"));
    command.arg("--config").arg(&file).args(arguments).env("NO_COLOR", "1");
    let output = tokio::process::Command::from(command).kill_on_drop(true).output();
    let output = tokio::time::timeout(PATIENCE, output).await.expect("it ends by itself").unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    (output.status.code(), said)
}

/// Runs a server that must be refused for each of the expected reasons.
async fn refused(config: &str, expected: &[&str]) {
    let (code, said) = run(config, &["--strict"]).await;
    assert_eq!(code, Some(2), "{config}\n{said}");
    assert!(!said.contains(WAITS), "{said}");
    for expected in expected {
        assert!(said.contains(expected), "{expected} is not in\n{said}");
    }
}

fn config(connection: &str, table: &str, create: bool) -> String {
    config_with(connection, &format!("table = {table}"), create, "")
}

fn config_with(connection: &str, table: &str, create: bool, more: &str) -> String {
    format!(
        "sources {{ db {{ type = postgresql, connection = \"{connection}\", publication {{ name = p, create = {create} }} }} }}
         tables = [{{ source = db, schema = public, {table}, targets = [{{ type = replication-fanout, grpc {{ port = 0 }} }}] }}]
         grpc {{ port = 0 }}, health {{ http_port = 0 }}, observability {{ metrics {{ port = 0 }} }}\n{more}"
    )
}

#[tokio::test]
async fn a_typo_is_shown_in_its_place() {
    let (code, said) = run("sources { db { type = postgresql, conection = x } }\ntables = []\n", &["--check"]).await;
    assert_eq!(code, Some(2), "{said}");
    for expected in ["laredo.conf:1:", "conection", "connection"] {
        assert!(said.contains(expected), "{expected} is not in\n{said}");
    }
}

#[tokio::test]
async fn what_a_table_lacks_is_said_with_the_remedy() {
    let cluster = Cluster::start(ClusterOptions::default()).unwrap();
    let create = "
        CREATE TABLE good (id int PRIMARY KEY);
        CREATE TABLE keyless (a int);
        CREATE TABLE nothing (id int PRIMARY KEY); ALTER TABLE nothing REPLICA IDENTITY NOTHING;
        CREATE TABLE full_row (id int); ALTER TABLE full_row REPLICA IDENTITY FULL;
        CREATE VIEW a_view AS SELECT * FROM good;
        CREATE UNLOGGED TABLE unlogged (id int PRIMARY KEY);
        CREATE TABLE grants (id int PRIMARY KEY, acl aclitem[]);";
    cluster.psql(create).unwrap();
    let url = cluster.url("postgres");
    let cases: [(&str, &[&str]); 9] = [
        ("table = missing", &["public.missing does not exist in database postgres"]),
        ("table = keyless", &["public.keyless has no primary key", "REPLICA IDENTITY FULL and name its key_fields"]),
        ("table = nothing", &["has REPLICA IDENTITY NOTHING", "run ALTER TABLE"]),
        ("table = full_row", &["REPLICA IDENTITY FULL and no primary key", "key_fields = ["]),
        ("table = full_row, key_fields = [no]", &["key_fields names \"no\", which is not one of its columns"]),
        (
            "table = good, key_fields = [no]",
            &["key_fields [no] differ from its replica identity [id]", "omit key_fields"],
        ),
        ("table = a_view", &["public.a_view is a view", "follow the tables below it"]),
        ("table = unlogged", &["public.unlogged is unlogged", "SET LOGGED"]),
        ("table = grants", &["column \"acl\" is of type", "change its type to text"]),
    ];
    for (table, expected) in cases {
        refused(&config_with(&url, table, true, ""), expected).await;
    }
    refused(&config(&url, "good", false), &["publication p does not exist; run CREATE PUBLICATION"]).await;
    let publications = cluster.psql("SELECT count(*) FROM pg_publication").unwrap();
    assert_eq!(publications, "0", "nothing is changed where something is wrong");
}

#[tokio::test]
async fn a_check_that_connects_finds_the_same_and_changes_nothing() {
    let cluster = Cluster::start(ClusterOptions::default()).unwrap();
    cluster.psql("CREATE TABLE good (id int PRIMARY KEY); CREATE TABLE keyless (a int)").unwrap();
    let url = cluster.url("postgres");
    let check = ["--check", "--connect"];
    let expected = "source db can be followed; tables: 1";
    let (code, said) = run(&config(&url, "good", true), &check).await;
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains(expected), "{said}");
    // One source of two is not reached: the other one is reported, too.
    let second = "sources { away { type = postgresql, connection = \"postgresql://u@127.0.0.1:1/d\" } }
        tables += { source = away, schema = public, table = t, targets = [{ type = replication-fanout, grpc { port = 0 } }] }";
    let (code, said) = run(&format!("{}\n{second}", config(&url, "good", true)), &check).await;
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains(expected) && said.contains("error: source away: "), "{said}");
    let (code, said) = run(&format!("{}\n{second}", config(&url, "keyless", true)), &check).await;
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("public.keyless has no primary key") && said.contains("source away: "), "{said}");
    let (code, said) = run(&config(&url, "keyless", true), &["--check"]).await;
    assert_eq!(code, Some(0), "only --connect asks the database: {said}");
    let left =
        cluster.psql("SELECT (SELECT count(*) FROM pg_publication) + (SELECT count(*) FROM pg_replication_slots)");
    assert_eq!(left.unwrap(), "0", "nothing is changed");
}

#[tokio::test]
async fn rights_that_are_missing_are_said_with_the_grant() {
    let cluster = Cluster::start(ClusterOptions::default()).unwrap();
    let create = "
        CREATE TABLE good (id int PRIMARY KEY); CREATE PUBLICATION p FOR TABLE good;
        CREATE TABLE hidden (id int PRIMARY KEY); ALTER TABLE hidden ENABLE ROW LEVEL SECURITY;
        CREATE POLICY few ON hidden USING (id < 10); ALTER PUBLICATION p ADD TABLE hidden;
        CREATE ROLE reader LOGIN; GRANT SELECT ON good TO reader;
        CREATE ROLE replicator LOGIN REPLICATION; GRANT SELECT ON hidden TO replicator;";
    cluster.psql(create).unwrap();
    let as_role = |role: &str| cluster.url("postgres").replace("postgres@", &format!("{role}@"));
    let (reader, replicator) = (as_role("reader"), as_role("replicator"));
    refused(&config(&reader, "good", false), &["role reader may not replicate", "ALTER ROLE", "REPLICATION"]).await;
    refused(&config(&replicator, "good", false), &["public.good cannot be read by this role", "GRANT SELECT ON"]).await;
    refused(&config(&replicator, "hidden", false), &["row-level security would hide rows", "BYPASSRLS"]).await;
}

#[tokio::test]
async fn a_connection_that_cannot_succeed_is_not_tried_again() {
    let cluster =
        Cluster::start(ClusterOptions { password: Some("right".to_owned()), ..ClusterOptions::default() }).unwrap();
    let url = cluster.url("postgres");
    let cases = [
        (url.replace(":right@", ":wrong@"), "password authentication failed"),
        (cluster.url("nowhere"), "database \"nowhere\" does not exist"),
        (format!("{url}?sslmod=disable"), "did you mean `sslmode`?"),
        (format!("{url}?sslmode=perhaps"), "sslmode"),
        (format!("{url}?sslmode=require"), "the server does not offer TLS"),
    ];
    for (connection, expected) in cases {
        refused(&config(&connection, "good", true), &[expected]).await;
    }
    let encrypted =
        Cluster::start(ClusterOptions { tls: Some(ClusterTls::default()), ..ClusterOptions::default() }).unwrap();
    let untrusted = format!("{}?sslmode=verify-full&sslrootcert=/nowhere/ca.pem", encrypted.url("postgres"));
    refused(&config(&untrusted, "good", true), &["/nowhere/ca.pem"]).await;
}

#[tokio::test]
async fn a_database_that_cannot_stream_changes_is_refused() {
    let physical = Cluster::start(ClusterOptions::default().set("wal_level", "replica")).unwrap();
    physical.psql("CREATE TABLE good (id int PRIMARY KEY)").unwrap();
    refused(&config(&physical.url("postgres"), "good", true), &["wal_level is replica", "ALTER SYSTEM SET wal_level"])
        .await;
    let none_free = ClusterOptions::default().set("max_replication_slots", "0").set("max_wal_senders", "0");
    let none_free = Cluster::start(none_free).unwrap();
    none_free.psql("CREATE TABLE good (id int PRIMARY KEY)").unwrap();
    let expected = ["all 0 replication slots are in use", "max_replication_slots = 5", "all 0 walsenders are busy"];
    refused(&config(&none_free.url("postgres"), "good", true), &expected).await;
}

#[tokio::test]
async fn certificates_that_are_none_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("garbage.pem");
    std::fs::write(&file, "-----BEGIN NOTHING-----\n").unwrap();
    let file = file.display();
    let tls = format!(
        "grpc.tls {{ enabled = true, cert_path = \"{file}\", key_path = \"{file}\", client_ca_path = \"{file}\" }}"
    );
    let config = config_with("postgresql://x@127.0.0.1/db", "table = good", true, &tls);
    let of = |key: &str| format!("grpc.tls.{key}: {file}: ");
    refused(&config, &[&of("cert_path"), &of("key_path"), &of("client_ca_path")]).await;
}
