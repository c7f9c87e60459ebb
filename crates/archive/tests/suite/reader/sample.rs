//! An archive of two epochs that the writer wrote, and that tests then damage.

use std::path::{Path, PathBuf};

use laredo_archive::{Archive, ArchivePoint, ArchiveReadError, ArtifactFormat, MANIFEST_NAME, ReadProgress};
use laredo_core::{Lsn, TableState, Tuple};
use laredo_values::project_row;
use serde_json::{Map, Value};

use crate::scene::{self, TABLE, TestTableHistory, begin, local, sorted};

pub(crate) struct SampleArchive {
    pub(crate) history: TestTableHistory,
    folder: tempfile::TempDir,
}

impl SampleArchive {
    /// Writes a base, five diffs with every kind of change, another base, and two diffs.
    pub(crate) async fn written(formats: &[&str]) -> SampleArchive {
        let formats: Vec<ArtifactFormat> = formats.iter().map(|id| id.parse().unwrap()).collect();
        let folder = tempfile::tempdir().unwrap();
        let mut history = TestTableHistory::new();
        let mut options = scene::options("w");
        (options.snapshot_formats, options.diff_formats) = (formats.clone(), formats);
        let archive = local(&folder.path().join("archive"));
        let writer = begin(options, vec![archive], folder.path(), &history).await.unwrap();
        writer.head(history.position).await;
        for number in [0, 1, 2, 4, 5, 6, 10] {
            if number == 6 {
                writer.handle.snapshot().await.unwrap();
            }
            writer.send_transaction(history.something(number));
            writer.head(history.position).await;
        }
        writer.stop().await;
        let sample = SampleArchive { history, folder };
        assert_eq!(sample.faults().await, Vec::<String>::new());
        sample
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.folder.path().join("archive")
    }

    pub(crate) fn read(&self, object: &str) -> Vec<u8> {
        std::fs::read(self.path().join(object)).unwrap()
    }

    pub(crate) fn write(&self, object: &str, bytes: &[u8]) {
        // Artifacts are hard links to their staged files. So the name gets a new file, as with most
        // tools that edit a file.
        let path = self.path().join(object);
        let _ = std::fs::remove_file(&path);
        std::fs::write(path, bytes).unwrap();
    }

    pub(crate) fn uri(&self, object: &str) -> String {
        uri(&self.path(), object)
    }

    pub(crate) fn manifest(&self) -> Value {
        serde_json::from_slice(&self.read(MANIFEST_NAME)).unwrap()
    }

    pub(crate) fn set_manifest(&self, manifest: &Value) {
        self.write(MANIFEST_NAME, manifest.to_string().as_bytes());
    }

    /// Gives the newest epoch of the sample another number.
    pub(crate) fn renumber(&self, epoch: u64) {
        let mut manifest = self.manifest();
        manifest["epoch"] = epoch.into();
        for artifact in manifest["artifacts"].as_array_mut().unwrap() {
            if artifact["epoch"] == 2 {
                artifact["epoch"] = epoch.into();
            }
        }
        self.set_manifest(&manifest);
        std::fs::rename(self.path().join("epoch=2"), self.path().join(format!("epoch={epoch}"))).unwrap();
    }

    /// Returns the objects in the order of their artifacts, each with the end of its artifact.
    pub(crate) fn objects(&self) -> Vec<(String, Lsn)> {
        let manifest = self.manifest();
        let of = |artifact: &Value| -> Vec<(String, Lsn)> {
            let formats = artifact["formats"].as_object().unwrap().values();
            let named = formats.map(|stored| stored["uri"].as_str().unwrap().to_owned());
            let end: Lsn = artifact["to_position"].as_str().unwrap().parse().unwrap();
            named.map(|uri| (uri[uri.find("epoch=").unwrap()..].to_owned(), end)).collect()
        };
        manifest["artifacts"].as_array().unwrap().iter().flat_map(of).collect()
    }

    /// Returns the faults that a verification finds.
    pub(crate) async fn faults(&self) -> Vec<String> {
        let archive = match self.open().await {
            Ok(archive) => archive,
            Err(error) => return vec![error.to_string()],
        };
        let mut faults = Vec::new();
        archive.verify(&ReadProgress::default(), |damage| faults.push(damage.to_string())).await;
        faults
    }

    pub(crate) async fn rebuilt(&self, at: ArchivePoint) -> Result<Vec<Tuple>, ArchiveReadError> {
        let rebuilt = self.open().await?.rebuild(at, &ReadProgress::default()).await?;
        Ok(sorted(&rebuilt.table))
    }

    pub(crate) async fn open(&self) -> Result<Archive, ArchiveReadError> {
        Archive::open(local(&self.path()), Some(TABLE)).await
    }
}

pub(crate) fn uri(folder: &Path, object: &str) -> String {
    format!("file://{}", folder.join(object).display())
}

/// Returns a table's rows as JSON, in a fixed order.
pub(crate) fn shown(table: &TableState) -> Vec<Map<String, Value>> {
    let row = |row: &Tuple| -> Map<String, Value> {
        let fields = project_row(table.schema(), row.as_ref()).unwrap();
        fields.into_iter().map(|(name, value)| (name.to_owned(), value.to_json())).collect()
    };
    let mut rows: Vec<_> = table.rows().map(row).collect();
    rows.sort_by_key(|row| row["id"].as_i64());
    rows
}
