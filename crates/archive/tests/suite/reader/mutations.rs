//! Archives with altered bytes. Reading one never panics, and never returns a table that did not
//! exist.

use std::collections::BTreeMap;
use std::io::{Cursor, Read};
use std::sync::{Arc, OnceLock};

use futures::FutureExt as _;
use futures::future::BoxFuture;
use laredo_archive::{
    Archive, ArchivePoint, ArchiveReadError, DestinationError, DestinationReader, MANIFEST_NAME, ManifestTag,
    ReadProgress, VersionedManifest,
};
use laredo_core::Lsn;
use laredo_testkit::is_full;
use proptest::prelude::*;
use serde_json::{Map, Value};

use crate::reader::sample::{SampleArchive, shown};
use crate::scene::TABLE;

type RowObjects = Vec<Map<String, Value>>;

/// The files of the writer, and the rows at each position.
struct WrittenSample {
    files: BTreeMap<String, Vec<u8>>,
    states: BTreeMap<Lsn, RowObjects>,
}

fn written(format: usize) -> &'static WrittenSample {
    static WRITTEN: [OnceLock<WrittenSample>; 4] = [const { OnceLock::new() }; 4];
    WRITTEN[format]
        .get_or_init(|| runtime().block_on(write(["jsonl", "protobuf", "jsonl.zst", "protobuf.zst"][format])))
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap()
}

async fn write(format: &str) -> WrittenSample {
    let sample = SampleArchive::written(&[format]).await;
    let mut files = BTreeMap::from([(MANIFEST_NAME.to_owned(), sample.read(MANIFEST_NAME))]);
    let mut states = BTreeMap::new();
    for (object, position) in sample.objects() {
        let archive = sample.open().await.unwrap();
        let rebuilt = archive.rebuild(ArchivePoint::Position(position), &ReadProgress::default()).await.unwrap();
        states.insert(position, shown(&rebuilt.table));
        files.insert(object.clone(), sample.read(&object));
    }
    WrittenSample { files, states }
}

/// A readable archive in memory.
#[derive(Debug)]
struct MemoryDestination(BTreeMap<String, Vec<u8>>);

impl DestinationReader for MemoryDestination {
    fn name(&self) -> &'static str {
        "memory"
    }

    fn uri(&self, object: &str) -> String {
        object.to_owned()
    }

    fn manifest(&self) -> BoxFuture<'_, Result<Option<VersionedManifest>, DestinationError>> {
        let there = self
            .0
            .get(MANIFEST_NAME)
            .map(|bytes| VersionedManifest { bytes: bytes.clone(), tag: ManifestTag(String::new()) });
        async move { Ok(there) }.boxed()
    }

    fn open<'a>(&'a self, object: &'a str) -> BoxFuture<'a, Result<Box<dyn Read + Send>, DestinationError>> {
        let found = self.0.get(object).cloned().ok_or_else(|| DestinationError::Missing { at: object.to_owned() });
        async move { found.map(|bytes| Box::new(Cursor::new(bytes)) as Box<dyn Read + Send>) }.boxed()
    }
}

/// Verifies an archive and rebuilds it at a boundary. Returns the rows with the position of the
/// boundary.
async fn read(
    files: BTreeMap<String, Vec<u8>>,
    at: ArchivePoint,
) -> Result<(Option<Lsn>, RowObjects), ArchiveReadError> {
    let archive = Archive::open(Arc::new(MemoryDestination(files)), Some(TABLE)).await?;
    archive.verify(&ReadProgress::default(), drop).await;
    let rebuilt = archive.rebuild(at, &ReadProgress::default()).await?;
    Ok((rebuilt.boundary.position, shown(&rebuilt.table)))
}

/// A change of some bytes. Places are fractions of the length.
#[derive(Clone, Debug)]
enum ByteMutation {
    Flip { place: f64, bit: u8 },
    Set { place: f64, byte: u8 },
    Delete { place: f64, length: usize },
    Repeat { place: f64, length: usize },
    Insert { place: f64, bytes: Vec<u8> },
    Exchange { place: f64, other: f64, length: usize },
}

fn mutation() -> impl Strategy<Value = ByteMutation> {
    let place = || 0.0..1.0_f64;
    let bytes = prop_oneof![
        proptest::collection::vec(any::<u8>(), 1..20),
        "[0-9\"{}:,\\[\\]]{1,6}".prop_map(String::into_bytes),
        Just(b"null".to_vec()),
    ];
    prop_oneof![
        (place(), 0..8_u8).prop_map(|(place, bit)| ByteMutation::Flip { place, bit }),
        (place(), prop_oneof![any::<u8>(), b'0'..=b'9']).prop_map(|(place, byte)| ByteMutation::Set { place, byte }),
        (place(), 1..200_usize).prop_map(|(place, length)| ByteMutation::Delete { place, length }),
        (place(), 1..200_usize).prop_map(|(place, length)| ByteMutation::Repeat { place, length }),
        (place(), bytes).prop_map(|(place, bytes)| ByteMutation::Insert { place, bytes }),
        (place(), place(), 1..60_usize).prop_map(|(place, other, length)| ByteMutation::Exchange {
            place,
            other,
            length
        }),
    ]
}

impl ByteMutation {
    fn apply(&self, bytes: &mut Vec<u8>) {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "small"
        )]
        let at = |place: f64, bytes: &[u8]| (place * bytes.len() as f64) as usize;
        match self {
            ByteMutation::Flip { place, bit } => {
                let place = at(*place, bytes);
                if let Some(byte) = bytes.get_mut(place) {
                    *byte ^= 1 << bit;
                }
            }
            ByteMutation::Set { place, byte } => {
                let place = at(*place, bytes);
                if let Some(there) = bytes.get_mut(place) {
                    *there = *byte;
                }
            }
            ByteMutation::Delete { place, length } => {
                let begin = at(*place, bytes);
                bytes.drain(begin..(begin + length).min(bytes.len()));
            }
            ByteMutation::Repeat { place, length } => {
                let begin = at(*place, bytes);
                let part = bytes[begin..(begin + length).min(bytes.len())].to_vec();
                bytes.splice(begin..begin, part);
            }
            ByteMutation::Insert { place, bytes: more } => {
                let begin = at(*place, bytes);
                bytes.splice(begin..begin, more.iter().copied());
            }
            ByteMutation::Exchange { place, other, length } => {
                let (one, two) = (at(*place, bytes), at(*other, bytes));
                let length = (*length).min(bytes.len() - one.max(two));
                (0..length).for_each(|offset| bytes.swap(one + offset, two + offset));
            }
        }
    }
}

/// Collects the paths of all leaves of a document.
fn leaves(value: &Value, path: &str, to: &mut Vec<String>) {
    match value {
        Value::Object(fields) => fields.iter().for_each(|(name, inner)| leaves(inner, &format!("{path}/{name}"), to)),
        Value::Array(items) => {
            items.iter().enumerate().for_each(|(place, inner)| leaves(inner, &format!("{path}/{place}"), to));
        }
        _ => to.push(path.to_owned()),
    }
}

/// Returns the files of an archive in which the meant files are altered.
fn mutated(
    written: &WrittenSample,
    mutations: &[(usize, ByteMutation)],
    is_meant: impl Fn(&str) -> bool,
) -> BTreeMap<String, Vec<u8>> {
    let mut files = written.files.clone();
    let names: Vec<String> = files.keys().filter(|name| is_meant(name)).cloned().collect();
    for (which, mutation) in mutations {
        mutation.apply(files.get_mut(&names[which % names.len()]).unwrap());
    }
    files
}

fn is_right(written: &WrittenSample, files: BTreeMap<String, Vec<u8>>, at: ArchivePoint) -> Result<(), TestCaseError> {
    if let Ok((position, rows)) = runtime().block_on(read(files, at)) {
        let expected = position.and_then(|position| written.states.get(&position));
        prop_assert_eq!(Some(&rows), expected, "as of {:?}", position);
    }
    Ok(())
}

fn moment() -> impl Strategy<Value = ArchivePoint> {
    prop_oneof![
        Just(ArchivePoint::Latest),
        (0x100..0x190_u64).prop_map(|position| ArchivePoint::Position(Lsn(position)))
    ]
}

fn several() -> impl Strategy<Value = Vec<(usize, ByteMutation)>> {
    proptest::collection::vec((any::<usize>(), mutation()), 1..4)
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: if is_full() { 20_000 } else { 600 }, failure_persistence: None, ..ProptestConfig::default()
    })]

    #[test]
    fn altered_objects_give_the_right_table_or_none(format in 0..4_usize, mutations in several(), at in moment()) {
        let written = written(format);
        is_right(written, mutated(written, &mutations, |name| name != MANIFEST_NAME), at)?;
    }

    #[test]
    fn an_altered_manifest_gives_the_right_table_or_none(format in 0..4_usize, mutations in several(), at in moment()) {
        let written = written(format);
        is_right(written, mutated(written, &mutations, |name| name == MANIFEST_NAME), at)?;
    }

    /// Edits the manifest, which stays JSON. A value is removed or replaced by another value of the
    /// document.
    #[test]
    fn an_edited_manifest_gives_the_right_table_or_none(
        format in 0..4_usize, edits in proptest::collection::vec((any::<usize>(), any::<Option<usize>>()), 1..3), at in moment()
    ) {
        let written = written(format);
        let mut files = written.files.clone();
        let mut manifest: Value = serde_json::from_slice(&files[MANIFEST_NAME]).unwrap();
        for (one, other) in edits {
            let mut paths = Vec::new();
            leaves(&manifest, "", &mut paths);
            let value = other.and_then(|other| manifest.pointer(&paths[other % paths.len()])).cloned();
            let path = &paths[one % paths.len()];
            *manifest.pointer_mut(path).unwrap() = value.unwrap_or(Value::Null);
        }
        files.insert(MANIFEST_NAME.to_owned(), manifest.to_string().into_bytes());
        is_right(written, files, at)?;
    }

    /// If manifest and objects may both be altered, not every fault can be found. Reading still
    /// does not panic.
    #[test]
    fn whatever_is_altered_nothing_panics(format in 0..4_usize, mutations in several(), at in moment(), is_summed in any::<bool>()) {
        let written = written(format);
        let mut files = mutated(written, &mutations, |_| true);
        if !is_summed {
            let text = String::from_utf8_lossy(&files[MANIFEST_NAME]).replace("\"sha256\"", "\"unknown\"");
            files.insert(MANIFEST_NAME.to_owned(), text.into_bytes());
        }
        drop(runtime().block_on(read(files, at)));
    }
}
