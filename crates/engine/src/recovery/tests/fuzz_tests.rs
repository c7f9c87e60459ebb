//! The fuzz target of recovery. The checksums of all parts are made right after the mutation, so
//! that the code behind them is reached.

mod journal {
    use laredo_fuzz::{FuzzTarget, outcome};
    use prost::Message;

    use super::super::*;
    use crate::store::{HEAD_BYTES, JournalFileHeader, MegabyteChecksums, PREFIX_BYTES, RecordHead};

    /// The kinds of the parts of an input. Each part has its kind, and its length in two bytes.
    const MANIFEST: u8 = 0;
    const FRAMES: u8 = 1;
    const FOOTER: u8 = 2;
    const HEADER: u8 = 3;
    const RECORD: u8 = 4;
    const FORKS: u8 = 5;

    fn push_part(to: &mut Vec<u8>, kind: u8, part: &[u8]) {
        to.push(kind);
        to.extend_from_slice(&u16::try_from(part.len()).expect("the samples are short").to_be_bytes());
        to.extend_from_slice(part);
    }

    fn parts(mut input: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
        std::iter::from_fn(move || {
            let ([kind, high, low], rest) = input.split_first_chunk::<3>()?;
            let (part, rest) = rest.split_at(usize::from(u16::from_be_bytes([*high, *low])).min(rest.len()));
            input = rest;
            Some((kind % 6, part))
        })
    }

    /// Returns the parts of a folder's files.
    fn parts_of(folder: &Path) -> Vec<u8> {
        let mut out = Vec::new();
        push_part(&mut out, MANIFEST, &fs::read(folder.join("manifest.json")).unwrap());
        let base = fs::read(only_file(folder, "base")).unwrap();
        let (rest, length) = base.split_last_chunk::<8>().unwrap();
        let (frames, footer) = rest.split_at(rest.len() - usize::try_from(u64::from_be_bytes(*length)).unwrap());
        push_part(&mut out, FRAMES, frames);
        push_part(&mut out, FOOTER, &footer[PREFIX_BYTES..]);
        let journal = fs::read(only_file(folder, "journal")).unwrap();
        let (_, length) = crate::store::prefix(&journal).unwrap();
        let (header, mut records) = journal.split_at(PREFIX_BYTES + length);
        push_part(&mut out, HEADER, header);
        while !records.is_empty() {
            let head = RecordHead::decode(records).unwrap();
            let (record, rest) = records.split_at(HEAD_BYTES + head.contents_bytes());
            push_part(&mut out, RECORD, record);
            records = rest;
        }
        out
    }

    /// Returns a header with the right length and checksum.
    fn sealed(header: &[u8]) -> Option<Vec<u8>> {
        let mut bytes = header.to_vec();
        let length = u32::try_from(bytes.len().checked_sub(PREFIX_BYTES)?).ok()?;
        bytes[12..16].copy_from_slice(&length.to_be_bytes());
        let checksum = crc32fast::hash(&[&bytes[..16], &bytes[PREFIX_BYTES..]].concat());
        bytes[16..20].copy_from_slice(&checksum.to_be_bytes());
        Some(bytes)
    }

    /// Returns a record with the right lengths and checksums.
    fn summed(record: &[u8]) -> Vec<u8> {
        let Some((head, contents)) = record.split_first_chunk::<HEAD_BYTES>() else { return record.to_vec() };
        let mut head = *head;
        let checksum = crc32fast::hash(&head[..HEAD_BYTES - 4]);
        head[HEAD_BYTES - 4..].copy_from_slice(&checksum.to_be_bytes());
        let Some(mut decoded) = RecordHead::decode(&head) else { return [&head, contents].concat() };
        decoded.frames = decoded.frames.min(contents.len());
        decoded.olds = contents.len() - decoded.frames;
        decoded.checksum = crc32fast::hash(contents);
        [&decoded.encode(), contents].concat()
    }

    /// Writes the files of an input.
    fn write_folder(input: &[u8], folder: &Path) -> Result<(), String> {
        let (mut frames, mut journals) = (Vec::new(), Vec::new());
        for (kind, part) in parts(input) {
            match kind {
                MANIFEST => fs::write(folder.join("manifest.json"), part).map_err(outcome)?,
                FORKS => fs::write(folder.join("history.json"), part).map_err(outcome)?,
                FRAMES => frames.extend_from_slice(part),
                FOOTER => {
                    let mut footer = BaseFooter::decode(part).map_err(outcome)?;
                    let mut sums = MegabyteChecksums::default();
                    sums.update(&frames);
                    (footer.checksums, footer.bytes) = (sums.finish(), frames.len() as u64);
                    let name = JournalFolder::base_name(Lsn(footer.position));
                    fs::write(folder.join(name), [std::mem::take(&mut frames), footer.ending()].concat())
                        .map_err(outcome)?;
                }
                HEADER => journals.push(sealed(part).ok_or("the header is too short")?),
                _ => journals.last_mut().ok_or("the record has no file")?.extend_from_slice(&summed(part)),
            }
        }
        for (number, journal) in journals.iter().enumerate() {
            let message = journal.get(PREFIX_BYTES..).unwrap_or_default();
            let first = JournalFileHeader::decode(message).map_or(number as u64, |header| header.first_sequence);
            fs::write(folder.join(format!("{first:020}.{JOURNAL}")), journal).map_err(outcome)?;
        }
        Ok(())
    }

    /// Opens a folder, and once more: what was restored is restored again.
    #[test]
    fn any_folder_is_refused_or_restored_the_same_way_twice() {
        let (whole, merged) = (folder(), folder());
        small(whole.path());
        let (journal, mut writer) = begin_journal(merged.path());
        write(&mut writer, &mut StoredRowTexts::new(), &[vec![some(1, "one"), some(2, "two")]]);
        merge_base(&journal, writer.store());
        drop((journal, writer));
        let mut seeds = vec![parts_of(whole.path()), parts_of(merged.path())];
        let forks = br#"{"count":1,"forks":[{"number":1,"common":"0/1F4","abandoned":"0/300","is_certain":true,"reason":"r"}]}"#;
        push_part(&mut seeds[1], FORKS, forks);
        FuzzTarget::new("journal", seeds).length_max(32 << 10).run(|input| {
            let folder = folder();
            write_folder(input, folder.path())?;
            let (store, restored) = with_about(|about| open(folder.path(), about)).map_err(outcome)?;
            let Some(restored) = restored else { return Ok(0) };
            let (head, rows) = (restored.beginning.head, restored.rows.len());
            if let Some(checksum) = head.checksum {
                assert_eq!(restored.rows.checksum(), checksum);
            }
            let checksum = restored.rows.checksum();
            drop((restored, store));
            let (_, again) = with_about(|about| open(folder.path(), about)).expect("it was opened before");
            let again = again.expect("it was restored before");
            assert_eq!((again.rows.checksum(), again.beginning.head.sequence), (checksum, head.sequence));
            Ok(1 + rows as u64)
        });
    }
}
