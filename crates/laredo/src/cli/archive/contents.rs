//! The contents of an archive, and the check that it is undamaged.

use std::io::Write;
use std::process::ExitCode;

use laredo_archive::{Archive, ArchivedHistory, Artifact, ArtifactKind, Manifest, ReadProgress};
use laredo_core::Lsn;
use serde_json::{Value, json};

use super::args::{ArchiveCatArgs, ArchiveListArgs};
use super::progress::with_progress_bar;
use crate::cli::error::CliError;
use crate::cli::text_table::{bytes, grouped, table};
use crate::cli::{data_output, print_message, print_output};
use crate::printable::printable;

pub(super) async fn ls(args: ArchiveListArgs) -> Result<ExitCode, CliError> {
    let archive = args.archive.open().await?;
    print_output(&match args.json {
        true => format!("{}\n", to_json(&archive)),
        false => to_text(&archive),
    })?;
    Ok(ExitCode::SUCCESS)
}

fn to_text(archive: &Archive) -> String {
    let manifest = archive.manifest();
    let histories = manifest.histories();
    let rows = manifest.artifacts.iter().flat_map(|artifact| {
        artifact.known_formats().map(move |format| {
            let stored = artifact.formats.get(format.id());
            [
                artifact.object(format).unwrap_or_default(),
                artifact.to_position.map_or_else(String::new, |to| to.to_string()),
                artifact.created_at.clone(),
                grouped(count(artifact)),
                bytes(stored.map_or(0, |stored| stored.size_bytes)),
            ]
        })
    });
    let head = manifest.head_position.map_or_else(|| "nothing yet".to_owned(), |head| head.to_string());
    let heading = ["OBJECT", "TO", "WRITTEN", "ENTRIES", "SIZE"];
    let mut text = format!("{} at {head}, epoch {}\n", printable(&manifest.table), manifest.epoch);
    if histories.len() > 1 {
        text.extend(histories.iter().map(|history| format!("{}\n", history_line(manifest, history))));
    }
    text + &table(heading, &[3, 4], rows.collect())
}

/// Describes a history: its epochs, its positions, and the part that the database has abandoned.
fn history_line(manifest: &Manifest, history: &ArchivedHistory) -> String {
    let (first, last) = (history.epochs.start(), history.epochs.end());
    let epochs = if first == last { format!("epoch {first}") } else { format!("epochs {first} to {last}") };
    let artifacts = manifest.artifacts.get(history.artifacts.clone()).unwrap_or_default();
    let position = |artifact: Option<&Artifact>| {
        let position = artifact.and_then(|artifact| artifact.to_position);
        position.map_or_else(|| "an unknown position".to_owned(), |position| position.to_string())
    };
    let state = match abandoned_after(history) {
        None => "the newest".to_owned(),
        Some(Lsn::ZERO) => format!("not part of the newest; its states are {}:POSITION", history.id),
        Some(after) => format!("not part of the newest beyond {after}; those states are {}:POSITION", history.id),
    };
    format!(
        "history {}: {epochs}, {} to {}, {state}",
        history.id,
        position(artifacts.first()),
        position(artifacts.last())
    )
}

/// Returns the position beyond which a history is not part of the newest history's past. Returns
/// `None` for the newest history.
fn abandoned_after(history: &ArchivedHistory) -> Option<Lsn> {
    (history.valid_until != Lsn(u64::MAX)).then_some(history.valid_until)
}

fn to_json(archive: &Archive) -> Value {
    let manifest = archive.manifest();
    let histories = manifest.histories();
    let artifacts = manifest.artifacts.iter().enumerate().map(|(number, artifact)| {
        let objects = artifact.known_formats().filter_map(|format| artifact.object(format));
        let history = histories.iter().find(|history| history.artifacts.contains(&number));
        let after = history.and_then(abandoned_after);
        let stated = serde_json::to_value(artifact).unwrap_or_default();
        json!({
            "kind": artifact.kind,
            "epoch": artifact.epoch,
            "history": history.map(|history| history.id),
            "is_abandoned": after.is_some_and(|after| artifact.to_position.is_none_or(|to| to > after)),
            "from_position": artifact.from_position.map(|from| from.to_string()),
            "to_position": artifact.to_position.map(|to| to.to_string()),
            "mark": stated["mark"],
            "created_at": artifact.created_at,
            "entries": count(artifact),
            "objects": objects.collect::<Vec<_>>(),
        })
    });
    let histories = histories.iter().map(|history| {
        json!({
            "id": history.id,
            "first_epoch": history.epochs.start(),
            "last_epoch": history.epochs.end(),
            "shared_until": Some(history.shared_until).filter(|shared| *shared > Lsn::ZERO).map(|shared| shared.to_string()),
            "abandoned_after": abandoned_after(history).map(|after| after.to_string()),
            "source": history.source,
        })
    });
    json!({
        "table": manifest.table,
        "epoch": manifest.epoch,
        "head_position": manifest.head_position.map(|head| head.to_string()),
        "histories": histories.collect::<Vec<_>>(),
        "artifacts": artifacts.collect::<Vec<_>>(),
    })
}

fn count(artifact: &Artifact) -> u64 {
    match artifact.kind {
        ArtifactKind::Snapshot => artifact.row_count,
        ArtifactKind::Diff => artifact.change_count,
    }
}

pub(super) async fn verify(args: ArchiveListArgs) -> Result<ExitCode, CliError> {
    let archive = args.archive.open().await?;
    archive.check_key()?;
    let progress = ReadProgress::default();
    let mut problems = Vec::new();
    let read = archive.verify(&progress, |damage| problems.push(damage.to_string()));
    with_progress_bar("verifying", archive.bytes(), &progress, read).await;
    let artifacts = archive.manifest().artifacts.len();
    if args.json {
        print_output(&format!(
            "{}\n",
            json!({ "artifacts": artifacts, "bytes": progress.bytes(), "problems": problems })
        ))?;
    } else {
        problems.iter().for_each(|problem| print_message(problem));
        print_output(&match problems.len() {
            0 => format!("whole: {artifacts} artifacts, {}, every byte is what was written\n", bytes(progress.bytes())),
            damaged => format!("damaged: {damaged} of the objects of {artifacts} artifacts\n"),
        })?;
    }
    Ok(ExitCode::from(if problems.is_empty() { 0 } else { 2 }))
}

pub(super) async fn cat(args: ArchiveCatArgs) -> Result<ExitCode, CliError> {
    let archive = args.archive.open().await?;
    let progress = ReadProgress::default();
    // The object is read to its end first, so that only checked lines are printed.
    let lines =
        with_progress_bar("reading", archive.bytes(), &progress, archive.lines_of(&args.object, &progress)).await?;
    let mut out = data_output();
    out.write_all(&lines).and_then(|()| out.flush()).map_err(CliError::Output)?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use laredo_archive::{FolderDestination, MANIFEST_NAME};

    use super::*;

    #[tokio::test]
    async fn the_name_of_an_archives_table_cannot_control_the_terminal() {
        let folder = tempfile::tempdir().unwrap();
        let table = "public.a\x1b]0;title\x07\u{9b}2J\nwhole: 9 artifacts";
        let manifest = Manifest::empty(table, "2026-01-02T03:04:05Z").to_json().unwrap();
        std::fs::write(folder.path().join(MANIFEST_NAME), manifest).unwrap();
        let archive = Archive::open(Arc::new(FolderDestination::new(folder.path())), None).await.unwrap();
        let text = to_text(&archive);
        let first = text.lines().next().unwrap();
        assert_eq!(first, "public.a\\u{1b}]0;title\\u{7}\\u{9b}2J\\nwhole: 9 artifacts at nothing yet, epoch 0");
        assert!(!text.replace('\n', "").contains(char::is_control), "{text}");
    }
}
