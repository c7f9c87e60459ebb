//! Reconstruction of a table's earlier states, and the differences between two of them.

use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::process::ExitCode;

use laredo_archive::{
    Archive, ArchiveBoundary, ArchivePoint, ArtifactFormat, ArtifactWriter, ReadProgress, RebuiltTable,
};
use laredo_core::{TableState, Tuple};
use laredo_postgres::{ConnectionOptions, RestoreMode, TableRestore};

use super::args::{ArchiveDiffArgs, ArchiveStateArg, ReconstructArgs};
use super::progress::with_progress_bar;
use super::rows;
use super::state_diff::differences;
use crate::cli::error::CliError;
use crate::cli::{data_output, print_message};

pub(super) async fn reconstruct(args: ReconstructArgs) -> Result<ExitCode, CliError> {
    let archive = args.archive.open_for(args.at).await?;
    let RebuiltTable { table, boundary, .. } = rebuild_state(&archive, args.at, args.exact).await?;
    if let (Some(url), Some(_)) = (&args.postgres, &args.table) {
        if args.create && !archive.has_columns(boundary.epoch)? {
            return Err(CliError::NoTypes);
        }
        restore(url, &args, &table).await?;
    } else {
        let rows = by_key(&table).into_iter();
        let written = match &args.output {
            Some(file) => to_file(file, |out| rows::write_rows(args.format, table.schema(), rows, out)),
            None => rows::write_rows(args.format, table.schema(), rows, BufWriter::new(data_output())),
        };
        written.map_err(CliError::from_format)?;
    }
    print_message(&format!("{} rows as of {}", table.len(), shown(&boundary)));
    Ok(ExitCode::SUCCESS)
}

/// Returns the rows in the order of a snapshot, so that the same state gives the same text.
fn by_key(table: &TableState) -> Vec<&Tuple> {
    let mut rows: Vec<&Tuple> = table.rows().collect();
    rows.sort_by_cached_key(|row| table.schema().key().key_of(row.as_ref()).as_ref().bytes().to_vec());
    rows
}

/// Rebuilds a state. Prints a message if the state is not the one at the position that was asked
/// for.
async fn rebuild_state(archive: &Archive, state: ArchiveStateArg, exact: bool) -> Result<RebuiltTable, CliError> {
    let ArchiveStateArg { history, at } = state;
    let chosen = history.map(|history| archive.of_history(history)).transpose()?;
    let archive = chosen.as_ref().unwrap_or(archive);
    let boundary = match at {
        ArchivePoint::Position(position) if exact => archive.exactly(position)?,
        at => archive.boundary(at)?,
    };
    if let ArchivePoint::Position(asked) = at
        && boundary.position != Some(asked)
    {
        print_message(&format!("{asked} is not a boundary; using the newest one before it, {}", shown(&boundary)));
    }
    let progress = ReadProgress::default();
    Ok(with_progress_bar("reading", boundary.bytes, &progress, archive.rebuild(at, &progress)).await?)
}

fn shown(boundary: &ArchiveBoundary) -> String {
    let position = boundary.position.map_or_else(|| "an unknown position".to_owned(), |position| position.to_string());
    format!("{position} (epoch {}, written at {})", boundary.epoch, boundary.created_at)
}

/// Writes a file atomically: the file appears complete or not at all.
fn to_file<E: From<io::Error>>(file: &Path, write: impl FnOnce(&mut dyn Write) -> Result<(), E>) -> Result<(), E> {
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file_to_be = tempfile::Builder::new();
    // The umask reduces this mode, as for any new file.
    #[cfg(unix)]
    file_to_be.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let mut out = BufWriter::new(file_to_be.tempfile_in(folder)?);
    write(&mut out)?;
    let out = out.into_inner().map_err(io::IntoInnerError::into_error)?;
    out.as_file().sync_all()?;
    out.persist(file).map_err(|error| error.error)?;
    Ok(())
}

async fn restore(url: &str, args: &ReconstructArgs, table: &TableState) -> Result<(), CliError> {
    let options = ConnectionOptions::parse(url)?;
    let Some(name) = args.table.clone() else { return Ok(()) };
    let mode = match (args.create, args.replace) {
        (true, _) => RestoreMode::Create,
        (false, true) => RestoreMode::Replace { allows_cascade: args.allow_cascade },
        (false, false) => RestoreMode::Fill,
    };
    let mut restore = TableRestore::begin(&options, name, table.schema(), mode).await?;
    restore.rows(table.schema(), table.rows(), |_| {}).await?;
    for touched in restore.commit().await? {
        print_message(&format!("rows of another table changed: {touched}"));
    }
    Ok(())
}

pub(super) async fn diff(args: ArchiveDiffArgs) -> Result<ExitCode, CliError> {
    let archive = args.archive.open().await?;
    let RebuiltTable { table: before, boundary: from, .. } = rebuild_state(&archive, args.before, args.exact).await?;
    let RebuiltTable { table: after, boundary: to, .. } = rebuild_state(&archive, args.after, args.exact).await?;
    let out = BufWriter::new(data_output());
    let lines =
        ArtifactWriter::new(ArtifactFormat::JSONL, after.schema().clone(), out).map_err(CliError::from_format)?;
    let mut lines = lines.with_old_schema(before.schema().clone());
    let changes = differences(&before, &after)?;
    for change in &changes {
        lines.change(change).map_err(CliError::from_format)?;
    }
    lines.finish().map_err(CliError::from_format)?;
    print_message(&format!("{} changes from {} to {}", changes.len(), shown(&from), shown(&to)));
    Ok(ExitCode::SUCCESS)
}
