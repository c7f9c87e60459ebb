//! Archives that are written by hand: a snapshot of lines, as another program could have written
//! it.

use serde_json::{Value, json};
use tempfile::TempDir;

/// An archive of `public.t` with one snapshot.
pub(crate) struct HandmadeArchive(TempDir);

impl HandmadeArchive {
    /// Writes an archive. A column has a name, a type and the type's OID. The first `key` columns
    /// are the key. Without columns, the manifest names none.
    pub(crate) fn new(columns: &[(&str, &str, u32)], key: usize, position: &str, lines: &[&str]) -> HandmadeArchive {
        let folder = tempfile::tempdir().unwrap();
        let object = format!("epoch=1/snapshot-{}.jsonl", position.replace('/', "_"));
        let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
        std::fs::create_dir(folder.path().join("epoch=1")).unwrap();
        std::fs::write(folder.path().join(&object), &text).unwrap();
        let column = |(place, (name, r#type, oid)): (usize, &(&str, &str, u32))| {
            let ordinal = if place < key { place + 1 } else { 0 };
            json!({ "Name": name, "Type": r#type, "Nullable": place >= key, "PrimaryKey": place < key, "OrdinalPosition": place + 1,
                "PrimaryKeyOrdinal": ordinal, "DefaultValue": null, "MaxLength": 0, "TypeOID": oid })
        };
        let at = "2026-05-04T10:12:40Z";
        let mut manifest = json!({
            "manifest_version": 1, "table": "public.t", "epoch": 1, "updated_at": at, "head_position": position,
            "artifacts": [{ "kind": "snapshot", "epoch": 1, "from_position": null, "to_position": position, "created_at": at,
                "row_count": lines.len(),
                "formats": { "jsonl": { "uri": format!("file:///elsewhere/{object}"), "size_bytes": text.len() } } }],
        });
        if !columns.is_empty() {
            manifest["columns"] = Value::from_iter(columns.iter().enumerate().map(column));
        }
        std::fs::write(folder.path().join("manifest.json"), manifest.to_string()).unwrap();
        HandmadeArchive(folder)
    }

    pub(crate) fn place(&self) -> &str {
        self.0.path().to_str().unwrap()
    }
}
