//! Passwords of a real PostgreSQL: where they come from, and the methods that ask for them.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use laredo_postgres::transport::{SqlConnection, TransportError};
use laredo_postgres::{ConnectionOptions, PasswordCommand, PasswordSource, SecretText};
use laredo_testkit::{Cluster, ClusterOptions, ClusterTls};

const ROLES: &str = "SET password_encryption = md5; CREATE ROLE md5 LOGIN PASSWORD 'geheim';
    CREATE ROLE trusted LOGIN; CREATE ROLE clear LOGIN PASSWORD 'geheim';
    SET password_encryption = 'scram-sha-256'; CREATE ROLE scram LOGIN PASSWORD 'geheim'";

/// Starts a cluster with a role for each method.
fn cluster(tls: Option<ClusterTls>) -> Cluster {
    let hba = ["trusted all trust", "clear all password", "md5 all md5", "scram all scram-sha-256"];
    let hba = hba.iter().map(|line| format!("host all {line}")).collect();
    let cluster = Cluster::start(ClusterOptions { hba, tls, ..ClusterOptions::default() }).unwrap();
    cluster.psql(ROLES).unwrap();
    cluster
}

async fn connect(text: &str) -> Result<SqlConnection, TransportError> {
    SqlConnection::connect(&ConnectionOptions::parse(text).unwrap()).await
}

#[tokio::test]
async fn require_auth_allows_only_what_it_names() {
    let cluster = cluster(Some(ClusterTls::default()));
    for (required, allowed) in [
        ("", &["trusted", "clear", "md5", "scram"][..]),
        ("none", &["trusted"]),
        ("password", &["clear"]),
        ("md5", &["md5"]),
        ("scram-sha-256", &["scram"]),
        ("md5,scram-sha-256", &["md5", "scram"]),
        ("none,scram-sha-256", &["trusted", "scram"]),
        ("!none", &["clear", "md5", "scram"]),
        ("!password,!md5", &["trusted", "scram"]),
        ("gss", &[]),
    ] {
        for role in ["trusted", "clear", "md5", "scram"] {
            let text = format!(
                "host=127.0.0.1 port={} user={role} dbname=postgres password=geheim sslmode=require require_auth={required}",
                cluster.port()
            );
            match connect(&text).await {
                Ok(_) => assert!(allowed.contains(&role), "require_auth={required} let {role} in"),
                Err(error) => {
                    let said = error.to_string();
                    assert!(
                        !allowed.contains(&role) && said.contains(&format!("require_auth={required} does not allow"))
                    );
                    assert!(!said.contains("geheim"), "{said}");
                }
            }
        }
    }
}

#[tokio::test]
async fn a_password_in_clear_text_never_goes_over_plain_tcp() {
    let plain = cluster(None);
    let base = format!("host=127.0.0.1 port={} user=clear dbname=postgres password=geheim", plain.port());
    for mode in ["disable", "allow", "prefer"] {
        let said = connect(&format!("{base} sslmode={mode}")).await.unwrap_err().to_string();
        let expected = match mode {
            "allow" => "does not offer TLS",
            _ => "clear text, and the connection is not encrypted; set sslmode=verify-full, or use scram-sha-256",
        };
        assert!(said.contains(expected), "{mode}: {said}");
    }
    let encrypted = cluster(Some(ClusterTls::default()));
    let base = format!("host=127.0.0.1 port={} user=clear dbname=postgres password=geheim", encrypted.port());
    for mode in ["allow", "prefer", "require"] {
        connect(&format!("{base} sslmode={mode}")).await.unwrap_or_else(|error| panic!("{mode}: {error}"));
    }
    connect(&format!("{base} sslmode=disable")).await.unwrap_err();
    connect(&base.replace("geheim", "falsch")).await.unwrap_err();
}

#[tokio::test]
async fn a_password_in_clear_text_may_go_over_a_socket() {
    let mut cluster = cluster(None);
    let hba = cluster.data_dir().join("pg_hba.conf");
    let lines = fs::read_to_string(&hba).unwrap();
    fs::write(&hba, format!("local all clear password\n{lines}")).unwrap();
    cluster.restart().unwrap();
    let base = format!("host={} port={} user=clear dbname=postgres", cluster.socket_dir().display(), cluster.port());
    connect(&format!("{base} password=geheim")).await.unwrap();
    connect(&format!("{base} password=falsch")).await.unwrap_err();
}

/// Returns options for the role `scram` with a command for the password.
fn with_command(cluster: &Cluster, script: &str) -> ConnectionOptions {
    let text = format!("host=127.0.0.1 port={} user=scram dbname=postgres", cluster.port());
    let arguments = ["-c", script].map(SecretText::new);
    let command = PasswordCommand::new("sh", arguments, Duration::from_secs(600), Duration::from_secs(20));
    ConnectionOptions {
        password: PasswordSource::Command(Arc::new(command)),
        ..ConnectionOptions::parse(&text).unwrap()
    }
}

#[tokio::test]
async fn a_file_and_a_command_follow_a_password_that_is_changed() {
    let cluster = cluster(None);
    let folder = tempfile::tempdir().unwrap();
    let (file, runs) = (folder.path().join("password"), folder.path().join("runs"));
    let script = format!("echo run >> {}; cat {}", runs.display(), file.display());
    let by_command = with_command(&cluster, &script);
    let by_file = ConnectionOptions { password: PasswordSource::File(file.clone()), ..by_command.clone() };
    for password in ["geheim", "anders", "noch anders: é'"] {
        fs::write(&file, format!("{password}\n")).unwrap();
        cluster.psql(&format!("ALTER ROLE scram PASSWORD '{}'", password.replace('\'', "''"))).unwrap();
        for options in [&by_file, &by_command, &by_command.clone()] {
            SqlConnection::connect(options).await.unwrap_or_else(|error| panic!("{password}: {error}"));
        }
    }
    assert_eq!(fs::read_to_string(&runs).unwrap().lines().count(), 3, "the command runs once for each password");
}

#[tokio::test]
async fn a_password_that_postgresql_refuses_is_forgotten() {
    let cluster = cluster(None);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("password");
    fs::write(&file, "falsch").unwrap();
    let options = with_command(&cluster, &format!("cat {}", file.display()));
    for _ in 0..2 {
        let error = SqlConnection::connect(&options).await.unwrap_err();
        assert_eq!(error.server().unwrap().code, "28P01");
    }
    fs::write(&file, "geheim").unwrap();
    SqlConnection::connect(&options).await.unwrap();
}

#[tokio::test]
async fn a_place_that_cannot_be_read_is_an_error_of_the_login() {
    let cluster = cluster(None);
    let failing = with_command(&cluster, "echo 'token expired' >&2; exit 7");
    let error = SqlConnection::connect(&failing).await.unwrap_err();
    assert!(!error.is_transient());
    let said = error.to_string();
    assert!(said.contains("cannot log in to PostgreSQL at 127.0.0.1:"), "{said}");
    assert!(said.contains("password_command `sh` ended with exit code 7 (it wrote: token expired)"), "{said}");
    let missing = ConnectionOptions { password: PasswordSource::File("/nowhere/password".into()), ..failing };
    let said = SqlConnection::connect(&missing).await.unwrap_err().to_string();
    assert!(said.contains("password_file /nowhere/password cannot be used: No such file"), "{said}");
}
