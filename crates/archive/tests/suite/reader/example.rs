//! The example that reads an archive, as its program does.

use laredo_archive::MANIFEST_NAME;

use super::sample::SampleArchive;
use crate::scene::TABLE;

#[path = "../../../examples/read_archive.rs"]
#[expect(dead_code, reason = "the test calls what main calls")]
mod read_archive;

#[tokio::test(start_paused = true)]
async fn the_example_describes_the_newest_state_and_says_what_is_missing() {
    let sample = SampleArchive::written(&["jsonl"]).await;
    let (rows, position) = (sample.history.table.len(), sample.history.position);
    let folder = sample.path().display().to_string();
    let described = read_archive::describe_newest_state(&folder).await.unwrap();
    assert_eq!(described, format!("{TABLE} has {rows} rows at {position}"));
    std::fs::remove_file(sample.path().join(MANIFEST_NAME)).unwrap();
    let error = read_archive::describe_newest_state(&folder).await.unwrap_err().to_string();
    assert!(error.contains(&folder), "{error}");
}
