//! No rows are returned from a damaged archive.

use std::path::Path;

use serde_json::Value;

use crate::pipeline::{ArchivePipeline, PipelineArchive, THINGS, laredo, manifest, objects, refusal};

type ArchiveTampering = Box<dyn Fn(&Path)>;

fn edited(file: &'static str, edit: impl Fn(&mut Vec<u8>) + 'static) -> ArchiveTampering {
    Box::new(move |archive| {
        let path = archive.join(file);
        let mut bytes = std::fs::read(&path).unwrap();
        edit(&mut bytes);
        std::fs::write(path, bytes).unwrap();
    })
}

fn put(from: &Path, to: &Path) {
    std::fs::copy(from, to).unwrap();
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let (path, to) = (entry.path(), to.join(entry.file_name()));
        if path.is_dir() { copy(&path, &to) } else { put(&path, &to) }
    }
}

/// Returns ways to damage an archive. Each has the object that the error names, and words of the
/// error.
fn deeds(object: &'static str, other: &'static str) -> Vec<(ArchiveTampering, &'static str, &'static str)> {
    let version = |version: u32| {
        edited("manifest.json", move |bytes| {
            let mut manifest: Value = serde_json::from_slice(bytes).unwrap();
            manifest["manifest_version"] = version.into();
            *bytes = serde_json::to_vec(&manifest).unwrap();
        })
    };
    vec![
        (edited(object, |bytes| bytes.truncate(bytes.len() - 1)), object, "bytes, and the manifest says"),
        (edited(object, Vec::clear), object, "has 0 bytes, and the manifest says"),
        (edited(object, |bytes| bytes.push(b'\n')), object, "bytes, and the manifest says"),
        (edited(object, |bytes| bytes[20] ^= 1), object, "was altered"),
        (edited(object, |bytes| bytes.reverse()), object, "was altered"),
        (Box::new(move |archive| std::fs::remove_file(archive.join(object)).unwrap()), object, "does not exist"),
        (Box::new(move |archive| put(&archive.join(other), &archive.join(object))), object, ""),
        (version(2), "manifest.json", "of version 2"),
        (edited("manifest.json", |bytes| bytes.truncate(bytes.len() / 2)), "manifest.json", "cannot be read"),
        (edited("manifest.json", Vec::clear), "manifest.json", "cannot be read"),
    ]
}

fn leaked(text: String) -> &'static str {
    Box::leak(text.into_boxed_str())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_archive_is_named_and_nothing_is_restored_from_it() {
    let archives = ["jsonl", "protobuf.zst"].map(|format| (format, [format]));
    let archives = archives.each_ref().map(|(name, formats)| PipelineArchive { table: "things", formats, name });
    let pipeline = ArchivePipeline::start(THINGS, &archives).await;
    pipeline.write_history().await;
    pipeline.end().await;
    let cluster = &pipeline.cluster;
    cluster.psql("CREATE TABLE restored (LIKE things INCLUDING ALL); CREATE TABLE kept AS TABLE things_0").unwrap();
    let url = cluster.url("postgres");
    let work = tempfile::tempdir().unwrap();
    for name in ["jsonl", "protobuf.zst"] {
        let whole = pipeline.archive(name);
        let objects = objects(&whole);
        let (object, other) = (leaked(objects[4].clone()), leaked(objects[1].clone()));
        for (number, (deed, at, words)) in deeds(object, other).into_iter().enumerate() {
            let archive = work.path().join(format!("{name}-{number}"));
            copy(&whole, &archive);
            deed(&archive);
            let place = archive.to_str().unwrap();
            let named = |said: &str| {
                assert!(
                    said.contains(archive.join(at).to_str().unwrap()) && said.contains(words),
                    "{words:?} {at}: {said}"
                );
            };
            let (code, out, said) = laredo(&["verify", place]);
            assert_eq!(code, Some(2), "{said}");
            assert!(!out.contains("whole"), "{out}");
            named(&said);

            named(&refusal(&["reconstruct", place]));
            let file = archive.join("out.jsonl");
            named(&refusal(&["reconstruct", place, "--output", file.to_str().unwrap()]));
            let left: Vec<_> = std::fs::read_dir(&archive).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            let is_known =
                |name: &str| name == "manifest.json" || name.starts_with("epoch=") || name.starts_with(".writing");
            assert!(left.iter().all(|name| is_known(name.to_str().unwrap())), "{left:?}");
            named(&refusal(&["reconstruct", place, "--postgres", &url, "--table", "public.restored"]));
            named(&refusal(&["reconstruct", place, "--postgres", &url, "--table", "public.kept", "--replace"]));
            named(&refusal(&["reconstruct", place, "--postgres", &url, "--table", "public.made", "--create"]));
            named(&refusal(&["diff", place, "0/FFFFFFF", "latest"]));
            if at == object {
                named(&refusal(&["cat", place, object]));
                let json: Value = serde_json::from_str(&laredo(&["verify", place, "--json"]).1).unwrap();
                assert_eq!(json["problems"].as_array().unwrap().len(), 1, "{json}");
                // The states before the damaged object can still be rebuilt.
                let before = manifest(&whole)["artifacts"][3]["to_position"].as_str().unwrap().to_owned();
                let (code, out, said) = laredo(&["reconstruct", place, "--at", &before, "--exact"]);
                assert_eq!((code, out.lines().count()), (Some(0), 5), "{said}");
            }
        }
    }
    let counts = "SELECT (SELECT count(*) FROM restored), (SELECT count(*) FROM kept), to_regclass('made')";
    assert_eq!(cluster.psql(counts).unwrap(), "0|5|");
}

#[test]
fn what_is_no_archive_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().to_str().unwrap();
    for command in [vec!["ls", place], vec!["verify", place], vec!["reconstruct", place], vec!["cat", place, "x"]] {
        assert!(refusal(&command).contains("there is no archive: file://"), "{command:?}");
    }
    let (code, _, said) = laredo(&["ls", "s3://"]);
    assert!(code == Some(2) && said.contains("s3://BUCKET/PREFIX"), "{said}");
}
