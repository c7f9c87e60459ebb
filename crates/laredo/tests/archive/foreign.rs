//! Archives of other programs on the command line.

use laredo_testkit::{Cluster, ClusterOptions};
use serde_json::{Value, json};

use crate::handmade::HandmadeArchive;
use crate::pipeline::{answer, laredo, refusal};

const LINES: [&str; 3] = [
    r#"{"id":1,"n":12345678901234567890.123,"note":"a"}"#,
    r#"{"id":2,"n":1.50,"note":null}"#,
    r#"{"id":3,"n":"7","note":{"x":[1]}}"#,
];

fn parsed(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn a_key_that_no_manifest_names_is_named_on_the_command_line() {
    let archive = HandmadeArchive::new(&[], 0, "0/046204C8", &LINES);
    let place = archive.place();
    for command in [&["verify", place][..], &["reconstruct", place], &["diff", place, "latest", "latest"]] {
        let said = refusal(command);
        assert!(
            said.contains("does not name the table's columns") && said.contains("--key-fields"),
            "{command:?}: {said}"
        );
    }
    let object = "epoch=1/snapshot-0_046204C8.jsonl";
    for key in [&[][..], &["--key-fields", "id"]] {
        assert!(answer(&[&["ls", place], key].concat()).contains(object));
        assert_eq!(parsed(&answer(&[&["cat", place, object], key].concat())).len(), 3);
    }
    for key in
        [&["--key-fields", "id"][..], &["--key-fields", "note,id"], &["--key-fields", "id", "--key-fields", "note"]]
    {
        assert!(answer(&[&["verify", place], key].concat()).starts_with("whole: 1 artifacts, "));
        let rows = parsed(&answer(&[&["reconstruct", place], key].concat()));
        let mut numbers: Vec<&Value> = rows.iter().map(|row| &row["n"]).collect();
        numbers.sort_by_key(|number| number.to_string());
        assert_eq!(numbers, [&json!("1.50"), &json!("12345678901234567890.123"), &json!("7")]);
        assert_eq!(answer(&[&["diff", place, "latest", "0/46204C8"], key].concat()), "");
    }
    for position in ["0/46204C8", "0/046204C8", "0/046204FF"] {
        assert_eq!(parsed(&answer(&["reconstruct", place, "--key-fields", "id", "--at", position])).len(), 3);
    }
    let (code, out, _) = laredo(&["verify", place, "--key-fields", "nope"]);
    assert_eq!(code, Some(2), "{out}");
}

/// Rows without types are restored into tables whose types are known, with all digits.
#[test]
fn rows_without_types_go_into_a_table_that_has_some() {
    let archive = HandmadeArchive::new(&[], 0, "0/1A2F620", &LINES);
    let cluster = Cluster::start(ClusterOptions::default()).unwrap();
    cluster.psql("CREATE TABLE t (note jsonb, id bigint PRIMARY KEY, n numeric)").unwrap();
    let url = cluster.url("postgres");
    let into = ["reconstruct", archive.place(), "--key-fields", "id", "--postgres", &url, "--table", "public.t"];
    for how in [&[][..], &["--replace"]] {
        answer(&[&into[..], how].concat());
        let rows = cluster.psql("SELECT id, n, note FROM t ORDER BY id").unwrap();
        assert_eq!(rows, "1|12345678901234567890.123|\"a\"\n2|1.50|\n3|7|{\"x\": [1]}");
    }
    let said = refusal(&[&into[..7], &["public.new", "--create"]].concat());
    assert!(said.contains("does not record the types"), "{said}");
}

#[test]
fn a_named_key_has_to_be_the_manifests() {
    let columns = [("id", "bigint", 20), ("n", "numeric", 0), ("note", "jsonb", 3802)];
    let archive = HandmadeArchive::new(&columns, 1, "0/1A2F620", &LINES);
    let rows = parsed(&answer(&["reconstruct", archive.place(), "--key-fields", "id"]));
    let numbers: Vec<&Value> = rows.iter().map(|row| &row["n"]).collect();
    assert_eq!(numbers, [&json!("12345678901234567890.123"), &json!("1.50"), &json!("7")]);
    let said = refusal(&["reconstruct", archive.place(), "--key-fields", "n"]);
    assert!(said.contains("its key is (id); leave --key-fields out"), "{said}");
}
