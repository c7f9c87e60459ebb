//! The fuzz target of local snapshots. The CRC at the end is made right after the mutation.

mod local_snapshot {
    use laredo_fuzz::{FuzzTarget, outcome};

    use super::super::*;

    /// Returns a place where an fsync costs nothing, if possible.
    fn in_memory() -> LocalSnapshotFolder {
        let memory = Path::new("/dev/shm");
        if !memory.is_dir() {
            return LocalSnapshotFolder::new();
        }
        let folder = tempfile::tempdir_in(memory).unwrap();
        let file = LocalSnapshotFile::new(folder.path().join("cache"), request("t"));
        LocalSnapshotFolder { folder, file }
    }

    /// Loads a file. What is loaded is saved and loaded again without a difference.
    #[test]
    fn any_file_is_refused_or_comes_back_after_it_is_saved() {
        let place = in_memory();
        let seed = |texts: &[Option<Vec<u8>>]| {
            place.file.save(&saved(rows(texts))).unwrap();
            let mut bytes = std::fs::read(&place.file.path).unwrap();
            bytes.truncate(bytes.len() - CRC_BYTES as usize);
            bytes
        };
        let seeds = vec![seed(&[]), seed(&[Some(b"a".to_vec()), None, Some(vec![7; 300])])];
        FuzzTarget::new("local_snapshot", seeds).run(|input| {
            let bytes = [input, &crc32fast::hash(input).to_be_bytes()].concat();
            std::fs::write(&place.file.path, bytes).map_err(outcome)?;
            let loaded = place.file.read(&[]).map_err(outcome)?;
            let table = LocalSnapshotRows {
                schema: loaded.table.schema().clone(),
                rows: loaded.table.rows().cloned().collect(),
                checksum: loaded.table.checksum(),
            };
            let saved = ResumableTable { table, resume: loaded.resume.clone(), at_head: loaded.at_head };
            place.file.save(&saved).map_err(outcome)?;
            assert!(is_same(&place.file.read(&[]).expect("it was saved just now"), &saved));
            Ok(saved.table.rows.len() as u64)
        });
    }
}
