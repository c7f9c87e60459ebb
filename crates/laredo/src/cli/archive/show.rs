//! What is in an archive, and whether it is whole.

use std::process::ExitCode;

use laredo_archive::{Archive, Artifact, Kind, ReadProgress};
use serde_json::{Value, json};

use super::args::{CatArgs, LsArgs};
use super::progress::watched;
use crate::cli::error::CliError;
use crate::cli::table::{bytes, grouped, table};
use crate::cli::{print, tell};

pub(super) async fn ls(args: LsArgs) -> Result<ExitCode, CliError> {
    let archive = args.archive.open().await?;
    print(&match args.json {
        true => format!("{}\n", to_json(&archive)),
        false => to_text(&archive),
    })?;
    Ok(ExitCode::SUCCESS)
}

fn to_text(archive: &Archive) -> String {
    let manifest = archive.manifest();
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
    format!("{} at {head}, epoch {}\n{}", manifest.table, manifest.epoch, table(heading, &[3, 4], rows.collect()))
}

fn to_json(archive: &Archive) -> Value {
    let manifest = archive.manifest();
    let artifacts = manifest.artifacts.iter().map(|artifact| {
        let objects = artifact.known_formats().filter_map(|format| artifact.object(format));
        json!({
            "kind": artifact.kind,
            "epoch": artifact.epoch,
            "from_position": artifact.from_position.map(|from| from.to_string()),
            "to_position": artifact.to_position.map(|to| to.to_string()),
            "created_at": artifact.created_at,
            "entries": count(artifact),
            "objects": objects.collect::<Vec<_>>(),
        })
    });
    json!({
        "table": manifest.table,
        "epoch": manifest.epoch,
        "head_position": manifest.head_position.map(|head| head.to_string()),
        "artifacts": artifacts.collect::<Vec<_>>(),
    })
}

fn count(artifact: &Artifact) -> u64 {
    match artifact.kind {
        Kind::Snapshot => artifact.row_count,
        Kind::Diff => artifact.change_count,
    }
}

pub(super) async fn verify(args: LsArgs) -> Result<ExitCode, CliError> {
    let archive = args.archive.open().await?;
    archive.check_key()?;
    let progress = ReadProgress::default();
    let mut problems = Vec::new();
    let read = archive.verify(&progress, |damage| problems.push(damage.to_string()));
    watched("verifying", archive.bytes(), &progress, read).await;
    let artifacts = archive.manifest().artifacts.len();
    if args.json {
        print(&format!("{}\n", json!({ "artifacts": artifacts, "bytes": progress.bytes(), "problems": problems })))?;
    } else {
        problems.iter().for_each(|problem| tell(problem));
        print(&match problems.len() {
            0 => format!("whole: {artifacts} artifacts, {}, every byte is what was written\n", bytes(progress.bytes())),
            damaged => format!("damaged: {damaged} of the objects of {artifacts} artifacts\n"),
        })?;
    }
    Ok(ExitCode::from(if problems.is_empty() { 0 } else { 2 }))
}

pub(super) async fn cat(args: CatArgs) -> Result<ExitCode, CliError> {
    let archive = args.archive.open().await?;
    let progress = ReadProgress::default();
    // It is read to its end first: what is printed is what was written.
    let lines = watched("reading", archive.bytes(), &progress, archive.lines_of(&args.object, &progress)).await?;
    print(&String::from_utf8_lossy(&lines))?;
    Ok(ExitCode::SUCCESS)
}
