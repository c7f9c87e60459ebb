//! The output of `archive diff` for two states between which the table's definition changed.

use serde_json::{Value, json};

use crate::pipeline::{ArchivePipeline, PipelineArchive, answer, manifest};

const TABLE: &str = "CREATE TABLE t (id int PRIMARY KEY, c int, d text); INSERT INTO t VALUES (1, 3, 'a'), (2, 4, NULL), (3, NULL, 'z')";
const ARCHIVE: PipelineArchive<'_> = PipelineArchive { table: "t", formats: &["jsonl"], name: "t" };

/// Returns changes of the definition. Each has the expected lines of the diff across it: action,
/// old, new.
fn migrations() -> [(&'static str, Vec<Value>); 7] {
    let row = |id: i64, c: Value, d: Value| json!({ "id": id, "c": c, "d": d });
    let with = |mut row: Value, name: &str, value: Value| {
        row[name] = value;
        row
    };
    let (one, two, three) =
        (row(1, json!(3), json!("a")), row(2, json!(4), json!(null)), row(3, json!(null), json!("z")));
    [
        (
            "ALTER TABLE t ALTER c TYPE bigint; INSERT INTO t VALUES (4, 5, 'new')",
            vec![json!(["INSERT", null, row(4, json!(5), json!("new"))])],
        ),
        (
            "ALTER TABLE t ALTER id TYPE bigint; UPDATE t SET d = 'b' WHERE id = 1",
            vec![json!(["UPDATE", one, row(1, json!(3), json!("b"))])],
        ),
        (
            "ALTER TABLE t ALTER c TYPE text; DELETE FROM t WHERE id = 3",
            vec![
                json!(["UPDATE", one, row(1, json!("3"), json!("a"))]),
                json!(["UPDATE", two, row(2, json!("4"), json!(null))]),
                json!(["DELETE", three, null]),
            ],
        ),
        (
            "ALTER TABLE t DROP d; UPDATE t SET c = 40 WHERE id = 2",
            vec![
                json!(["UPDATE", one, { "id": 1, "c": 3 }]),
                json!(["UPDATE", two, { "id": 2, "c": 40 }]),
                json!(["UPDATE", three, { "id": 3, "c": null }]),
            ],
        ),
        (
            "ALTER TABLE t ADD e int; UPDATE t SET e = 7 WHERE id = 2",
            vec![json!(["UPDATE", two, with(two.clone(), "e", json!(7))])],
        ),
        (
            "ALTER TABLE t RENAME d TO e; UPDATE t SET c = 1 WHERE id = 2",
            vec![
                json!(["UPDATE", one, { "id": 1, "c": 3, "e": "a" }]),
                json!(["UPDATE", two, { "id": 2, "c": 1, "e": null }]),
                json!(["UPDATE", three, { "id": 3, "c": null, "e": "z" }]),
            ],
        ),
        (
            "DELETE FROM t WHERE id = 3; ALTER TABLE t DROP CONSTRAINT t_pkey; ALTER TABLE t ADD PRIMARY KEY (c); \
             UPDATE t SET d = 'x' WHERE c = 4",
            vec![
                json!(["DELETE", one, null]),
                json!(["DELETE", two, null]),
                json!(["DELETE", three, null]),
                json!(["INSERT", null, one]),
                json!(["INSERT", null, row(2, json!(4), json!("x"))]),
            ],
        ),
    ]
}

/// Returns the action, the old row and the new row of each line, sorted.
fn lines(text: &str) -> Vec<Value> {
    let line = |line: &str| {
        let line: Value = serde_json::from_str(line).unwrap();
        json!([line["action"], line["old"], line["new"]])
    };
    text.lines().map(line).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn old_and_new_values_are_those_that_were_there() {
    for (sql, expected) in migrations() {
        let pipeline = ArchivePipeline::start(TABLE, &[ARCHIVE]).await;
        let archive = pipeline.archive("t");
        let before = manifest(&archive)["head_position"].as_str().unwrap().to_owned();
        pipeline.write(sql).await;
        pipeline.end().await;
        let manifest = manifest(&archive);
        assert!(manifest["epoch"].as_i64().unwrap() > 1, "{sql}: {manifest}");
        let place = archive.to_str().unwrap();
        assert_eq!(lines(&answer(&["diff", place, &before, "latest"])), expected, "{sql}");
        let mut back: Vec<Value> = lines(&answer(&["diff", place, "latest", &before]));
        let reversed = |line: &Value| {
            let action = match line[0].as_str().unwrap() {
                "INSERT" => "DELETE",
                "DELETE" => "INSERT",
                same => same,
            };
            json!([action, line[2], line[1]])
        };
        let mut expected: Vec<Value> = expected.iter().map(reversed).collect();
        back.sort_by_key(Value::to_string);
        expected.sort_by_key(Value::to_string);
        assert_eq!(back, expected, "back: {sql}");
    }
}
