//! The fuzz target of stored snapshots. Their checksums are made right after the mutation, so that
//! the code behind them is reached.

mod snapshots {
    use laredo_fuzz::{FuzzTarget, outcome};
    use prost::Message;

    use super::super::*;
    use crate::store::{BaseFooter, MegabyteChecksums, PREFIX_BYTES};

    /// Returns the bytes of a snapshot without its checksums, after a byte for the format.
    fn seed(format: SnapshotFormat) -> Vec<u8> {
        let folder = folder();
        let (journal, _writer) = some_journal();
        opened(folder.path(), format).write(&journal, Some(serde_json::json!({ "why": "a test" }))).unwrap();
        let bytes = fs::read(&files(folder.path())[0]).unwrap();
        match format {
            SnapshotFormat::Native => {
                let (rest, length) = bytes.split_last_chunk::<8>().unwrap();
                let at = rest.len() - usize::try_from(u64::from_be_bytes(*length)).unwrap();
                let frames = u16::try_from(at).unwrap().to_be_bytes();
                [&[0], &frames[..], &rest[..at], &rest[at + PREFIX_BYTES..]].concat()
            }
            SnapshotFormat::Jsonl => {
                let text = &bytes[..bytes.len() - 1];
                let last = text.iter().rposition(|byte| *byte == b'\n').unwrap();
                [&[1], &bytes[..=last]].concat()
            }
        }
    }

    fn sums(bytes: &[u8]) -> Vec<u32> {
        let mut sums = MegabyteChecksums::default();
        sums.update(bytes);
        sums.finish()
    }

    /// Returns the bytes of a file, with the right checksums.
    fn file(input: &[u8]) -> Result<(SnapshotFormat, Vec<u8>), String> {
        let (format, rest) = input.split_first().ok_or("it is empty")?;
        if format % 2 == 1 {
            let end = serde_json::json!({ "bytes": rest.len(), "checksums": sums(rest) });
            return Ok((SnapshotFormat::Jsonl, [rest, end.to_string().as_bytes(), b"\n"].concat()));
        }
        let (length, rest) = rest.split_first_chunk::<2>().ok_or("it is short")?;
        let length = usize::from(u16::from_be_bytes(*length));
        let (frames, footer) = rest.split_at_checked(length).ok_or("it is short")?;
        let mut footer = BaseFooter::decode(footer).map_err(outcome)?;
        (footer.checksums, footer.bytes) = (sums(frames), frames.len() as u64);
        Ok((SnapshotFormat::Native, [frames, &footer.ending()].concat()))
    }

    /// Reads a snapshot. Its rows are as many as it states, or it is refused.
    #[test]
    fn any_snapshot_is_refused_or_has_the_rows_that_it_states() {
        let place = folder();
        FuzzTarget::new("snapshots", FORMATS.map(seed).to_vec()).run(|input| {
            let (format, bytes) = file(input)?;
            let path = place.path().join("snapshot");
            fs::write(&path, &bytes).map_err(outcome)?;
            let opened = open::open(&path, format).map_err(outcome)?;
            let info = opened.info(&path, bytes.len() as u64);
            let base = opened.into_base(&path, place.path()).map_err(outcome)?;
            let rows = crate::recovery::rows_of(&base, &Default::default(), &path).map_err(outcome)?;
            assert_eq!((rows.len() as u64, base.rows()), (info.rows, info.rows));
            Ok(info.rows * 2 + u64::from(format == SnapshotFormat::Jsonl))
        });
    }
}
