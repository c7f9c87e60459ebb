//! Passwords that come from a file, from a command or from the environment, while servers run.

use std::fs;
use std::path::Path;

use laredo_testkit::{Cluster, clean_command, eventually};

use super::states::{await_state, has_rows, table, two_databases, two_sources};
use crate::support::server::{PATIENCE, ServerProcess};
use crate::support::simple::SimpleClient;

/// Gives the role of the source `db` another password, and ends its sessions.
fn change_password(cluster: &Cluster, password: &str) {
    let change = format!(
        "ALTER ROLE states_b PASSWORD '{password}';
         SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'states_b'"
    );
    cluster.psql(&change).unwrap();
}

fn command_of(script: &str) -> String {
    format!("password_command = [sh, \"-c\", {}]", serde_json::Value::from(script))
}

/// Returns true if no attempt of the source `db` to log in has failed for good.
fn was_never_refused(server: &ServerProcess) -> bool {
    !server.process.output().iter().any(|line| line.contains("is refused until"))
}

async fn has_value(client: &SimpleClient, rows: usize) {
    let has = async || client.state().rows.len() == rows;
    eventually(PATIENCE, has).await.unwrap_or_else(|_| panic!("the client does not come to {rows} rows"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_that_rotates_is_obtained_again_and_clients_stay() {
    let (cluster, url) = two_databases();
    let url = url.replace(":right@", "@");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("password");
    fs::write(&file, "right\n").unwrap();
    for (slot, place) in [
        ("passwords_command", command_of(&format!("cat {}", file.display()))),
        ("passwords_file", format!("password_file = \"{}\"", file.display())),
    ] {
        let rows: usize = cluster.psql_in("other", "SELECT count(*) FROM b").unwrap().parse().unwrap();
        let mut config = two_sources(&cluster, &url).slot(slot);
        config.source.push_str(&format!("\n{place}"));
        let server = config.start().await;
        let client = SimpleClient::start(&server.url(), &table("b"), &["id"], Vec::new());
        has_value(&client, rows).await;
        for round in 1..=3 {
            let password = format!("{slot} {round}");
            fs::write(&file, &password).unwrap();
            change_password(&cluster, &password);
            cluster.psql_in("other", "INSERT INTO b SELECT max(id) + 1 FROM b").unwrap();
            has_value(&client, rows + round).await;
        }
        assert!(was_never_refused(&server), "{:#?}", server.process.output());
        assert_eq!(client.state().snapshots, 1, "the client kept its rows");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_fails_or_hangs_concerns_one_source_until_it_works() {
    let (cluster, url) = two_databases();
    let folder = tempfile::tempdir().unwrap();
    let script = folder.path().join("script");
    let write = |text: &str| fs::write(&script, text).unwrap();
    write("echo 'no credentials' >&2; exit 4");
    let mut config = two_sources(&cluster, &url.replace(":right@", "@"));
    let command = command_of(&format!(". {}", script.display()));
    config.source.push_str(&format!("\n{command}\npassword_timeout = 300ms"));
    let server = config.launch();
    let words = "password_command `sh` ended with exit code 4 (it wrote: no credentials)";
    await_state(&server, "db", "refused", words).await;
    has_rows(&server, &table("a"), 1).await;
    write("sleep 600");
    await_state(&server, "db", "refused", "did not end within 300ms and was stopped; raise password_timeout").await;
    write("echo wrong");
    await_state(&server, "db", "refused", "password authentication failed").await;
    write("echo right");
    has_rows(&server, &table("b"), 1).await;
    server.ready().await;
    let log = server.process.output().join("\n");
    assert!(!log.contains("echo right") && !log.contains(script.to_str().unwrap()), "{log}");
}

/// Runs psql, and the program that creates laredo's event trigger, with the same environment.
/// Returns the exit code of each, and what the latter wrote.
fn both(cluster: &Cluster, url: &str, home: &Path, environment: &[(&str, &str)]) -> (bool, bool, String) {
    let mut psql = clean_command(cluster.bin("psql"));
    psql.args(["-X", "-w", url, "-c", "SELECT 1"]);
    let mut laredo = clean_command(env!("CARGO_BIN_EXE_laredo"));
    laredo.args(["ddl", "install", "--postgres", url]);
    let run = |command: &mut std::process::Command| {
        command.env_remove("PGPASSWORD").env_remove("PGPASSFILE").env("HOME", home).envs(environment.iter().copied());
        command.output().unwrap()
    };
    let (psql, laredo) = (run(&mut psql), run(&mut laredo));
    (psql.status.success(), laredo.status.success(), String::from_utf8_lossy(&laredo.stderr).into_owned())
}

#[test]
fn the_command_line_takes_passwords_from_where_psql_does() {
    let options = laredo_testkit::ClusterOptions { password: Some("geheim".to_owned()), ..Default::default() };
    let cluster = Cluster::start(options).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let home = folder.path();
    let passfile = |name: &str, password: &str, mode: u32| {
        let path = home.join(name);
        fs::write(&path, format!("# a comment\n127.0.0.1:1:*:*:no\n127.0.0.1:*:postgres:postgres:{password}\n"))
            .unwrap();
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let url = cluster.url("postgres").replace(":geheim@", "@");
    let (right, wrong) = (passfile("right", "geheim", 0o600), passfile("wrong", "falsch", 0o600));
    let open = passfile("open", "geheim", 0o644);
    let given = |file: &str| format!("{url}?passfile={file}");
    let no_password = "the server requires a password, and there is none";
    let other_password = "password authentication failed";
    for (url, environment, problem) in [
        (url.clone(), vec![("PGPASSWORD", "geheim")], ""),
        (url.clone(), vec![("PGPASSWORD", "falsch")], other_password),
        (url.clone(), vec![("PGPASSWORD", ""), ("PGPASSFILE", right.as_str())], ""),
        (url.clone(), vec![("PGPASSFILE", right.as_str())], ""),
        (url.clone(), vec![("PGPASSFILE", open.as_str())], no_password),
        (url.clone(), vec![("PGPASSFILE", "/nowhere")], no_password),
        (url.clone(), vec![], no_password),
        (given(&right), vec![], ""),
        (given(&open), vec![], no_password),
        (given(&right), vec![("PGPASSFILE", wrong.as_str())], ""),
        (given(&wrong), vec![("PGPASSFILE", right.as_str())], other_password),
        (given(&right), vec![("PGPASSWORD", "falsch")], other_password),
        (cluster.url("postgres"), vec![("PGPASSWORD", "falsch")], ""),
    ] {
        let (psql, laredo, said) = both(&cluster, &url, home, &environment);
        assert_eq!(laredo, psql, "{url} {environment:?}: {said}");
        assert_eq!(laredo, problem.is_empty(), "{url} {environment:?}: {said}");
        assert!(said.contains(problem) && !said.contains("geheim"), "{url} {environment:?}: {said}");
    }
    passfile(".pgpass", "geheim", 0o600);
    assert_eq!(both(&cluster, &url, home, &[]), (true, true, String::new()));
}
