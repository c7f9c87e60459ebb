//! A folder.

use std::fs;
use std::io::Write;
use std::sync::Arc;

use laredo_archive::{Destination, Format, Local, Stager};

use crate::destination::suite;

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_keeps_to_the_contract() {
    let folder = tempfile::tempdir().unwrap();
    let place = |name: &str| Arc::new(Local::new(folder.path().join(name))) as _;
    suite::keeps_to_the_contract(&place).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_excludes_two_writers() {
    let folder = tempfile::tempdir().unwrap();
    let place = |name: &str| Arc::new(Local::new(folder.path().join(name))) as _;
    suite::excludes_two_writers(&place, 100).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_folders_of_one_disk_share_no_file() {
    let folder = tempfile::tempdir().unwrap();
    let (one, other) = (Local::new(folder.path().join("one")), Local::new(folder.path().join("other")));
    let mut staged = Stager::new(one.staging()).begin(Format::JSONL).unwrap();
    staged.write_all(b"{}\n").unwrap();
    let staged = staged.finish().unwrap();
    for place in [&one, &other] {
        place.put("epoch=1/snapshot-0_1.jsonl", &staged).await.unwrap();
    }
    fs::write(folder.path().join("one/epoch=1/snapshot-0_1.jsonl"), b"damage").unwrap();
    assert_eq!(fs::read(folder.path().join("other/epoch=1/snapshot-0_1.jsonl")).unwrap(), b"{}\n");
}
