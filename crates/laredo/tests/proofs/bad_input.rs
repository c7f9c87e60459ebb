//! What a user can get wrong ends with exit code 2 and a sentence that says what to do, before anything is touched.

use std::process::{Command, Output};

use laredo_testkit::{Cluster, ClusterOptions};

fn run(config: &str, arguments: &[&str]) -> (Option<i32>, String) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("laredo.conf");
    std::fs::write(&file, config).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_laredo-server"));
    command.arg("--config").arg(&file).args(arguments).env("NO_COLOR", "1");
    let Output { status, stderr, stdout } = command.output().unwrap();
    (status.code(), format!("{}{}", String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr)))
}

fn config(connection: &str, table: &str, create: bool) -> String {
    format!(
        "sources {{ db {{ type = postgresql, connection = \"{connection}\", publication {{ name = p, create = {create} }} }} }}
         tables = [{{ source = db, schema = public, table = {table}, targets = [{{ type = replication-fanout, grpc {{ port = 0 }} }}] }}]
         grpc {{ port = 0 }}, health {{ http_port = 0 }}, observability {{ metrics {{ port = 0 }} }}"
    )
}

#[test]
fn a_typo_is_shown_in_its_place() {
    let (code, said) = run("sources { db { type = postgresql, conection = x } }\ntables = []\n", &["--check"]);
    assert_eq!(code, Some(2), "{said}");
    for expected in ["laredo.conf:1:", "conection", "connection"] {
        assert!(said.contains(expected), "{expected} is not in\n{said}");
    }
}

#[test]
fn what_the_database_lacks_is_said_with_the_remedy() {
    let cluster = Cluster::start(ClusterOptions::default()).unwrap();
    cluster.psql("CREATE TABLE keyless (a int); CREATE TABLE good (id int PRIMARY KEY)").unwrap();
    cluster.psql("CREATE ROLE reader LOGIN; GRANT SELECT ON good TO reader").unwrap();
    let url = cluster.url("postgres");
    let reader = url.replace("postgres@", "reader@");
    let cases = [
        (config(&url, "missing", true), vec!["public.missing"]),
        (config(&url, "keyless", true), vec!["keyless", "REPLICA IDENTITY"]),
        (config(&url, "good", false), vec!["CREATE PUBLICATION"]),
        (config(&reader, "good", true), vec!["reader", "REPLICATION"]),
        (config("postgresql://x@127.0.0.1/db?sslmod=disable", "good", true), vec!["sslmod", "sslmode"]),
    ];
    for (config, expected) in cases {
        let (code, said) = run(&config, &[]);
        assert_eq!(code, Some(2), "{said}");
        for expected in expected {
            assert!(said.contains(expected), "{expected} is not in\n{said}");
        }
    }
}

#[test]
fn a_database_that_cannot_stream_changes_is_refused() {
    let cluster = Cluster::start(ClusterOptions::default().set("wal_level", "replica")).unwrap();
    cluster.psql("CREATE TABLE good (id int PRIMARY KEY)").unwrap();
    let (code, said) = run(&config(&cluster.url("postgres"), "good", true), &[]);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("wal_level") && said.contains("ALTER SYSTEM"), "{said}");
}
