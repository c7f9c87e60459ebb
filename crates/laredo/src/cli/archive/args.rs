//! Command-line arguments of `laredo archive`.

use std::path::PathBuf;
use std::time::SystemTime;

use clap::{Subcommand, ValueEnum};
use laredo_archive::{ArchivePoint, DestinationUri};
use laredo_core::TableName;

#[derive(Debug, Subcommand)]
pub(in super::super) enum ArchiveCommand {
    /// Print the artifacts of an archive, and the states that it rebuilds.
    Ls(ArchiveListArgs),
    /// Read every object to its end, and compare it with the manifest. Exit code 2
    /// if anything is wrong.
    Verify(ArchiveListArgs),
    /// Print the rows of a snapshot, or the changes of a diff, as lines of JSON.
    Cat(ArchiveCatArgs),
    /// Print the differences between two states of a table, as a diff's lines of JSON.
    Diff(ArchiveDiffArgs),
    /// Rebuild a table as it was: as lines of JSON, as CSV, or into a table of PostgreSQL.
    ///
    /// Nothing is written before every object was read and checked.
    Reconstruct(ReconstructArgs),
    /// Write a table of a database to an archive, once, without a server. Exactly as it is at a
    /// position of its WAL.
    Export(ExportArgs),
}

/// An archive that is read.
#[derive(Debug, clap::Args)]
pub(super) struct ArchiveReadArgs {
    #[command(flatten)]
    pub(super) place: ArchiveLocationArgs,
    /// The columns of the table's key, in its order, for an archive of another program whose
    /// manifest does not name them.
    #[arg(long, value_name = "COLUMN", value_delimiter = ',')]
    pub(super) key_fields: Vec<String>,
}

#[derive(Debug, clap::Args)]
pub(super) struct ArchiveLocationArgs {
    /// The archive: a folder, or s3://BUCKET/PREFIX. It is where manifest.json is.
    #[arg(value_name = "ARCHIVE")]
    pub(super) place: DestinationUri,
    #[command(flatten)]
    pub(super) store: S3AccessArgs,
}

/// The access to an S3 archive. Credentials come from the environment, as the AWS command line
/// takes them.
#[derive(Debug, clap::Args)]
pub(super) struct S3AccessArgs {
    /// The bucket's region, unless the environment sets it.
    #[arg(long, value_name = "REGION")]
    pub(super) region: Option<String>,
    /// Another endpoint than AWS's, for stores that are compatible with S3.
    #[arg(long, value_name = "URL")]
    pub(super) endpoint: Option<String>,
    /// Put the bucket into the path of URLs, and not into the host name.
    #[arg(long)]
    pub(super) force_path_style: bool,
}

#[derive(Debug, clap::Args)]
pub(in super::super) struct ArchiveListArgs {
    #[command(flatten)]
    pub(super) archive: ArchiveReadArgs,
    /// Print JSON.
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, clap::Args)]
pub(in super::super) struct ArchiveCatArgs {
    #[command(flatten)]
    pub(super) archive: ArchiveReadArgs,
    /// The artifact's object, as `ls` names it: epoch=1/diff-0_19F000-0_1A2B3C.jsonl
    #[arg(value_name = "OBJECT")]
    pub(super) object: String,
}

#[derive(Debug, clap::Args)]
pub(in super::super) struct ArchiveDiffArgs {
    #[command(flatten)]
    pub(super) archive: ArchiveReadArgs,
    /// The state before: a position such as 0/19F000, a time such as 2026-01-02T03:04:05Z, or
    /// `latest`. With `N:` before it (`2:0/19F000`) it is a state of history N, as `ls` numbers
    /// them.
    #[arg(value_name = "A", value_parser = state)]
    pub(super) before: ArchiveStateArg,
    /// The state after.
    #[arg(value_name = "B", value_parser = state)]
    pub(super) after: ArchiveStateArg,
    /// Accept only boundaries: a position that is not a boundary is an error.
    #[arg(long)]
    pub(super) exact: bool,
}

#[derive(Debug, clap::Args)]
pub(in super::super) struct ReconstructArgs {
    #[command(flatten)]
    pub(super) archive: ArchiveReadArgs,
    /// Which state: a position such as 0/19F000, a time such as 2026-01-02T03:04:05Z, or `latest`.
    /// For a position that is not a boundary, the newest boundary before it is used, and printed.
    /// With `N:` before it (`2:0/19F000`) it is a state of history N, as `ls` numbers them;
    /// otherwise of the newest history.
    #[arg(long, value_name = "[N:]LSN|TIME|latest", default_value = "latest", value_parser = state)]
    pub(super) at: ArchiveStateArg,
    /// Accept only a boundary: a position that is not a boundary is an error.
    #[arg(long)]
    pub(super) exact: bool,
    /// The format of the rows.
    #[arg(long, value_enum, default_value = "jsonl", conflicts_with = "postgres")]
    pub(super) format: RowFormat,
    /// The file to write, which is there whole or not at all; standard output unless it is given.
    #[arg(long, value_name = "FILE", conflicts_with = "postgres")]
    pub(super) output: Option<PathBuf>,
    /// A database to write to, as postgresql://USER@HOST/DATABASE. The password comes from
    /// PGPASSWORD or ~/.pgpass, as for psql.
    #[arg(long, value_name = "URL", requires = "table")]
    pub(super) postgres: Option<String>,
    /// The table that receives the rows, all of them or none; it must exist, and be empty.
    #[arg(long, value_name = "SCHEMA.TABLE", requires = "postgres")]
    pub(super) table: Option<TableName>,
    /// Create the table.
    #[arg(long, requires = "postgres", conflicts_with = "replace")]
    pub(super) create: bool,
    /// Replace the rows of the table.
    #[arg(long, requires = "postgres")]
    pub(super) replace: bool,
    /// Let rows of other tables change with the replaced ones: by ON DELETE CASCADE, SET NULL or
    /// SET DEFAULT, by triggers, by rules.
    #[arg(long, requires = "replace")]
    pub(super) allow_cascade: bool,
}

/// The format of rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum RowFormat {
    /// A JSON object on each line, as in the archive.
    Jsonl,
    /// With a heading; NULL is an empty field, an empty text is "", arrays and objects are JSON.
    Csv,
}

#[derive(Debug, clap::Args)]
pub(in super::super) struct ExportArgs {
    #[command(flatten)]
    pub(super) archive: ArchiveLocationArgs,
    /// The database, as postgresql://USER@HOST/DATABASE. The password comes from PGPASSWORD or
    /// ~/.pgpass, as for psql.
    #[arg(long, value_name = "URL")]
    pub(super) postgres: String,
    /// The table.
    #[arg(long, value_name = "SCHEMA.TABLE")]
    pub(super) table: TableName,
    /// A publication that has the table. By default, one is created, and dropped at the end.
    #[arg(long, value_name = "NAME")]
    pub(super) publication: Option<String>,
    /// The format; may be given several times.
    #[arg(long = "format", value_name = "FORMAT", default_value = "jsonl")]
    pub(super) formats: Vec<laredo_archive::ArtifactFormat>,
    /// Take over an archive from its writer, which then stops.
    #[arg(long)]
    pub(super) take_over: bool,
}

/// A state of an archive, as given on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ArchiveStateArg {
    /// The number of the state's history; the newest history if `None`.
    pub(super) history: Option<u64>,
    pub(super) at: ArchivePoint,
}

fn state(text: &str) -> Result<ArchiveStateArg, String> {
    // The colons of a time come after a dash, so they do not follow a number.
    let numbered = text.split_once(':').and_then(|(number, rest)| Some((number.parse().ok()?, rest)));
    match numbered {
        Some((history, rest)) => Ok(ArchiveStateArg { history: Some(history), at: parse_state_point(rest)? }),
        None => Ok(ArchiveStateArg { history: None, at: parse_state_point(text)? }),
    }
}

fn parse_state_point(text: &str) -> Result<ArchivePoint, String> {
    if text == "latest" {
        return Ok(ArchivePoint::Latest);
    }
    if let Ok(position) = text.parse() {
        return Ok(ArchivePoint::Position(position));
    }
    let time = text.parse::<prost_types::Timestamp>().ok().and_then(|time| SystemTime::try_from(time).ok());
    time.map(ArchivePoint::Time)
        .ok_or_else(|| "write a position such as 0/19F000, a time such as 2026-01-02T03:04:05Z, or `latest`".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_history_is_named_before_a_state() {
        let position = ArchivePoint::Position(laredo_core::Lsn(0x19F000));
        assert_eq!(state("0/19F000"), Ok(ArchiveStateArg { history: None, at: position }));
        assert_eq!(state("12:0/19F000"), Ok(ArchiveStateArg { history: Some(12), at: position }));
        assert_eq!(state("2:latest"), Ok(ArchiveStateArg { history: Some(2), at: ArchivePoint::Latest }));
        let time = "2026-01-02T03:04:05Z";
        assert_eq!(state(time), Ok(ArchiveStateArg { history: None, at: parse_state_point(time).unwrap() }));
        assert_eq!(
            state(&format!("7:{time}")),
            Ok(ArchiveStateArg { history: Some(7), at: parse_state_point(time).unwrap() })
        );
        for wrong in [":0/1", "x:0/1", "1:", "1:2:0/1", "-1:0/1"] {
            assert!(state(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn states_are_named_by_position_time_or_latest() {
        assert_eq!(parse_state_point("latest"), Ok(ArchivePoint::Latest));
        assert_eq!(parse_state_point("16/B374D848"), Ok(ArchivePoint::Position(laredo_core::Lsn(0x16_B374_D848))));
        let day = std::time::Duration::from_secs(86_400);
        assert_eq!(parse_state_point("1970-01-02T00:00:00Z"), Ok(ArchivePoint::Time(SystemTime::UNIX_EPOCH + day)));
        for wrong in ["", "yesterday", "0/", "2026-13-01T00:00:00Z"] {
            assert!(parse_state_point(wrong).unwrap_err().contains("latest"), "{wrong}");
        }
    }
}
