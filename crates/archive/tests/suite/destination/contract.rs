//! The contract of every destination.

use std::io::{Read as _, Write as _};
use std::sync::Arc;

use laredo_archive::{ArtifactFormat, ArtifactStager, Destination, DestinationError, MANIFEST_NAME, StagedArtifact};

/// A function that opens a destination by name. A new name gives an empty destination, and the same
/// name gives the same one.
pub(crate) type DestinationOpener<'a> = &'a dyn Fn(&str) -> Arc<dyn Destination>;

const SNAPSHOT: &str = "epoch=1/snapshot-0_19F000.jsonl";
const DIFF: &str = "epoch=2/diff-0_19F000-0_1A2B3C.jsonl";
/// A size that S3 takes in parts, and that is not a multiple of a part.
const LARGE: usize = (40 << 20) + 12_345;

pub(crate) async fn keeps_to_the_contract(place: DestinationOpener<'_>) {
    an_artifact_is_created_and_never_overwritten(place).await;
    a_large_artifact_is_as_good(place).await;
    a_manifest_is_replaced_only_by_a_writer_that_knows_the_last_one(place).await;
    what_is_there_is_listed_and_deleted(place).await;
}

/// Checks that exactly one of two concurrent writers replaces a manifest.
pub(crate) async fn excludes_two_writers(place: DestinationOpener<'_>, rounds: usize) {
    let (a, b) = (place("race"), place("race"));
    let mut tag = a.publish(b"round 0", None).await.unwrap();
    for round in 1..=rounds {
        tag = race(&a, &b, &format!("{round}"), Some(&tag)).await;
    }
    for round in 0..rounds {
        let (a, b) = (place(&format!("first-{round}")), place(&format!("first-{round}")));
        race(&a, &b, "first", None).await;
    }
}

/// Checks the list of more than a thousand objects, because S3 lists a thousand at a time.
#[cfg(feature = "aws")]
pub(crate) async fn lists_more_than_one_answer_holds(place: DestinationOpener<'_>) {
    let destination = place("many");
    let (stager, _folder) = stager();
    let one = staged(&stager, b"1");
    let names = (0..1001).map(|n| format!("epoch=1/diff-0_{n:X}-0_{:X}.jsonl", n + 1)).collect::<Vec<_>>();
    for some in names.chunks(8) {
        futures::future::try_join_all(some.iter().map(|name| destination.put(name, &one))).await.unwrap();
    }
    let listed = destination.list().await.unwrap();
    let listed: std::collections::BTreeSet<_> = listed.into_iter().map(|one| one.object).collect();
    assert!(listed == names.into_iter().collect(), "{} of 1001 objects were listed", listed.len());
}

async fn race(
    a: &Arc<dyn Destination>,
    b: &Arc<dyn Destination>,
    round: &str,
    over: Option<&laredo_archive::ManifestTag>,
) -> laredo_archive::ManifestTag {
    let (of_a, of_b) = (format!("{round} by a"), format!("{round} by b"));
    let (said_a, said_b) = tokio::join!(a.publish(of_a.as_bytes(), over), b.publish(of_b.as_bytes(), over));
    let (won, tag) = match (said_a, said_b) {
        (Ok(tag), Err(DestinationError::Moved { .. })) => (of_a, tag),
        (Err(DestinationError::Moved { .. }), Ok(tag)) => (of_b, tag),
        both => panic!("round {round}: one has to win, and the other to be told: {both:?}"),
    };
    let there = a.manifest().await.unwrap().unwrap();
    assert_eq!((there.bytes, &there.tag), (won.into_bytes(), &tag));
    tag
}

async fn an_artifact_is_created_and_never_overwritten(place: DestinationOpener<'_>) {
    let destination = place("artifact");
    let (stager, _folder) = stager();
    let (first, other) = (staged(&stager, b"{\"id\":1}\n"), staged(&stager, b"{\"id\":2}\n"));
    destination.put(SNAPSHOT, &first).await.unwrap();
    destination.put(SNAPSHOT, &first).await.unwrap();
    for different in [other, staged(&stager, b""), staged(&stager, b"{\"id\":1}\n{\"id\":3}\n")] {
        let said = destination.put(SNAPSHOT, &different).await;
        assert!(matches!(said, Err(DestinationError::Occupied { .. })), "{said:?}");
    }
    assert_eq!(read(&destination, SNAPSHOT).await, b"{\"id\":1}\n");

    let empty = staged(&stager, b"");
    destination.put(DIFF, &empty).await.unwrap();
    destination.put(DIFF, &empty).await.unwrap();
    assert_eq!(read(&destination, DIFF).await, b"");

    let missing = destination.open("epoch=9/snapshot-0_1.jsonl").await.map(drop);
    assert!(matches!(missing, Err(DestinationError::Missing { .. })), "{missing:?}");
}

async fn a_large_artifact_is_as_good(place: DestinationOpener<'_>) {
    let destination = place("large");
    let (stager, _folder) = stager();
    let bytes = noise(LARGE);
    let first = staged(&stager, &bytes);
    destination.put(SNAPSHOT, &first).await.unwrap();
    destination.put(SNAPSHOT, &first).await.unwrap();
    let mut different = bytes.clone();
    *different.last_mut().unwrap() ^= 1;
    let said = destination.put(SNAPSHOT, &staged(&stager, &different)).await;
    assert!(matches!(said, Err(DestinationError::Occupied { .. })), "{said:?}");
    assert!(read(&destination, SNAPSHOT).await == bytes, "what was read is not what was written");
    let listed = destination.list().await.unwrap();
    assert_eq!(listed.iter().map(|one| one.size_bytes).collect::<Vec<_>>(), [LARGE as u64]);
}

async fn a_manifest_is_replaced_only_by_a_writer_that_knows_the_last_one(place: DestinationOpener<'_>) {
    let destination = place("manifest");
    assert_eq!(destination.manifest().await.unwrap(), None);
    let first = destination.publish(b"1", None).await.unwrap();
    let said = destination.publish(b"another", None).await;
    assert!(matches!(said, Err(DestinationError::Moved { .. })), "{said:?}");
    let second = destination.publish(b"2", Some(&first)).await.unwrap();
    assert_ne!(first, second);
    let said = destination.publish(b"another", Some(&first)).await;
    assert!(matches!(said, Err(DestinationError::Moved { .. })), "{said:?}");
    // After an error the caller cannot know if the call succeeded. A repeated call finds its own
    // work.
    assert_eq!(destination.publish(b"2", Some(&first)).await.unwrap(), second);
    let there = destination.manifest().await.unwrap().unwrap();
    assert_eq!((there.bytes.as_slice(), &there.tag), (b"2".as_slice(), &second));
    assert_eq!(read(&destination, MANIFEST_NAME).await, b"2");

    let never = place("never-published");
    let said = never.publish(b"2", Some(&first)).await;
    assert!(matches!(said, Err(DestinationError::Moved { .. })), "{said:?}");
}

async fn what_is_there_is_listed_and_deleted(place: DestinationOpener<'_>) {
    let destination = place("listed");
    assert_eq!(destination.list().await.unwrap(), []);
    let (stager, _folder) = stager();
    let (short, long) = (staged(&stager, b"12"), staged(&stager, b"1234"));
    destination.put(SNAPSHOT, &short).await.unwrap();
    destination.put(DIFF, &long).await.unwrap();
    destination.publish(b"manifest", None).await.unwrap();
    assert_eq!(names(&destination).await, [(SNAPSHOT.to_owned(), 2), (DIFF.to_owned(), 4)]);
    destination.delete(&[SNAPSHOT.to_owned()]).await.unwrap();
    destination.delete(&[SNAPSHOT.to_owned()]).await.unwrap();
    destination.delete(&[]).await.unwrap();
    assert_eq!(names(&destination).await, [(DIFF.to_owned(), 4)]);
    destination.put(SNAPSHOT, &long).await.unwrap();
    assert_eq!(read(&destination, SNAPSHOT).await, b"1234");
    destination.delete(&[DIFF.to_owned(), SNAPSHOT.to_owned(), "epoch=1/never there".to_owned()]).await.unwrap();
    assert_eq!(names(&destination).await, []);
    assert!(destination.manifest().await.unwrap().is_some());
}

async fn names(destination: &Arc<dyn Destination>) -> Vec<(String, u64)> {
    let mut listed = destination.list().await.unwrap();
    listed.sort_by(|a, b| a.object.cmp(&b.object));
    listed.into_iter().map(|one| (one.object, one.size_bytes)).collect()
}

/// Reads an object as its users do: on a thread that may block.
pub(crate) async fn read(destination: &Arc<dyn Destination>, object: &str) -> Vec<u8> {
    let mut opened = destination.open(object).await.unwrap();
    let reading = tokio::task::spawn_blocking(move || {
        let mut bytes = Vec::new();
        opened.read_to_end(&mut bytes).map(|_| bytes)
    });
    reading.await.unwrap().unwrap()
}

pub(crate) fn stager() -> (ArtifactStager, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    (ArtifactStager::new(folder.path()), folder)
}

pub(crate) fn staged(stager: &ArtifactStager, bytes: &[u8]) -> StagedArtifact {
    let mut writer = stager.begin("jsonl".parse::<ArtifactFormat>().unwrap()).unwrap();
    writer.write_all(bytes).unwrap();
    writer.finish().unwrap()
}

/// Returns bytes in which no two parts are alike.
pub(crate) fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_u32;
    let words = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state.to_le_bytes()
    });
    words.flatten().take(length).collect()
}
