//! A folder as a destination.

use std::fs;
use std::io::Write;
use std::process::Command;
use std::sync::Arc;

use laredo_archive::{ArtifactFormat, ArtifactStager, Destination, FolderDestination};

use crate::destination::contract;

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_keeps_to_the_contract() {
    let folder = tempfile::tempdir().unwrap();
    let place = |name: &str| Arc::new(FolderDestination::new(folder.path().join(name))) as _;
    contract::keeps_to_the_contract(&place).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_excludes_two_writers() {
    let folder = tempfile::tempdir().unwrap();
    let place = |name: &str| Arc::new(FolderDestination::new(folder.path().join(name))) as _;
    contract::excludes_two_writers(&place, 100).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_folders_of_one_disk_share_no_file() {
    let folder = tempfile::tempdir().unwrap();
    let (one, other) =
        (FolderDestination::new(folder.path().join("one")), FolderDestination::new(folder.path().join("other")));
    let mut staged = ArtifactStager::new(one.staging_folder().unwrap()).begin(ArtifactFormat::JSONL).unwrap();
    staged.write_all(b"{}\n").unwrap();
    let staged = staged.finish().unwrap();
    for place in [&one, &other] {
        place.put("epoch=1/snapshot-0_1.jsonl", &staged).await.unwrap();
    }
    fs::write(folder.path().join("one/epoch=1/snapshot-0_1.jsonl"), b"damage").unwrap();
    assert_eq!(fs::read(folder.path().join("other/epoch=1/snapshot-0_1.jsonl")).unwrap(), b"{}\n");
}

/// Runs the tests above again in a process in which creating hard links fails, as on some file
/// systems.
#[test]
fn a_folder_without_hard_links_keeps_to_the_contract() {
    const LINKS: &str = "#include <errno.h>
        int link(const char *from, const char *to) { errno = ERRNO; return -1; }
        int linkat(int a, const char *from, int b, const char *to, int flags) { errno = ERRNO; return -1; }";
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("links.c");
    fs::write(&source, LINKS).unwrap();
    for errno in ["EPERM", "EOPNOTSUPP", "ENOSYS", "EMLINK"] {
        let library = folder.path().join(errno).with_extension("so");
        let mut compiler = Command::new("cc");
        compiler.args(["-shared", "-fPIC", &format!("-DERRNO={errno}"), "-o"]).args([&library, &source]);
        assert!(compiler.status().unwrap().success());
        let mut tests = Command::new(std::env::current_exe().unwrap());
        tests.args(["--exact", "destination::local::a_folder_keeps_to_the_contract"]);
        tests.args(["destination::local::a_folder_excludes_two_writers"]).env("LD_PRELOAD", &library);
        let output = tests.output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && said.contains("2 passed"), "{errno}: {said}");
    }
}
