//! A folder as a destination.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use laredo_archive::{
    ArtifactFormat, ArtifactStager, Destination, DestinationError, DestinationReader as _, FolderDestination,
};

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
    let mut staged = one.stager().unwrap().begin(ArtifactFormat::JSONL).unwrap();
    staged.write_all(b"{}\n").unwrap();
    let staged = staged.finish().unwrap();
    for place in [&one, &other] {
        place.put("epoch=1/snapshot-0_1.jsonl", &staged).await.unwrap();
    }
    fs::write(folder.path().join("one/epoch=1/snapshot-0_1.jsonl"), b"damage").unwrap();
    assert_eq!(fs::read(folder.path().join("other/epoch=1/snapshot-0_1.jsonl")).unwrap(), b"{}\n");
}

/// Others may have access to an archive. A link of theirs must not lead its writer to other
/// folders.
#[tokio::test(flavor = "multi_thread")]
async fn a_writer_follows_no_link() {
    let (folder, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let archive = folder.path().join("archive");
    let place = FolderDestination::new(&archive);
    let (stager, _staging) = contract::stager();
    let staged = contract::staged(&stager, b"{}\n");
    place.put("epoch=1/snapshot-0_1.jsonl", &staged).await.unwrap();
    fs::write(outside.path().join("snapshot-0_2.jsonl"), "kept").unwrap();
    symlink(outside.path(), archive.join("epoch=2")).unwrap();
    let refused = |result: Result<(), DestinationError>| {
        let error = result.unwrap_err();
        assert!(matches!(error, DestinationError::Refused { .. }) && error.to_string().contains("link"), "{error}");
    };
    refused(place.list().await.map(drop));
    refused(place.delete(&["epoch=2/snapshot-0_2.jsonl".to_owned()]).await);
    refused(place.put("epoch=2/snapshot-0_3.jsonl", &staged).await);
    refused(place.open("epoch=2/snapshot-0_2.jsonl").await.map(drop));
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1);
    assert_eq!(fs::read(outside.path().join("snapshot-0_2.jsonl")).unwrap(), b"kept");

    // An object with the same bytes behind a link is not the artifact.
    fs::remove_file(archive.join("epoch=2")).unwrap();
    fs::write(outside.path().join("same"), b"{}\n").unwrap();
    symlink(outside.path().join("same"), archive.join("epoch=1/snapshot-0_4.jsonl")).unwrap();
    refused(place.put("epoch=1/snapshot-0_4.jsonl", &staged).await);
    // Deleting a link deletes the link alone.
    place.delete(&["epoch=1/snapshot-0_4.jsonl".to_owned()]).await.unwrap();
    assert!(outside.path().join("same").exists() && !archive.join("epoch=1/snapshot-0_4.jsonl").exists());

    // Neither the lock nor unfinished files are written behind a link.
    let other = folder.path().join("other");
    fs::create_dir(&other).unwrap();
    symlink(outside.path(), other.join(".writing")).unwrap();
    let place = FolderDestination::new(&other);
    assert!(place.publish(b"{}", None).await.unwrap_err().to_string().contains("link"));
    assert!(place.stager().unwrap().begin(ArtifactFormat::JSONL).is_err());
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 2);
}

/// Returns the paths of all files and folders below one, with their permissions.
fn modes(folder: &Path) -> BTreeMap<String, u32> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let name = entry.file_name().into_string().unwrap();
        found.insert(name.clone(), entry.metadata().unwrap().permissions().mode() & 0o777);
        if entry.file_type().unwrap().is_dir() {
            found.extend(modes(&entry.path()).into_iter().map(|(inner, mode)| (format!("{name}/{inner}"), mode)));
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn unfinished_files_are_private_and_do_not_outlive_a_crash() {
    let folder = tempfile::tempdir().unwrap();
    let place = FolderDestination::new(folder.path().join("archive"));
    let elsewhere = ArtifactStager::new(folder.path().join("elsewhere"));
    let mut unfinished = vec![];
    for (stager, parent) in [(place.stager().unwrap(), "archive/.writing"), (elsewhere, "elsewhere")] {
        let parent = folder.path().join(parent);
        let crashed = parent.join("laredo-staging-crashed");
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&crashed).unwrap();
        fs::write(crashed.join("writing-1"), "rows").unwrap();
        let mut staged = stager.begin(ArtifactFormat::JSONL).unwrap();
        staged.write_all(b"{}\n").unwrap();
        assert!(!crashed.exists());
        let found = modes(&parent);
        let folders: Vec<&String> = found.keys().filter(|name| !name.contains('/')).collect();
        assert!(folders.len() == 1 && folders[0].starts_with("laredo-staging-"), "{found:?}");
        assert_eq!(found[folders[0]], 0o700);
        unfinished.push((staged, parent));
    }
    // Files that do not become a part of an archive are private themselves.
    let found = modes(&unfinished[1].1);
    assert_eq!(found.values().copied().collect::<Vec<_>>(), [0o700, 0o600], "{found:?}");
    for (staged, parent) in unfinished {
        place.put("epoch=1/snapshot-0_1.jsonl", &staged.finish().unwrap()).await.unwrap();
        assert!(modes(&parent).keys().all(|name| !name.contains("writing-")), "{parent:?}");
    }
    // An archive's own files are for its readers, as far as the umask allows.
    fs::write(folder.path().join("usual"), "").unwrap();
    place.publish(b"{}", None).await.unwrap();
    let found = modes(folder.path());
    for name in ["archive/epoch=1/snapshot-0_1.jsonl", "archive/manifest.json"] {
        assert_eq!(found[name], found["usual"], "{name}");
    }
    assert_eq!((found["archive/.writing"], found["archive/.writing/lock"]), (0o700, 0o600));
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
