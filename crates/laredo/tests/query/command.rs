//! The command `laredo query`.

use laredo_testkit::clean_command;
use serde_json::{Value, json};

use super::support::server::ServerProcess;
use super::{cluster, start};

/// Runs the command. Returns its exit code, the lines of its output, and its message.
fn query(server: &ServerProcess, arguments: &[&str]) -> (i32, Vec<Value>, String) {
    let mut command = clean_command(env!("CARGO_BIN_EXE_laredo"));
    command.arg("query").args(arguments).args(["--oam", &server.oam_url()]);
    let output = command.output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    (output.status.code().unwrap(), lines, String::from_utf8(output.stderr).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_are_printed_as_json() {
    let cluster = cluster();
    let server = start(&cluster).await;
    let seven = json!({ "color": "green", "id": 7, "name": "item 7", "price": "1.7500000000000000" });
    assert_eq!(query(&server, &["public.item", "7"]), (0, vec![seven.clone()], String::new()));
    assert_eq!(query(&server, &["public.item", "--index", "by_name", "item 7"]).1, std::slice::from_ref(&seven));
    assert_eq!(query(&server, &["public.item", "--index", "by_color", "green"]).1.len(), 167);
    assert_eq!(query(&server, &["public.pair", "9007199254740995", "a3"]).1[0]["note"], "note 3");
    let green = ["public.item", "--where", "color=green"];
    assert_eq!(query(&server, &green).1.len(), 167);
    assert_eq!(query(&server, &[&green[..], &["--where", "id=7"]].concat()).1, [seven]);
    let nulls = cluster.psql("SELECT count(*) FROM item WHERE color IS NULL").unwrap();
    assert_eq!(query(&server, &["public.item", "--where", "color=null"]).1.len().to_string(), nulls);
    assert_eq!(query(&server, &[&green[..], &["--where", "id=8"]].concat()), (1, vec![], String::new()));
    assert_eq!(query(&server, &["public.item", "7000"]), (1, vec![], String::new()));
    assert_eq!(query(&server, &["public.item", "--count"]).1, [json!(500)]);
    cluster.psql("INSERT INTO item SELECT n, 'more ' || n FROM generate_series(1001, 3000) n").unwrap();
    let position = cluster.psql("SELECT pg_current_wal_lsn()").unwrap();
    let (code, rows, _) = query(&server, &["public.item", "--at-least", position.trim()]);
    assert_eq!((code, rows.len()), (0, 2500));
    for (arguments, named) in [
        (&["public.item", "x"][..], "`key_values[0]`"),
        (&["public.item", "7", "--index", "by_size"], "by_color"),
        (&["public.nothing", "7"], "public.nothing"),
        (&["public.item", "--where", "hue=green"], "no column `hue`"),
    ] {
        let (code, rows, message) = query(&server, arguments);
        assert_eq!((code, rows.len()), (2, 0), "{message}");
        assert!(message.contains(named), "{message}");
    }
}
