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

    /// Adds a schema to the snapshot, as laredo's writer does. A column has a name, a type, the
    /// type's OID and its modifier. The first column is the key. `types` are user-defined types.
    pub(crate) fn with_schema(self, columns: &[(&str, &str, u32, i32)], types: &Value) -> HandmadeArchive {
        let column = |(place, (name, r#type, oid, modifier)): (usize, &(&str, &str, u32, i32))| {
            json!({ "name": name, "type_oid": oid, "type_modifier": modifier, "type_name": r#type, "not_null": place == 0,
                "is_text": false })
        };
        let columns_of_schema = Value::from_iter(columns.iter().enumerate().map(column));
        self.edit(|manifest| {
            manifest["artifacts"][0]["schema"] =
                json!({ "columns": columns_of_schema, "key": [columns[0].0], "types": types });
        })
    }

    /// Changes the manifest.
    pub(crate) fn edit(self, edit: impl FnOnce(&mut Value)) -> HandmadeArchive {
        let file = self.0.path().join("manifest.json");
        let mut manifest = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
        edit(&mut manifest);
        std::fs::write(file, manifest.to_string()).unwrap();
        self
    }

    /// Replaces the snapshot by an object in another format. The manifest has its size.
    pub(crate) fn with_object(self, format: &str, extension: &str, bytes: &[u8]) -> HandmadeArchive {
        let object = "epoch=1/snapshot-0_10.".to_owned() + extension;
        std::fs::write(self.0.path().join(&object), bytes).unwrap();
        self.edit(|manifest| {
            manifest["head_position"] = "0/10".into();
            manifest["artifacts"][0]["to_position"] = "0/10".into();
            manifest["artifacts"][0]["formats"] = json!({ format: { "uri": object, "size_bytes": bytes.len() } });
        })
    }

    pub(crate) fn place(&self) -> &str {
        self.0.path().to_str().unwrap()
    }
}
