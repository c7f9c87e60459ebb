//! The commands that print an archive.

use serde_json::{Value, json};

use crate::pipeline::{ArchivePipeline, HISTORY, PipelineArchive, THINGS, answer, laredo, manifest, objects, refusal};

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_is_listed_shown_and_compared() {
    let archives = ["jsonl", "protobuf", "protobuf.zst"].map(|format| (format, [format]));
    let archives = archives.each_ref().map(|(name, formats)| PipelineArchive { table: "things", formats, name });
    let pipeline = ArchivePipeline::start(THINGS, &archives).await;
    let heads = pipeline.write_history().await;
    pipeline.end().await;
    let archive = pipeline.archive("jsonl");
    let (place, objects) = (archive.to_str().unwrap(), objects(&archive));

    let text = answer(&["ls", place]);
    let head = format!("public.things at {}, epoch 1\n", heads[5]);
    assert!(text.starts_with(&head) && objects.iter().all(|object| text.contains(object.as_str())), "{text}");
    assert_eq!(text.lines().count(), 2 + objects.len(), "{text}");
    let listed: Value = serde_json::from_str(&answer(&["ls", place, "--json"])).unwrap();
    assert_eq!(
        (&listed["table"], &listed["epoch"], &listed["head_position"]),
        (&json!("public.things"), &json!(1), &json!(heads[5]))
    );
    let artifacts = listed["artifacts"].as_array().unwrap();
    let shown: Vec<_> =
        artifacts.iter().map(|one| json!([one["kind"], one["from_position"], one["to_position"]])).collect();
    let spans = heads.windows(2).map(|pair| json!(["diff", pair[0], pair[1]]));
    assert_eq!(shown, [json!(["snapshot", null, heads[0]])].into_iter().chain(spans).collect::<Vec<_>>());
    assert_eq!((&artifacts[0]["entries"], &artifacts[0]["objects"]), (&json!(5), &json!([objects[0]])));

    let whole = answer(&["verify", place]);
    assert!(whole.starts_with("whole: 6 artifacts, "), "{whole}");
    let whole: Value = serde_json::from_str(&answer(&["verify", place, "--json"])).unwrap();
    assert_eq!((&whole["artifacts"], &whole["problems"]), (&json!(6), &json!([])));

    shows_each_form_alike(&pipeline);
    takes_boundaries(place, &heads, &archive);
    compares(place, &heads);
}

/// Checks that an object of any format is printed as its jsonl lines.
fn shows_each_form_alike(pipeline: &ArchivePipeline) {
    let [plain, others @ ..] = ["jsonl", "protobuf", "protobuf.zst"].map(|name| pipeline.archive(name));
    for (number, object) in objects(&plain).iter().enumerate() {
        let bytes = std::fs::read_to_string(plain.join(object)).unwrap();
        let text = answer(&["cat", plain.to_str().unwrap(), object]);
        assert_eq!(text, bytes, "{object}");
        for other in &others {
            let object = objects(other).remove(number);
            assert_eq!(lines(&answer(&["cat", other.to_str().unwrap(), &object])), lines(&text), "{object}");
        }
    }
    let said = refusal(&["cat", plain.to_str().unwrap(), "epoch=9/snapshot-0_1.jsonl"]);
    assert!(said.contains("manifest.json names no object epoch=9/snapshot-0_1.jsonl"), "{said}");
}

fn takes_boundaries(place: &str, heads: &[String], archive: &std::path::Path) {
    let (code, rows, said) = laredo(&["reconstruct", place]);
    assert_eq!((code, rows.lines().count()), (Some(0), 1), "{said}");
    assert!(said.contains(&format!("1 rows as of {} (epoch 1, written at 2", heads[5])), "{said}");
    assert_eq!(laredo(&["reconstruct", place, "--at", "latest"]).1, rows);
    assert_eq!(laredo(&["reconstruct", place, "--at", &heads[5], "--exact"]).1, rows);

    let between: laredo_core::Lsn = heads[2].parse().unwrap();
    let between = laredo_core::Lsn(between.0 - 1).to_string();
    let (code, rows, said) = laredo(&["reconstruct", place, "--at", &between]);
    assert_eq!((code, rows.lines().count()), (Some(0), 6), "{said}");
    assert!(
        said.contains(&format!("{between} is not a boundary; using the newest one before it, {} (epoch 1", heads[1])),
        "{said}"
    );
    let said = refusal(&["reconstruct", place, "--at", &between, "--exact"]);
    assert!(
        said.contains(&format!("{between} is not a boundary of the archive; the newest one before it is {}", heads[1])),
        "{said}"
    );
    let said = refusal(&["reconstruct", place, "--at", "0/1"]);
    assert!(said.contains(&format!("no state at or before 0/1; its oldest one is {}", heads[0])), "{said}");

    let written = manifest(archive)["artifacts"][3]["created_at"].as_str().unwrap().to_owned();
    let (code, rows, said) = laredo(&["reconstruct", place, "--at", &written]);
    assert_eq!((code, rows.lines().count()), (Some(0), 5), "{said}");
    assert!(said.contains(&format!("as of {} (epoch 1, written at {written})", heads[3])), "{said}");
    let said = refusal(&["reconstruct", place, "--at", "2001-01-01T00:00:00Z"]);
    assert!(said.contains("no state at or before 2001-01-01T00:00:00Z"), "{said}");
    let (code, _, said) = laredo(&["reconstruct", place, "--at", "yesterday"]);
    assert!(code == Some(2) && said.contains("0/19F000"), "{said}");
}

/// Compares states of the archive, in both directions.
fn compares(place: &str, heads: &[String]) {
    let (code, out, said) = laredo(&["diff", place, &heads[0], &heads[1], "--exact"]);
    assert_eq!(code, Some(0), "{said}");
    let mut actions: Vec<_> = lines(&out).iter().map(|line| line["action"].as_str().unwrap().to_owned()).collect();
    actions.sort_unstable();
    assert_eq!(actions, ["INSERT", "UPDATE", "UPDATE"], "{out}");
    assert!(said.contains(&format!("3 changes from {} (epoch 1, ", heads[0])) && said.contains(&heads[1]), "{said}");
    let back = lines(&answer(&["diff", place, &heads[1], &heads[0]]));
    let deleted: Vec<_> = back.iter().filter(|line| line["action"] == "DELETE").collect();
    assert_eq!((back.len(), &deleted[0]["old"]["note"]), (3, &json!("new")));
    assert_eq!(answer(&["diff", place, "latest", &heads[HISTORY.len()]]), "");
    assert!(refusal(&["diff", place, "0/1", "latest"]).contains("no state at or before 0/1"));
}
