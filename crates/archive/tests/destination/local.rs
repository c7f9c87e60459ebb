//! A folder.

use std::sync::Arc;

use laredo_archive::Local;

use crate::suite;

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
