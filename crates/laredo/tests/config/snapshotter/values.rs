//! Single keys and values that are refused, and their messages.

use super::{load, refused, with};

#[test]
fn unknown_keys_get_the_nearest_known_one() {
    for (source, table, destination, expected) in [
        ("tabel = x", "", "", "2:1: snapshotter.source.tabel: unknown key (did you mean table?)"),
        (
            "",
            "snapshot.maxInterval = 5m",
            "",
            "4:1: snapshotter.snapshot.maxInterval: unknown key (did you mean max_interval?)",
        ),
        ("", "destination = []", "", "4:1: snapshotter.destination: unknown key (did you mean destinations?)"),
        ("", "", "bucket = b", "6:1: snapshotter.destinations[0].bucket: unknown key (the keys here are type, path)"),
        (
            "",
            "events = [{ type = sqs, queue_ulr = q }]",
            "",
            "4:25: snapshotter.events[0].queue_ulr: unknown key (did you mean queue_url?)",
        ),
    ] {
        let mut problems = load(&with(source, table, destination)).expect_err("wrong");
        problems.retain(|line| !line.contains("is required"));
        assert_eq!(problems, [format!("snapshotter.conf:{expected}")]);
    }
}

#[test]
fn wrong_types_and_ranges_say_what_was_expected() {
    for (source, table, destination, expected) in [
        (
            "server = localhost",
            "",
            "",
            "2:10: snapshotter.source.server: expected the address of a server, such as localhost:4002 or \
             https://laredo.example:4002, found \"localhost\"",
        ),
        (
            "",
            "http.port = 70000",
            "",
            "4:13: snapshotter.http.port: expected a whole number from 0 to 65535, found 70000",
        ),
        (
            "",
            "diff.interval = 30",
            "",
            "4:17: snapshotter.diff.interval: expected a duration with a unit, from 100ms to 3650d, found 30 \
             (a number without a unit is milliseconds; write 5s, 10m or 24h)",
        ),
        (
            "",
            "snapshot.max_diff_fraction = 0",
            "",
            "4:30: snapshotter.snapshot.max_diff_fraction: expected a number above 0, found 0",
        ),
        (
            "",
            "snapshot.max_churn_fraction = -0.5",
            "",
            "4:31: snapshotter.snapshot.max_churn_fraction: expected a number above 0, found -0.5",
        ),
        (
            "",
            "snapshot.max_churn_records = 0",
            "",
            "4:30: snapshotter.snapshot.max_churn_records: expected a whole number, 1 or more, found 0",
        ),
        (
            "",
            "snapshot.max_diff_bytes = lots",
            "",
            "4:27: snapshotter.snapshot.max_diff_bytes: expected a size such as 32MiB, at least 1B, found \"lots\"",
        ),
    ] {
        refused(&with(source, table, destination), &[expected]);
    }
}

#[test]
fn limits_of_an_archive_are_above_zero() {
    for (source, table, destination, expected) in [
        (
            "",
            "snapshot.max_diffs = 0",
            "",
            "4:22: snapshotter.snapshot.max_diffs: expected a whole number, 1 or more, found 0",
        ),
        (
            "",
            "retention.manifest_epochs = 0",
            "",
            "4:29: snapshotter.retention.manifest_epochs: expected a whole number from 1 to 4294967295, found 0",
        ),
        (
            "",
            "retention.keep_epochs = 0",
            "",
            "4:25: snapshotter.retention.keep_epochs: expected a whole number from 1 to 4294967295, found 0",
        ),
        (
            "",
            "key_prefix = \"a/../b/\"",
            "",
            "4:14: snapshotter.key_prefix: expected the beginning of names, such as users/, in which no part is . or .., \
             found \"a/../b/\"",
        ),
    ] {
        refused(&with(source, table, destination), &[expected]);
    }
}

#[test]
fn places_are_those_that_their_services_have() {
    for (table, destination, expected) in [
        (
            "events = [{ type = sns, topic_arn = changes }]",
            "",
            "4:37: snapshotter.events[0].topic_arn: expected an ARN, such as arn:aws:sns:eu-west-1:222233334444:changes, \
             found \"changes\"",
        ),
        (
            "events = [{ type = kafka, topic = changes }]",
            "",
            "4:20: snapshotter.events[0].type: \"kafka\" is not a kind of event of this version; expected sns, sqs or kinesis",
        ),
        (
            "",
            "type = s4",
            "6:8: snapshotter.destinations[0].type: \"s4\" is not a destination type of this version; expected local or s3 \
             (did you mean s3?)",
        ),
        (
            "",
            "}, { type = s3, bucket = \"s3://b/p\"",
            "6:26: snapshotter.destinations[1].bucket: expected a bucket's name, without s3:// and without slashes, \
             found \"s3://b/p\"",
        ),
        (
            "",
            "}, { type = s3, bucket = b, endpoint = \"127.0.0.1:9000\"",
            "6:40: snapshotter.destinations[1].endpoint: expected a URL that begins with http:// or https:// and names no user, \
             found \"127.0.0.1:9000\"",
        ),
        (
            "events = [{ type = sqs, queue_url = \"https://u:hunter2@h/q\" }]",
            "",
            "4:37: snapshotter.events[0].queue_url: expected a URL that begins with http:// or https:// and names no user, \
             found \"https://u:*******@h/q\"",
        ),
    ] {
        refused(&with("", table, destination), &[expected]);
    }
}

#[test]
fn formats_are_named_once_and_are_there() {
    for (formats, expected) in [
        (
            "snapshot = [parquet]",
            "snapshotter.formats.snapshot[0]: parquet is not built yet; use jsonl, jsonl.zst, protobuf or protobuf.zst",
        ),
        (
            "diff = [jsonl, protobof]",
            "snapshotter.formats.diff[1]: \"protobof\" is not a format of this version; expected jsonl, jsonl.zst, \
             protobuf or protobuf.zst (did you mean protobuf?)",
        ),
        ("diff = [jsonl, jsonl.zst, jsonl]", "snapshotter.formats.diff[2]: names jsonl twice"),
        ("snapshot = []", "snapshotter.formats.snapshot: there is no format; name one, or leave the key out for jsonl"),
    ] {
        let problems = load(&with("", &format!("formats {{ {formats} }}"), "")).expect_err("wrong");
        let is_reported = problems[0].starts_with("snapshotter.conf:4:") && problems[0].ends_with(expected);
        assert!(problems.len() == 1 && is_reported, "{problems:?}");
    }
}
