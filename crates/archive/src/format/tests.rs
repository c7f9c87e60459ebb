use std::collections::BTreeMap;

use laredo_core::{Cell, Column, KeyColumns, TupleBuf};
use proptest::prelude::*;

use super::*;
use crate::net_changes::NetChange;

fn schema(key: &[usize]) -> Arc<Schema> {
    let column = |(name, type_oid, type_name): (&str, u32, &str)| Column {
        name: name.to_owned(),
        type_oid,
        type_modifier: -1,
        type_name: type_name.to_owned(),
        not_null: false,
        is_text: false,
    };
    let columns = [("id", 20, "bigint"), ("name", 25, "text"), ("tags", 1007, "integer[]"), ("data", 3802, "jsonb")];
    Arc::new(Schema::new(columns.map(column).to_vec(), KeyColumns::new(key), BTreeMap::new()))
}

fn row(id: i64, name: Option<&str>) -> Tuple {
    let tags = [0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 23, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 4, 0, 0, 0, 7];
    let name = name.map_or(Cell::Null, |name| Cell::Value(name.as_bytes()));
    let row: TupleBuf =
        [Cell::Value(&id.to_be_bytes()), name, Cell::Value(&tags), Cell::Value(b"\x01{\"a\": [1, null]}")]
            .into_iter()
            .collect();
    row.as_ref().to_tuple()
}

#[test]
fn what_is_written_is_read_back_in_every_format() {
    let schema = schema(&[0]);
    let rows = [row(1, Some("one\n\"é\"")), row(i64::MAX, None), row(-(1 << 53), Some(""))];
    let changes = [
        NetChange::Truncate,
        NetChange::Insert(&rows[0]),
        NetChange::Update { old: &rows[0], new: &rows[1] },
        NetChange::Delete(&rows[2]),
    ];
    let expected = [
        ArchivedChange::Truncate,
        ArchivedChange::Put(rows[0].clone()),
        // A diff by laredo would have a DELETE and an INSERT instead.
        ArchivedChange::Move { from: rows[0].clone(), to: rows[1].clone() },
        ArchivedChange::Delete(rows[2].clone()),
    ];
    for format in ArtifactFormat::ALL {
        let mut writer = ArtifactWriter::new(format, schema.clone(), Vec::new()).unwrap();
        rows.iter().for_each(|row| writer.row(row.as_ref()).unwrap());
        let snapshot = writer.finish().unwrap();
        let mut reader = ArtifactReader::new(format, schema.clone(), snapshot.as_slice()).unwrap();
        let read: Vec<Tuple> = std::iter::from_fn(|| reader.row().unwrap()).collect();
        assert_eq!(read, rows, "{format}");

        let mut writer = ArtifactWriter::new(format, schema.clone(), Vec::new()).unwrap();
        changes.iter().for_each(|change| writer.change(change).unwrap());
        let diff = writer.finish().unwrap();
        let mut reader = ArtifactReader::new(format, schema.clone(), diff.as_slice()).unwrap();
        let read: Vec<ArchivedChange> = std::iter::from_fn(|| reader.change().unwrap()).collect();
        assert_eq!(read, expected, "{format}");

        for cut in 0..diff.len() {
            let mut reader = ArtifactReader::new(format, schema.clone(), &diff[..cut]).unwrap();
            let mut count = 0;
            // A cut between two entries is found by the size in the manifest.
            while let Ok(Some(read)) = reader.change() {
                assert_eq!(read, expected[count], "{format} cut at {cut}");
                count += 1;
            }
            assert!(count < expected.len(), "{format} cut at {cut}");
        }
    }
}

#[test]
fn lines_are_those_of_the_contract() {
    let jsonl = ArtifactFormat::ALL[0];
    let rows = [row(1, Some("a")), row(1_234_567, None)];
    let mut writer = ArtifactWriter::new(jsonl, schema(&[0]), Vec::new()).unwrap();
    writer.row(rows[0].as_ref()).unwrap();
    writer.change(&NetChange::Delete(&rows[1])).unwrap();
    writer.change(&NetChange::Truncate).unwrap();
    let text = String::from_utf8(writer.finish().unwrap()).unwrap();
    let lines: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let row = |id: i64, name: Option<&str>| serde_json::json!({"id": id, "name": name, "tags": [7], "data": {"a": [1, null]}});
    assert_eq!(lines[0], row(1, Some("a")));
    assert_eq!(lines[1], serde_json::json!({"action": "DELETE", "key": "1.234567e+06", "old": row(1_234_567, None)}));
    assert_eq!(lines[2], serde_json::json!({"action": "TRUNCATE", "key": ""}));
    let mut writer = ArtifactWriter::new(jsonl, schema(&[1, 0]), Vec::new()).unwrap();
    writer.change(&NetChange::Insert(&rows[1])).unwrap();
    let text = String::from_utf8(writer.finish().unwrap()).unwrap();
    assert!(text.contains("\"key\":\"[<nil> 1.234567e+06]\""), "{text}");
}

#[test]
fn what_is_no_entry_is_named_by_its_number() {
    let cases: [(&str, &str); 4] = [
        (
            "{\"action\":\"TRUNCATE\"}\n{\"action\":\"INSERT\"}\n",
            "entry 2: the action `INSERT` does not match the entry's rows",
        ),
        ("{\"action\":\"TRUNCATE\"}\nx\n", "entry 2: expected value at line 1 column 1"),
        (
            "{\"action\":\"INSERT\",\"new\":{\"id\":\"x\"}}\n",
            "entry 1: column `id` cannot be \"x\": it is of type bigint, and this is not how a whole number is written",
        ),
        ("{\"action\":\"TRUNCATE\"}", "entry 1: the object ends inside of a line"),
    ];
    for (text, expected) in cases {
        let mut reader = ArtifactReader::new(ArtifactFormat::ALL[0], schema(&[0]), text.as_bytes()).unwrap();
        let error = loop {
            match reader.change() {
                Ok(Some(_)) => {}
                Ok(None) => panic!("{text} is read"),
                Err(error) => break error.to_string(),
            }
        };
        assert_eq!(error, expected);
    }
}

/// Checks that doubles are read back exactly: a neighboring double would be a different row.
#[test]
fn doubles_come_back_to_the_last_bit() {
    let columns =
        [("id", 701, "double precision"), ("narrow", 700, "real")].map(|(name, type_oid, type_name)| Column {
            name: name.to_owned(),
            type_oid,
            type_modifier: -1,
            type_name: type_name.to_owned(),
            not_null: false,
            is_text: false,
        });
    let schema = Arc::new(Schema::new(columns.to_vec(), KeyColumns::new([0]), BTreeMap::new()));
    let doubles = proptest::num::f64::ANY.prop_filter("NaNs are alike", |double| !double.is_nan());
    let singles = proptest::num::f32::ANY.prop_filter("NaNs are alike", |single| !single.is_nan());
    let config = ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() };
    proptest!(config, |(double in doubles, single in singles)| {
        let (double, single) = (double.to_be_bytes(), single.to_be_bytes());
        let row: TupleBuf = [Cell::Value(&double), Cell::Value(&single)].into_iter().collect();
        for format in ArtifactFormat::ALL {
            let mut writer = ArtifactWriter::new(format, schema.clone(), Vec::new()).unwrap();
            writer.row(row.as_ref()).unwrap();
            let bytes = writer.finish().unwrap();
            let read = ArtifactReader::new(format, schema.clone(), bytes.as_slice()).unwrap().row().unwrap().unwrap();
            prop_assert_eq!(read, row.as_ref().to_tuple(), "{}", format);
        }
    });
}

#[test]
fn an_entry_is_shown_in_the_order_of_the_columns() {
    let schema = schema(&[0]);
    let rows = [row(1, Some("a")), row(2, None)];
    let lines = |format: ArtifactFormat| {
        let mut writer = ArtifactWriter::new(format, schema.clone(), Vec::new()).unwrap();
        writer.change(&NetChange::Update { old: &rows[0], new: &rows[1] }).unwrap();
        let bytes = writer.finish().unwrap();
        let mut line = Vec::new();
        ArtifactReader::new(format, schema.clone(), bytes.as_slice())
            .unwrap()
            .push_json_line(ArtifactKind::Diff, &mut line)
            .unwrap();
        (bytes, line)
    };
    let written = lines(ArtifactFormat::JSONL).0;
    for format in ArtifactFormat::ALL {
        assert_eq!(lines(format).1, written, "{format}");
    }
}
