//! Keys that are missing, do not fit together or are in the wrong place.

use laredo::config::{ServerConfig, SnapshotterConfig};

use super::{MINIMAL, load, refused, with};
use crate::ConfigFolder;

#[test]
fn missing_keys_are_named_where_they_belong() {
    assert_eq!(load("").expect_err("empty"), ["snapshotter: is required: a block { … }"]);
    refused(
        "snapshotter { }",
        &["1:1: snapshotter.tables: is required, or the keys of one table (source, destinations) in its place"],
    );
    refused(
        "snapshotter { tables = [] }",
        &["1:24: snapshotter.tables: there is no table; name at least one to write"],
    );
    refused(
        "snapshotter { source { } }",
        &[
            "1:1: snapshotter.destinations: is required: a list [ … ]",
            "1:15: snapshotter.source.server: is required: the address of a server, such as localhost:4002 or \
             https://laredo.example:4002",
            "1:15: snapshotter.source.schema: is required: a string that is not empty",
            "1:15: snapshotter.source.table: is required: a string that is not empty",
        ],
    );
    refused(
        "snapshotter { tables = [ { destinations = [] } ] }",
        &[
            "1:28: snapshotter.tables[0].source: is required: a block { … }",
            "1:43: snapshotter.tables[0].destinations: there is no destination; name at least one to write to",
        ],
    );
    refused(
        &with("", "", "}, { type = s3 }, { type = local"),
        &[
            "6:6: snapshotter.destinations[1].bucket: is required: a bucket's name, without s3:// and without slashes",
            "6:21: snapshotter.destinations[2].path: is required: a string that is not empty",
        ],
    );
    refused("snapshotter = 5", &["1:15: snapshotter: expected a block { … }, found 5"]);
}

#[test]
fn one_table_or_many_but_not_both() {
    refused(
        &with("", "tables = []", ""),
        &[
            "4:10: snapshotter.tables: cannot be given together with the keys of one table (source, destinations); put them into an item of \
           tables, or leave tables out",
        ],
    );
    refused(
        "snapshotter { diff.interval = 5s\n\
         tables = [{ source { server = \"h:1\", schema = s, table = t }, destinations = [{ type = local, path = p }] }] }",
        &[
            "2:10: snapshotter.tables: cannot be given together with the keys of one table (diff); put them into an item of tables, or leave \
           tables out",
        ],
    );
}

#[test]
fn a_key_outside_of_snapshotter_is_sent_to_its_place() {
    let lines = load(&format!("{MINIMAL}\ncredentials {{ a {{ type = ambient }} }}")).expect_err("outside");
    assert!(
        lines.len() == 1 && lines[0].starts_with("snapshotter.conf:5:1: credentials: belongs inside snapshotter { … }")
    );
    let lines = load(&format!("{MINIMAL}\nsnapshoter.http.port = 1")).expect_err("a typo");
    assert_eq!(lines, ["snapshotter.conf:5:1: snapshoter: unknown key (did you mean snapshotter?)"]);

    let folder = ConfigFolder::new(&[("conf.d/1.conf", crate::MINIMAL), ("conf.d/2.conf", MINIMAL)]);
    let loader = folder.loader().conf_dir(folder.path("conf.d"));
    let lines = folder.lines(&ServerConfig::load(&loader).expect_err("not the server's"));
    assert_eq!(
        lines,
        [
            "conf.d/2.conf:2:1: snapshotter: is for laredo-snapshotter; give each program files of its own (--config, --conf-dir)"
        ]
    );
    let lines = folder.lines(&SnapshotterConfig::load(&loader).expect_err("not the snapshotter's"));
    assert_eq!(lines.len(), 2, "{lines:?}");
}

#[test]
fn references_must_exist_and_lead_in_no_circle() {
    let s3 = "}, { type = s3, bucket = b, credentials = writr";
    let of = |profiles: &str| format!("credentials {{ {profiles} }}");
    refused(
        &with("", &of("writer { type = ambient }"), s3),
        &[
            "6:43: snapshotter.destinations[1].credentials: there is no credentials profile named \"writr\" (did you mean writer?)",
        ],
    );
    refused(
        &with("", "events = [{ type = kinesis, stream = s, credentials = pub }]", ""),
        &["4:55: snapshotter.events[0].credentials: there is no credentials profile named \"pub\" \
           (no credentials profile is configured)"],
    );
    let role = |name: &str, base: &str| format!("{name} {{ type = assume_role, role_arn = r, base = {base} }}");
    refused(
        &with("", &of(&role("a", "b")), ""),
        &["4:60: snapshotter.credentials.a.base: there is no credentials profile named \"b\" (there are a)"],
    );
    refused(
        &with("", &of(&role("a", "a")), ""),
        &["4:60: snapshotter.credentials.a.base: a profile cannot be its own base"],
    );
    // A circle is reported once, even if other profiles lead into it.
    let profiles = [role("c", "a"), role("b", "c"), role("a", "b"), role("d", "a"), role("0", "c")];
    refused(
        &with("", &of(&profiles.join("\n")), ""),
        &["6:46: snapshotter.credentials.a.base: leads back to itself: a → b → c → a"],
    );
    let profiles = [role("a", "b"), role("b", "c"), "c { type = ambient }".to_owned()];
    assert!(load(&with("", &of(&profiles.join("\n")), "")).is_ok());
}

#[test]
fn what_only_makes_sense_together_is_checked_together() {
    for (source, table, expected) in [
        (
            "",
            "snapshot { min_interval = 10m, max_interval = 30s }",
            "4:47: snapshotter.snapshot.max_interval: min_interval, 10m, is longer than max_interval, 30s",
        ),
        ("", "key_fields = [a, a]", "4:14: snapshotter.key_fields: names a twice"),
        (
            "server = \"https://h\", tls.enabled = false",
            "",
            "2:37: snapshotter.source.tls.enabled: is false, but source.server begins with https://",
        ),
        (
            "server = \"http://h\", tls.enabled = true",
            "",
            "2:36: snapshotter.source.tls.enabled: is true, but source.server begins with http://",
        ),
        (
            "tls.ca_path = /ca",
            "",
            "2:15: snapshotter.source.tls.ca_path: has a meaning only with TLS: write https:// in source.server, or enabled = true",
        ),
        (
            "tls { enabled = true, cert_path = /c }",
            "",
            "2:35: snapshotter.source.tls.cert_path: requires key_path, the private key of this certificate",
        ),
        (
            "tls { enabled = true, key_path = /k }",
            "",
            "2:34: snapshotter.source.tls.key_path: requires cert_path, the certificate of this key",
        ),
        (
            "tls { enabled = true, client_ca_path = /k }",
            "",
            "2:23: snapshotter.source.tls.client_ca_path: is a server's key, for the certificates of its clients; \
             a client checks its server with ca_path",
        ),
    ] {
        refused(&with(source, table, ""), &[expected]);
    }
}

fn tables(first: &str, second: &str) -> String {
    let table =
        |name: &str, more: &str| format!("{{ source {{ server = \"h:1\", schema = s, table = {name} }}, {more} }}");
    format!("snapshotter.tables = [\n{}\n{}\n]", table("a", first), table("b", second))
}

#[test]
fn two_archives_in_one_place_are_an_error_that_names_both() {
    let here = std::env::current_dir().expect("a folder");
    let local = |path: &str| format!("destinations = [{{ type = local, path = \"{path}\" }}]");
    let s3 = |more: &str| format!("destinations = [{{ type = s3, bucket = b, {more} }}]");
    let keyed = |prefix: &str, destinations: String| format!("key_prefix = \"{prefix}\", {destinations}");
    for (first, second, place) in [
        (keyed("x/", local("/p")), keyed("x/", local("/p/")), "/p/x/manifest.json"),
        (keyed("x/", local("/p/q")), keyed("q/x/", local("/p")), "/p/q/x/manifest.json"),
        (keyed("x/", local("/p")), keyed("", local("/q/.././p/x")), "/p/x/manifest.json"),
        (
            keyed("", local("./p")),
            keyed("", local(&format!("{}/p", here.display()))),
            &format!("{}/p/manifest.json", here.display()),
        ),
        (keyed("x/", s3("prefix = \"\"")), keyed("", s3("prefix = \"x/\"")), "s3://b/x/manifest.json"),
        (
            keyed("x/", s3("endpoint = \"http://h\"")),
            keyed("x/", s3("endpoint = \"http://h/\"")),
            "s3://b/x/manifest.json",
        ),
    ] {
        let problems = load(&tables(&first, &second)).expect_err("one place");
        assert!(problems.len() == 1 && problems[0].starts_with("snapshotter.conf:3:"), "{problems:?}");
        let expected = format!(
            ": snapshotter.tables[1].destinations[0]: s.b would be written where s.a is (snapshotter.tables[0].destinations[0]), \
             to {place}; give each its own path, prefix or key_prefix"
        );
        assert!(problems[0].ends_with(&expected), "{problems:?}\n{expected}");
    }
    for (first, second) in [
        (local("/p"), local("/p")),
        (s3("prefix = \"p/\""), s3("prefix = \"p/\"")),
        (keyed("x/", s3("endpoint = \"http://h\"")), keyed("x/", s3("endpoint = \"http://i\""))),
        (keyed("x/", local("/b")), keyed("x/", s3("prefix = \"\""))),
    ] {
        assert!(load(&tables(&first, &second)).is_ok(), "{first} {second}");
    }
    let problems = load(&with("", "", "}, { type = local, path = /p")).expect_err("twice");
    assert!(problems[0].contains("destinations[1]: s.t would be written where s.t is (snapshotter.destinations[0])"));
}

/// The beginning of names is the destination's prefix and the table's, whose default is the table's
/// name.
#[test]
fn no_archive_leaves_its_destination() {
    let local = "{ type = local, path = /p }";
    let s3 = |prefix: &str| format!("{{ type = s3, bucket = b, prefix = \"{prefix}\" }}");
    let load = |table: &str, more: &str, destination: &str| {
        let source = format!("source {{ server = \"h:1\", schema = s, table = \"{table}\" }}");
        load(&format!("snapshotter {{\n{source}\n{more}\ndestinations = [{destination}]\n}}"))
    };
    let default = "set key_prefix, such as users/, because the table's name is not suitable";
    let (given, own) = ("correct key_prefix, such as users/", "correct prefix, such as archive/");
    for (table, more, destination, problem, remedy) in [
        ("..", "", local, "\"../\", in which a part is . or ..", default),
        (".", "", local, "\"./\", in which a part is . or ..", default),
        ("/srv/other", "", local, "\"/srv/other/\", which begins with a slash", default),
        ("a/../../b", "", local, "\"a/../../b/\", in which a part is . or ..", default),
        ("a//b", "", local, "\"a//b/\", in which a part between two slashes is empty", default),
        ("..", "", &s3("p/"), "\"p/../\", in which a part is . or ..", default),
        ("/t", "", &s3("p/"), "\"p//t/\", in which a part between two slashes is empty", default),
        ("t", "key_prefix = \"/tmp/x/\"", local, "\"/tmp/x/\", which begins with a slash", given),
        ("t", "key_prefix = \"x//\"", local, "\"x//\", in which a part between two slashes is empty", given),
        ("t", "key_prefix = \"/x/\"", &s3(""), "\"/x/\", which begins with a slash", given),
        ("t", "key_prefix = \"x/\"", &s3("/p/"), "\"/p/x/\", which begins with a slash", own),
    ] {
        let problems = load(table, more, destination).expect_err("it leads out");
        let expected = format!(
            ": snapshotter.destinations[0]: s.{table} cannot be written here: the names of its objects would begin with {problem}; \
             {remedy}"
        );
        assert!(problems.len() == 1 && problems[0].ends_with(&expected), "{problems:?}\n{expected}");
    }
    for (table, more, destination) in [
        ("..", "key_prefix = \"dots/\"", local),
        ("..a", "", local),
        ("a/b", "", local),
        ("t", "key_prefix = \"/x/\"", &s3("p")),
    ] {
        assert!(load(table, more, destination).is_ok(), "{table} {more}");
    }
}

#[test]
fn all_problems_are_reported_at_once() {
    let folder = ConfigFolder::new(&[
        ("conf.d/1.conf", "snapshotter { source { server = h, schema = s, tabel = t }, http.port = -1 }"),
        (
            "conf.d/2.conf",
            "snapshotter.formats.diff = [parquet]\nsnapshotter.destinations = [{ type = s3, credentials = c }]",
        ),
    ]);
    let loader = folder
        .loader_with(&[("LAREDO_SNAPSHOTTER_DIFF_INTERVAL", "soon")])
        .conf_dir(folder.path("conf.d"))
        .set("snapshotter.retention.keep_epochs=none");
    let report = SnapshotterConfig::load(&loader).expect_err("much is wrong");
    let expected = [
        ("conf.d/1.conf:1:15", "snapshotter.source.table: is required"),
        ("conf.d/1.conf:1:33", "snapshotter.source.server: expected the address of a server"),
        ("conf.d/1.conf:1:48", "snapshotter.source.tabel: unknown key (did you mean table?)"),
        ("conf.d/1.conf:1:73", "snapshotter.http.port: expected a whole number"),
        ("conf.d/2.conf:1:29", "snapshotter.formats.diff[0]: parquet is not built yet"),
        ("conf.d/2.conf:2:31", "snapshotter.destinations[0].bucket: is required"),
        ("conf.d/2.conf:2:56", "snapshotter.destinations[0].credentials: there is no credentials profile named \"c\""),
        ("environment variable LAREDO_SNAPSHOTTER_DIFF_INTERVAL", "snapshotter.diff.interval: expected a duration"),
        ("--set snapshotter.retention.keep_epochs", "snapshotter.retention.keep_epochs: expected a whole number"),
    ];
    let lines = folder.lines(&report);
    assert_eq!(lines.len(), expected.len(), "{lines:#?}");
    for (line, (place, problem)) in lines.iter().zip(expected) {
        assert!(line.starts_with(&format!("{place}: {problem}")), "{line}\n{place}: {problem}");
    }
}

#[test]
fn reports_hold_no_secret() {
    for source in ["token = \"hunter2 x\"", "tokn = hunter2", "token = [hunter2]", "token = \"hunter2"] {
        let folder = ConfigFolder::new(&[("snapshotter.conf", &with(source, "", ""))]);
        let report = SnapshotterConfig::load(&folder.loader().file(folder.path("snapshotter.conf"))).expect_err(source);
        for shown in [report.to_string(), report.render(false), format!("{report:?}")] {
            assert!(!shown.contains("hunter2"), "{source}\n{shown}");
        }
    }
}
