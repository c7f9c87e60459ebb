//! Objects that would take any amount of memory, or that lead out of the archive, are refused.

use std::io::{self, Read as _};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;

use laredo_testkit::clean_command;
use serde_json::json;

use crate::handmade::HandmadeArchive;
use crate::pipeline::{answer, refusal};

/// The memory that a command may use, in KiB. A program that keeps what it decompresses is aborted.
const MEMORY_KIB: u64 = 1_500_000;

fn archive() -> HandmadeArchive {
    HandmadeArchive::new(&[("id", "bigint", 20), ("v", "text", 25)], 1, "0/10", &[r#"{"id":1,"v":"a"}"#])
}

/// Runs `laredo archive` with limited memory. Returns the error message of a command that refuses.
fn bounded_refusal(arguments: &[&str]) -> String {
    let mut command = clean_command("sh");
    command.args([
        "-c",
        &format!("ulimit -v {MEMORY_KIB}; exec \"$@\""),
        "sh",
        env!("CARGO_BIN_EXE_laredo"),
        "archive",
    ]);
    let output = command.args(arguments).env("NO_COLOR", "1").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{arguments:?}: {said}");
    said
}

/// Checks that no command reads an archive, and that each names the problem.
fn refuses(archive: &HandmadeArchive, object: &str, words: &str) {
    let place = archive.place();
    for command in
        [&["verify", place][..], &["reconstruct", place], &["cat", place, object], &["diff", place, "latest", "latest"]]
    {
        let said = bounded_refusal(command);
        assert!(said.contains(words), "{command:?}: {words}: {said}");
    }
}

fn packed(parts: impl io::Read) -> Vec<u8> {
    let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
    io::copy(&mut io::BufReader::with_capacity(1 << 20, parts), &mut encoder).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn an_object_takes_no_more_memory_than_its_size_allows() {
    let line = || (&br#"{"id":1,"v":""#[..]).chain(io::repeat(b'x').take(2 << 30)).chain(&b"\"}\n"[..]);
    let (object, bomb) = ("epoch=1/snapshot-0_10.jsonl.zst", packed(line()));
    assert!(bomb.len() < 400_000, "{}", bomb.len());
    let packed_object = |bytes: &[u8]| archive().with_object("jsonl.zst", "jsonl.zst", bytes);
    refuses(&packed_object(&bomb), object, "decompresses to more than 1000 times its size");
    let stated = |bytes: &[u8], unpacked: u64| {
        packed_object(bytes).edit(|manifest| {
            manifest["artifacts"][0]["formats"]["jsonl.zst"]["unpacked_bytes"] = unpacked.into();
        })
    };
    refuses(&stated(&bomb, 100), object, "more than the 100 bytes that the manifest states");
    let rows = packed(io::repeat(b'\n').take(2 << 30));
    refuses(&packed_object(&rows), object, "EOF while parsing");
    let good = packed(&b"{\"id\":1,\"v\":\"a\"}\n"[..]);
    for wrong in [1, 16] {
        refuses(&stated(&good, wrong), object, &format!("more than the {wrong} bytes"));
    }
    for wrong in [18, u64::MAX] {
        refuses(
            &stated(&good, wrong),
            object,
            &format!("has 17 bytes before compression, and the manifest says {wrong}"),
        );
    }
    answer(&["verify", stated(&good, 17).place()]);

    // A message says that it has 4 GiB, which are not there, or are.
    let length = [0xff, 0xff, 0xff, 0xff, 0x0f];
    let message = [&length[..], b"x"].concat();
    let pb = archive().with_object("protobuf", "pb", &message);
    refuses(&pb, "epoch=1/snapshot-0_10.pb", "the message has 4294967295 bytes, more than");
    let message = packed((&length[..]).chain(io::repeat(0).take(2 << 30)));
    let pb = archive().with_object("protobuf.zst", "pb.zst", &message);
    refuses(&pb, "epoch=1/snapshot-0_10.pb.zst", "the message has 4294967295 bytes, more than");
}

#[test]
fn counts_have_bounds() {
    let column = |number: usize| {
        json!({ "name": format!("c{number}"), "type_oid": 25, "type_modifier": -1, "type_name": "text",
        "not_null": false, "is_text": false })
    };
    let schema = |columns: Vec<serde_json::Value>| {
        archive().edit(|manifest| {
            manifest["artifacts"][0]["schema"] = json!({ "columns": columns, "key": ["c0"], "types": {} });
        })
    };
    let said = refusal(&["reconstruct", schema((0..100_000).map(column).collect()).place()]);
    assert!(said.contains("there are 100000, and a table has at most 1600"), "{said}");
    let said = refusal(&["reconstruct", schema(vec![column(0), column(1), column(1)]).place()]);
    assert!(said.contains("two of them are named \"c1\""), "{said}");
    // The fields of rows are the columns where a manifest names none.
    let fields = (0..2000).map(|number| (format!("f{number}"), 1.into())).collect::<serde_json::Map<_, _>>();
    let row = serde_json::Value::Object(fields).to_string();
    let archive = HandmadeArchive::new(&[], 0, "0/10", &[&row]);
    let said = refusal(&["reconstruct", archive.place(), "--key-fields", "f0"]);
    assert!(said.contains("more than 1600 different fields"), "{said}");
    // An object that is longer than the manifest says is not read to its end.
    let longer = self::archive().edit(|manifest| {
        manifest["artifacts"][0]["formats"]["jsonl"]["size_bytes"] = 3.into();
    });
    let said = refusal(&["reconstruct", longer.place()]);
    assert!(said.contains("has more than 3 bytes, and the manifest says 3"), "{said}");
}

#[test]
fn links_and_special_files_are_not_read() {
    type Replacement = fn(&Path);
    let outside = tempfile::tempdir().unwrap();
    let replacements: [(&str, Replacement); 6] = [
        ("a link to a file", |object| symlink("/etc/passwd", object).unwrap()),
        ("a link to a device", |object| symlink("/dev/zero", object).unwrap()),
        ("a link to nothing", |object| symlink("/no/such/file", object).unwrap()),
        ("a pipe", |object| assert!(Command::new("mkfifo").arg(object).status().unwrap().success())),
        ("a folder", |object| std::fs::create_dir(object).unwrap()),
        ("a socket", |object| drop(UnixListener::bind(object).unwrap())),
    ];
    for (kind, replace) in replacements {
        for name in ["epoch=1/snapshot-0_10.jsonl", "manifest.json"] {
            let archive = archive();
            let file = Path::new(archive.place()).join(name);
            std::fs::remove_file(&file).unwrap();
            replace(&file);
            for command in [&["verify", archive.place()][..], &["reconstruct", archive.place()]] {
                let said = bounded_refusal(command);
                assert!(said.contains("not a regular file inside of the archive"), "{kind} {name}: {said}");
            }
        }
    }
    // The folder of an epoch is a link to one with the same files.
    let archive = archive();
    let epoch = Path::new(archive.place()).join("epoch=1");
    std::fs::rename(&epoch, outside.path().join("epoch=1")).unwrap();
    symlink(outside.path().join("epoch=1"), &epoch).unwrap();
    let said = refusal(&["reconstruct", archive.place()]);
    assert!(said.contains("not a regular file inside of the archive"), "{said}");
    // The folder of the archive is the operator's, and may be a link.
    std::fs::remove_file(&epoch).unwrap();
    std::fs::rename(outside.path().join("epoch=1"), &epoch).unwrap();
    let link = outside.path().join("link");
    symlink(archive.place(), &link).unwrap();
    answer(&["verify", link.to_str().unwrap()]);
}
