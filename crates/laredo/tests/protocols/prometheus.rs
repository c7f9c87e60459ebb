//! Metrics as Prometheus reads them, checked by its `promtool`, and the rules for them.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use laredo_testkit::{Cluster, eventually, promtool};
use serde_json::json;

use super::support::server::{PATIENCE, ServerProcess, ServerProcessConfig, http};
use super::support::snapshotter::{SnapshotterProcess, table as archived};
use super::{cluster, item};

/// Runs `promtool` in the folder of the rules, with an input.
fn run(arguments: &[&str], input: &str) -> Output {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/monitoring");
    let mut command = Command::new(promtool().unwrap());
    command.args(arguments).current_dir(folder).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

/// Checks that `promtool` finds nothing to complain about.
fn check(arguments: &[&str], input: &str) {
    let Output { status, stdout, stderr } = run(arguments, input);
    let [out, error] = [stdout, stderr].map(|text| String::from_utf8(text).unwrap());
    assert!(status.success(), "{out}\n{error}\n{input}");
}

/// Returns each metric of a scrape with its type.
fn types(text: &str) -> BTreeSet<(&str, &str)> {
    text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' ')).collect()
}

/// Returns the value of a series.
fn value(text: &str, series: &str) -> Option<f64> {
    text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')?.parse().ok())
}

async fn server_with_store(cluster: &Cluster, folder: &Path) -> ServerProcess {
    let path = |name: &str| serde_json::Value::from(folder.join(name).to_str().unwrap()).to_string();
    let journal = format!("journal {{ store = local, store_config {{ path = {} }} }}", path("journal"));
    let snapshots =
        format!("snapshot {{ store = local, store_config {{ path = {} }}, interval = 1h }}", path("snapshots"));
    let config = ServerProcessConfig::new(cluster.url("postgres"), [item()]).slot("laredo_prometheus");
    config.target(&journal).target(&snapshots).start().await
}

#[tokio::test(flavor = "multi_thread")]
async fn promtool_accepts_the_metrics_of_both_programs_and_the_page_has_them_all() {
    let (cluster, folder, archive) = (cluster(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let server = server_with_store(&cluster, folder.path()).await;
    let table = archived(&server.url(), &item(), archive.path(), &json!({ "diff": { "interval": "100ms" } }));
    let snapshotter = SnapshotterProcess::launch(&[table], &json!({}), &[]);
    snapshotter.ready().await;
    cluster.psql("UPDATE item SET name = 'changed' WHERE id = 1").unwrap();

    let histograms = [
        "laredo_commit_visible_seconds_count{table=\"public.item\"}",
        "laredo_copy_duration_seconds_count{table=\"public.item\"}",
        "laredo_journal_sync_seconds_count{table=\"public.item\"}",
        "laredo_stored_snapshot_write_seconds_count{table=\"public.item\"}",
    ];
    let has_observed = async || {
        let text = server.metrics().await;
        histograms.iter().all(|series| value(&text, series).is_some_and(|count| count >= 1.0))
    };
    assert!(eventually(PATIENCE, has_observed).await.is_ok(), "{}", server.metrics().await);
    let archives = async || http(snapshotter.port, "GET", "/metrics").await.unwrap().1;
    let artifacts = ["snapshot", "diff"]
        .map(|kind| format!("snapshotter_artifact_write_seconds_count{{table=\"public.item\",kind=\"{kind}\"}}"));
    let has_written = async || {
        let text = archives().await;
        artifacts.iter().all(|series| value(&text, series) == Some(1.0))
    };
    assert!(eventually(PATIENCE, has_written).await.is_ok(), "{}", archives().await);

    let page = include_str!("../../../../docs/metrics.md");
    for text in [server.metrics().await, archives().await] {
        check(&["check", "metrics"], &text);
        let found = types(&text);
        let missing: Vec<_> =
            found.iter().filter(|(name, kind)| !page.contains(&format!("| `{name}` | {kind} |"))).collect();
        assert!(found.len() > 30 && missing.is_empty(), "not in docs/metrics.md: {missing:?} of {}", found.len());
    }
    let text = server.metrics().await;
    let took = value(&text, "laredo_commit_visible_seconds_sum{table=\"public.item\"}").unwrap();
    // The database's clock is known within a round trip, so a fast commit may seem to take no time.
    assert!((0.0..PATIENCE.as_secs_f64()).contains(&took), "{took}");
    assert_eq!(value(&text, "laredo_copy_rows{table=\"public.item\"}"), None, "no copy runs");
}

#[test]
fn promtool_finds_a_name_that_breaks_the_conventions() {
    let output = run(&["check", "metrics"], "# HELP lag_ms Lag.\n# TYPE lag_ms gauge\nlag_ms 1\n");
    assert!(!output.status.success());
}

#[test]
fn promtool_accepts_the_alerts_and_their_tests_pass() {
    check(&["check", "rules", "alerts.yml"], "");
    check(&["test", "rules", "alerts-test.yml"], "");
}
