//! Command-line arguments of `laredo`.

use std::time::Duration;

use clap::{Parser, Subcommand};
use laredo_core::TableName;

use super::archive::{ArchiveCommand, ArchiveCompareArgs};
use super::connect::TlsArgs;
use crate::command_files::{CompletionsArguments, ManualArguments};
use crate::program::ConfigPlaceArguments;

const EXIT_CODES: &str = "Exit codes:\n  0  done; `status`, `ready`: ready; `tail`, `watch`: ended by Ctrl-C or by its reader\n  \
                          1  `status`, `ready`: not ready; a command that the server did not accept\n  2  an error; standard error has the message";

const CONFIG_EXIT_CODES: &str = "Exit codes:\n  0  `reload`: applied; `diff`: a reload would be applied, or has nothing to change\n  \
                                 1  `reload`: not applied; `diff`: a reload would not be applied; the reasons are printed\n  \
                                 2  an error; standard error has the message";

const VERIFY_EXIT_CODES: &str = "Exit codes:\n  0  every row is equal to the database's\n  1  rows differ, or with --clients \
                                 a client did not answer\n  \
                                 2  the table could not be verified; standard error has the message";

const QUERY_EXIT_CODES: &str = "Exit codes:\n  0  the rows were printed\n  1  no row has these values\n  \
                                2  an error; standard error has the message";

const DROP_EXIT_CODES: &str = "Exit codes:\n  0  dropped, or nothing was left\n  1  the answer was no, and nothing was dropped\n  \
                               2  an error; standard error says what is left";

/// Inspect and control laredo: live changes of a table, the state of a server and its clients,
/// draining and reloading.
#[derive(Debug, Parser)]
#[command(name = "laredo", version, after_help = EXIT_CODES)]
pub(super) struct LaredoArgs {
    #[command(subcommand)]
    pub(super) command: LaredoCommand,
}

#[derive(Debug, Subcommand)]
pub(super) enum LaredoCommand {
    /// Print a table's changes as they happen, one line each.
    ///
    /// On a terminal a line is for people; otherwise it is JSON: {"action", "position",
    /// "committed_at", "key", "old", "new"}. It keeps a copy of the rows that pass the filters in
    /// memory, to show the old row of each change.
    #[command(after_help = EXIT_CODES)]
    Tail(TailArgs),
    /// Show whether a server is ready, and the state of each of its tables.
    #[command(after_help = EXIT_CODES)]
    Status(StatusArgs),
    /// Show a server on the whole screen: its tables with their rates, and the clients of the
    /// selected one.
    ///
    /// Tables that are not well come first. Keys select a table and change the order.
    #[cfg(feature = "top")]
    #[command(after_help = EXIT_CODES)]
    Top(TopArgs),
    /// Show the journal and the clients of a table.
    #[command(subcommand, after_help = EXIT_CODES)]
    Fanout(FanoutCommand),
    /// Ask the clients of a table, or of all tables, to go to another server.
    ///
    /// No new clients are accepted until the server is restarted. When all tables are drained, the
    /// server is no longer ready.
    #[command(after_help = EXIT_CODES)]
    Drain(DrainArgs),
    /// Copy a table, or all tables, from the database again. Clients are sent what differs.
    #[command(after_help = EXIT_CODES)]
    Reload(ReloadArgs),
    /// Compare a server's configuration files with its running configuration, or apply them.
    #[command(subcommand, after_help = CONFIG_EXIT_CODES)]
    Config(ConfigCommand),
    /// Compare a table with the database, row by row, as both are at one moment. The server
    /// continues to serve it.
    ///
    /// Rows that differ are printed, and the table is copied again, so that clients are sent what
    /// differs.
    #[command(after_help = VERIFY_EXIT_CODES)]
    Verify(VerifyArgs),
    /// Drop a source's slot and make it again, then copy all its tables from the database again.
    /// Clients keep what they have, and are sent what differs.
    #[command(after_help = EXIT_CODES)]
    ResetSource(ResetSourceArgs),
    /// Stop following a source, or all of them, until `resume`. PostgreSQL keeps its WAL meanwhile.
    #[command(after_help = EXIT_CODES)]
    Pause(SourceArgs),
    /// Follow a source again, or all of them, after `pause`.
    #[command(after_help = EXIT_CODES)]
    Resume(SourceArgs),
    /// Show the position of a source, or of each source; or retire one with `source drop`.
    #[command(after_help = EXIT_CODES)]
    Source(SourceCommandArgs),
    /// Print the tables that a server follows, with their keys, sources and targets.
    #[command(after_help = EXIT_CODES)]
    Tables(OamArgs),
    /// Print the pipelines of a server, each of which fills one target from one table, with the
    /// changes that they have applied.
    #[command(after_help = EXIT_CODES)]
    Pipelines(OamArgs),
    /// Print a table's columns.
    #[command(after_help = EXIT_CODES)]
    Schema(SchemaArgs),
    /// Print rows of a table as the server has them, one line of JSON each.
    ///
    /// The values are those of the table's key, or of an index. Without values all rows are
    /// printed, as they are at one commit. The table answers if its target has `query = true`.
    #[command(after_help = QUERY_EXIT_CODES)]
    Query(QueryArgs),
    /// Print the state of the server and of its tables, and each change of it, until Ctrl-C.
    #[command(after_help = EXIT_CODES)]
    Watch(WatchArgs),
    /// Show whether a table, or the whole server, is ready, and the reasons if it is not.
    #[command(after_help = EXIT_CODES)]
    Ready(ReadyArgs),
    /// Manage the snapshots that a server keeps of its tables.
    #[command(subcommand, after_help = EXIT_CODES)]
    Snapshot(SnapshotCommand),
    /// Inspect an archive that laredo-snapshotter has written, and rebuild the table from it.
    #[command(subcommand, after_help = EXIT_CODES)]
    Archive(ArchiveCommand),
    /// Create or drop the event trigger that writes changes of definitions into the stream, for
    /// `ddl.watch = trigger`.
    #[command(subcommand, after_help = EXIT_CODES)]
    Ddl(DdlCommand),
    /// Make a token for a caller of a server, or print the hash of one.
    #[command(subcommand, after_help = EXIT_CODES)]
    Token(TokenCommand),
    /// Print the completions of this program for a shell.
    #[command(after_help = EXIT_CODES)]
    Completions(CompletionsArguments),
    /// Write the pages of the manual, for this program and its commands, to a folder.
    #[command(after_help = EXIT_CODES)]
    Man(ManualArguments),
}

#[derive(Debug, Subcommand)]
pub(super) enum TokenCommand {
    /// Make a token, and print it with the hash that the server's configuration needs.
    ///
    /// The token is printed once and kept nowhere. Its owner sends it, and the server knows only
    /// the hash (`access.identities.NAME.tokens`).
    #[command(after_help = EXIT_CODES)]
    New(TokenArgs),
    /// Print the hash of a token that is read from standard input.
    #[command(after_help = EXIT_CODES)]
    Hash(TokenArgs),
}

#[derive(Debug, clap::Args)]
pub(super) struct TokenArgs {
    /// Print JSON.
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Subcommand)]
pub(super) enum DdlCommand {
    /// Create the event trigger. PostgreSQL lets only a superuser do this, or the role that a
    /// provider has for it.
    #[command(after_help = EXIT_CODES)]
    Install(DdlArgs),
    /// Drop the event trigger. A server then reads the catalog every 10 s.
    #[command(after_help = EXIT_CODES)]
    Remove(DdlArgs),
}

#[derive(Debug, clap::Args)]
pub(super) struct DdlArgs {
    /// The database, as postgresql://USER@HOST/DATABASE. The password comes from PGPASSWORD or
    /// ~/.pgpass, as for psql.
    #[arg(long, value_name = "URL", required_unless_present = "print")]
    pub(super) postgres: Option<String>,
    /// Print the statements instead of running them.
    #[arg(long)]
    pub(super) print: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct OamArgs {
    /// The server's `grpc.port`; https:// for TLS.
    #[arg(long, value_name = "URL", env = "LAREDO_OAM", default_value = "http://127.0.0.1:4001", value_parser = url)]
    pub(super) oam: String,
    #[command(flatten)]
    pub(super) tls: TlsArgs,
    /// The time to wait for an answer.
    #[arg(long, value_name = "SECONDS", default_value = "5", value_parser = seconds)]
    pub(super) timeout: Duration,
    /// Print JSON.
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct DrainArgs {
    /// The table; all of them unless it is given.
    #[arg(value_name = "SCHEMA.TABLE")]
    pub(super) table: Option<TableName>,
    /// Disconnect the remaining clients after this time. Without it, they may stay until the server
    /// ends.
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub(super) deadline: Option<Duration>,
    #[command(flatten)]
    pub(super) oam: OamArgs,
}

#[derive(Debug, clap::Args)]
#[group(id = "what", required = true, multiple = false, args = ["table", "all"])]
pub(super) struct ReloadArgs {
    /// The table, as the database spells it.
    #[arg(value_name = "SCHEMA.TABLE")]
    pub(super) table: Option<TableName>,
    /// All tables.
    #[arg(long)]
    pub(super) all: bool,
    #[command(flatten)]
    pub(super) oam: OamArgs,
}

#[derive(Debug, clap::Args)]
pub(super) struct VerifyArgs {
    /// The table, as the database spells it.
    #[arg(value_name = "SCHEMA.TABLE")]
    pub(super) table: TableName,
    /// Leave the table as it is where rows differ.
    #[arg(long)]
    pub(super) no_heal: bool,
    /// Print the values of the rows that differ, and not only their keys and columns.
    #[arg(long)]
    pub(super) values: bool,
    /// Make the connected clients compare their rows with the server's, too.
    #[arg(long)]
    pub(super) clients: bool,
    /// The maximum speed of reading, in MiB of rows per second.
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u32).range(1..))]
    pub(super) rate: Option<u32>,
    #[command(flatten)]
    pub(super) compare: ArchiveCompareArgs,
    #[command(flatten)]
    pub(super) oam: OamArgs,
}

#[derive(Debug, clap::Args)]
pub(super) struct ResetSourceArgs {
    /// The source's name in the configuration.
    #[arg(value_name = "SOURCE")]
    pub(super) source: String,
    /// Confirm the reset. Without it, the server refuses, and answers what it would do.
    #[arg(long)]
    pub(super) confirm: bool,
    /// Create the publication again, too, with only this source's tables. Other readers of the
    /// publication lose their tables.
    #[arg(long)]
    pub(super) drop_publication: bool,
    #[command(flatten)]
    pub(super) oam: OamArgs,
}

#[derive(Debug, clap::Args)]
pub(super) struct SourceArgs {
    /// The source's name in the configuration; all of them unless it is given.
    #[arg(value_name = "SOURCE")]
    pub(super) source: Option<String>,
    #[command(flatten)]
    pub(super) oam: OamArgs,
}

#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct SourceCommandArgs {
    #[command(subcommand)]
    pub(super) command: Option<SourceCommand>,
    #[command(flatten)]
    pub(super) position: SourceArgs,
}

#[derive(Debug, Subcommand)]
pub(super) enum ConfigCommand {
    /// Print what a reload would change, and why it would not be applied. Nothing is changed.
    ///
    /// The server reads its own files again, checks them, and asks its databases about new tables.
    #[command(after_help = CONFIG_EXIT_CODES)]
    Diff(OamArgs),
    /// Apply the configuration files, without a restart. Streams of other tables continue.
    ///
    /// Tables are added, removed, and begun again with other options. The log level, access rules,
    /// and the limits of clients change at once. If a key needs a restart, or anything else is
    /// wrong, nothing is applied. SIGHUP does the same.
    #[command(after_help = CONFIG_EXIT_CODES)]
    Reload(ConfigReloadArgs),
}

#[derive(Debug, clap::Args)]
pub(super) struct ConfigReloadArgs {
    /// Apply the rest if some keys need a restart.
    #[arg(long)]
    pub(super) skip_restart: bool,
    #[command(flatten)]
    pub(super) oam: OamArgs,
}

#[derive(Debug, Subcommand)]
pub(super) enum SourceCommand {
    /// Retire a source for good: drop its slot and its publication, and remove the folders of its
    /// tables.
    ///
    /// It reads the configuration of the server, which must be stopped. It shows what it would drop
    /// and asks before it does.
    #[command(after_help = DROP_EXIT_CODES)]
    Drop(SourceDropArgs),
}

#[derive(Debug, clap::Args)]
pub(super) struct SourceDropArgs {
    /// The source's name in the configuration; not needed if there is only one.
    #[arg(value_name = "SOURCE")]
    pub(super) source: Option<String>,
    #[command(flatten)]
    pub(super) config: ConfigPlaceArguments,
    /// Drop without asking.
    #[arg(long)]
    pub(super) yes: bool,
    /// Keep the publication.
    #[arg(long, conflicts_with = "drop_publication")]
    pub(super) keep_publication: bool,
    /// Drop the publication even if laredo has not made it, or if others may read it.
    #[arg(long)]
    pub(super) drop_publication: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct SchemaArgs {
    /// The table, as the database spells it.
    #[arg(value_name = "SCHEMA.TABLE")]
    pub(super) table: TableName,
    #[command(flatten)]
    pub(super) oam: OamArgs,
}

#[derive(Debug, clap::Args)]
pub(super) struct QueryArgs {
    /// The table, as the database spells it.
    #[arg(value_name = "SCHEMA.TABLE")]
    pub(super) table: TableName,
    /// The values of the key's columns, or of the index's, in their order.
    #[arg(value_name = "VALUE", allow_negative_numbers = true)]
    pub(super) values: Vec<String>,
    /// The index that the values are of, instead of the table's key.
    #[arg(long, value_name = "NAME", requires = "values")]
    pub(super) index: Option<String>,
    /// Only rows whose COLUMN is VALUE, as the command prints it; may be given several times, then
    /// all must hold. The server sends all rows for it, so an index is faster.
    #[arg(long = "where", value_name = "COLUMN=VALUE", value_parser = pair, conflicts_with_all = ["values", "count"])]
    pub(super) conditions: Vec<(String, String)>,
    /// The oldest state that may answer, as a position such as pg_current_wal_lsn().
    #[arg(long, value_name = "POSITION", default_value = "")]
    pub(super) at_least: String,
    /// Print the number of rows, and not the rows.
    #[arg(long, conflicts_with = "values")]
    pub(super) count: bool,
    /// The server's OAM address; https:// for TLS.
    #[arg(long, value_name = "URL", env = "LAREDO_OAM", default_value = "http://127.0.0.1:4001", value_parser = url)]
    pub(super) oam: String,
    #[command(flatten)]
    pub(super) tls: TlsArgs,
    /// The time to wait for each answer.
    #[arg(long, value_name = "SECONDS", default_value = "15", value_parser = seconds)]
    pub(super) timeout: Duration,
}

#[derive(Debug, clap::Args)]
pub(super) struct WatchArgs {
    /// Only these tables; all of them unless one is given.
    #[arg(value_name = "SCHEMA.TABLE")]
    pub(super) tables: Vec<TableName>,
    #[command(flatten)]
    pub(super) oam: OamArgs,
}

#[derive(Debug, clap::Args)]
pub(super) struct ReadyArgs {
    /// The table; all of them unless it is given.
    #[arg(value_name = "SCHEMA.TABLE")]
    pub(super) table: Option<TableName>,
    #[command(flatten)]
    pub(super) oam: OamArgs,
}

#[derive(Debug, Subcommand)]
pub(super) enum SnapshotCommand {
    /// Write a snapshot now, and print its id once it is on disk.
    #[command(mut_arg("timeout", |timeout| timeout.default_value(LONG_SECONDS)))]
    Create(SnapshotCreateArgs),
    /// Print the snapshots, the newest first.
    List(SnapshotListArgs),
    /// Read a whole snapshot, and describe it if every byte is what was written.
    #[command(mut_arg("timeout", |timeout| timeout.default_value(LONG_SECONDS)))]
    Inspect(SnapshotIdArgs),
    /// Serve the rows of a snapshot, as old as they are, until the first copy of the table is
    /// complete.
    ///
    /// A table that is served already is never sent back in time; `reload` copies it again.
    #[command(mut_arg("timeout", |timeout| timeout.default_value(LONG_SECONDS)))]
    Restore(SnapshotRestoreArgs),
    /// Remove a snapshot. The newest of a table is not removed: a restart continues from it.
    Delete(SnapshotIdArgs),
    /// Remove all but the newest snapshots.
    Prune(SnapshotPruneArgs),
}

/// The default timeout, in seconds, of the commands that read or write whole tables.
const LONG_SECONDS: &str = "600";

#[derive(Debug, clap::Args)]
pub(super) struct SnapshotCreateArgs {
    /// The tables; all that have a snapshot store unless one is given.
    #[arg(value_name = "SCHEMA.TABLE")]
    pub(super) tables: Vec<TableName>,
    /// A note to keep with the snapshot; may be given several times.
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair)]
    pub(super) meta: Vec<(String, String)>,
    #[command(flatten)]
    pub(super) oam: OamArgs,
}

#[derive(Debug, clap::Args)]
pub(super) struct SnapshotListArgs {
    /// Only of this table.
    #[arg(value_name = "SCHEMA.TABLE")]
    pub(super) table: Option<TableName>,
    /// The maximum number; 0 for all.
    #[arg(long, value_name = "COUNT", default_value = "0", value_parser = clap::value_parser!(i32).range(0..))]
    pub(super) limit: i32,
    #[command(flatten)]
    pub(super) oam: OamArgs,
}

#[derive(Debug, clap::Args)]
pub(super) struct SnapshotIdArgs {
    /// The snapshot, as `snapshot list` names it.
    #[arg(value_name = "SNAPSHOT")]
    pub(super) id: String,
    #[command(flatten)]
    pub(super) oam: OamArgs,
}

#[derive(Debug, clap::Args)]
pub(super) struct SnapshotRestoreArgs {
    /// The snapshot, as `snapshot list` names it.
    #[arg(value_name = "SNAPSHOT")]
    pub(super) id: String,
    /// Confirm that rows of any age may be served.
    #[arg(long)]
    pub(super) confirm: bool,
    #[command(flatten)]
    pub(super) oam: OamArgs,
}

#[derive(Debug, clap::Args)]
pub(super) struct SnapshotPruneArgs {
    /// The number of snapshots that stay, of each table.
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(i32).range(1..))]
    pub(super) keep: i32,
    /// Only of this table.
    #[arg(value_name = "SCHEMA.TABLE")]
    pub(super) table: Option<TableName>,
    #[command(flatten)]
    pub(super) oam: OamArgs,
}

#[derive(Debug, Subcommand)]
pub(super) enum FanoutCommand {
    /// Print what a table's journal holds, and for how many clients.
    Status(FanoutArgs),
    /// Print the clients that follow a table.
    Clients(FanoutArgs),
}

#[derive(Debug, clap::Args)]
pub(super) struct TailArgs {
    /// The table, as the database spells it: case counts. A schema with a dot in its name is
    /// written in double quotes.
    #[arg(value_name = "SCHEMA.TABLE")]
    pub(super) table: TableName,
    #[command(flatten)]
    pub(super) server: FanoutServerArgs,
    /// Only rows whose FIELD is VALUE; may be given several times, then all must hold.
    #[arg(long = "filter", value_name = "FIELD=VALUE", value_parser = pair)]
    pub(super) filters: Vec<(String, String)>,
    /// Only rows whose FIELD begins with PREFIX; may be given several times, then all must hold.
    #[arg(long = "filter-prefix", value_name = "FIELD=PREFIX", value_parser = pair)]
    pub(super) prefixes: Vec<(String, String)>,
    /// Print the rows that are there first, in no order.
    #[arg(long)]
    pub(super) snapshot: bool,
    /// Print JSON lines, on a terminal too.
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct StatusArgs {
    /// The server's health endpoint, https:// for TLS; its path is /health/ready unless another one
    /// is given.
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8080", value_parser = http_url)]
    pub(super) health: String,
    #[command(flatten)]
    pub(super) tls: TlsArgs,
    /// The time to wait for an answer.
    #[arg(long, value_name = "SECONDS", default_value = "5", value_parser = seconds)]
    pub(super) timeout: Duration,
    /// Print the server's answer as JSON.
    #[arg(long)]
    pub(super) json: bool,
}

#[cfg(feature = "top")]
#[derive(Debug, clap::Args)]
pub(super) struct TopArgs {
    /// The server's health endpoint, https:// for TLS; its path is /health/ready unless another one
    /// is given.
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8080", value_parser = http_url)]
    pub(super) health: String,
    /// The server's `grpc.port`; https:// for TLS.
    #[arg(long, value_name = "URL", env = "LAREDO_OAM", default_value = "http://127.0.0.1:4001", value_parser = url)]
    pub(super) oam: String,
    /// The server's fan-out address; https:// for TLS.
    #[arg(long, value_name = "URL", env = "LAREDO_SERVER", default_value = "http://127.0.0.1:4002", value_parser = url)]
    pub(super) server: String,
    #[command(flatten)]
    pub(super) tls: TlsArgs,
    /// The time between two requests.
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = seconds)]
    pub(super) interval: Duration,
    /// The time to wait for an answer.
    #[arg(long, value_name = "SECONDS", default_value = "5", value_parser = seconds)]
    pub(super) timeout: Duration,
}

#[derive(Debug, clap::Args)]
pub(super) struct FanoutArgs {
    /// The table, as the database spells it: case counts. A schema with a dot in its name is
    /// written in double quotes.
    #[arg(value_name = "SCHEMA.TABLE")]
    pub(super) table: TableName,
    #[command(flatten)]
    pub(super) server: FanoutServerArgs,
    /// Print JSON.
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct FanoutServerArgs {
    /// The server's fan-out address; https:// for TLS.
    #[arg(long, value_name = "URL", env = "LAREDO_SERVER", default_value = "http://127.0.0.1:4002", value_parser = url)]
    pub(super) server: String,
    #[command(flatten)]
    pub(super) tls: TlsArgs,
    /// The time to wait for the first connection.
    #[arg(long, value_name = "SECONDS", default_value = "5", value_parser = seconds)]
    pub(super) timeout: Duration,
}

fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((field, value)) if !field.is_empty() => Ok((field.to_owned(), value.to_owned())),
        _ => Err("write FIELD=VALUE, for example region=eu".to_owned()),
    }
}

/// Parses a server's address. `HOST:PORT` is short for `http://HOST:PORT`.
pub(super) fn url(text: &str) -> Result<String, String> {
    match text.strip_prefix("unix:") {
        Some(path) if path.starts_with('/') => Ok(text.to_owned()),
        _ => http_url(text).map_err(|wrong| format!("{wrong}, or unix:/PATH")),
    }
}

pub(super) fn http_url(text: &str) -> Result<String, String> {
    let full = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
    let wrong = || "write http://HOST:PORT or https://HOST:PORT".to_owned();
    let uri: http::Uri = full.parse().map_err(|_| wrong())?;
    match uri.scheme_str() {
        Some("http" | "https") if uri.authority().is_some_and(|a| !a.host().is_empty()) => Ok(full),
        _ => Err(wrong()),
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    seconds.filter(|d| !d.is_zero()).ok_or_else(|| "write a number of seconds above zero, for example 5".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(line: &str) -> Result<LaredoCommand, String> {
        LaredoArgs::try_parse_from(line.split(' ')).map(|args| args.command).map_err(|e| e.to_string())
    }

    #[test]
    fn the_definitions_are_sound() {
        LaredoArgs::command().debug_assert();
    }

    #[test]
    fn tail_takes_filters_and_a_server_without_a_scheme() {
        let line = "laredo tail public.t --server db1:4002 --filter a=1 --filter b==x --filter-prefix c= --snapshot";
        let Ok(LaredoCommand::Tail(args)) = parse(line) else { panic!("no tail") };
        assert_eq!(args.table, TableName::new("public", "t"));
        assert_eq!(args.server.server, "http://db1:4002");
        assert_eq!(args.server.timeout, Duration::from_secs(5));
        let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        assert_eq!(args.filters, [pair("a", "1"), pair("b", "=x")]);
        assert_eq!(args.prefixes, [pair("c", "")]);
        assert!(args.snapshot && !args.json);
    }

    #[test]
    fn status_and_fanout_have_their_flags() {
        let Ok(LaredoCommand::Status(args)) = parse("laredo status --timeout 0.5 --json") else { panic!("no status") };
        assert_eq!((args.health.as_str(), args.json), ("http://127.0.0.1:8080", true));
        assert_eq!(args.timeout, Duration::from_millis(500));
        let Ok(LaredoCommand::Fanout(FanoutCommand::Clients(args))) =
            parse("laredo fanout clients public.a.b --server https://x:1")
        else {
            panic!("no clients")
        };
        assert_eq!(args.table, TableName::new("public", "a.b"));
        assert_eq!(args.server.server, "https://x:1");
    }

    #[test]
    fn what_reads_whole_tables_may_take_long() {
        let Ok(LaredoCommand::Snapshot(SnapshotCommand::Create(args))) =
            parse("laredo snapshot create public.a public.b --meta why=deploy")
        else {
            panic!("no create")
        };
        assert_eq!((args.tables.len(), args.meta.len()), (2, 1));
        assert_eq!(args.oam.timeout, Duration::from_secs(600));
        let Ok(LaredoCommand::Snapshot(SnapshotCommand::List(args))) = parse("laredo snapshot list") else {
            panic!("no list")
        };
        assert_eq!((args.limit, args.oam.timeout), (0, Duration::from_secs(5)));
        assert!(parse("laredo snapshot prune --keep 0").is_err() && parse("laredo snapshot prune").is_err());
    }

    #[test]
    fn verify_heals_and_hides_values_by_default() {
        let Ok(LaredoCommand::Verify(args)) = parse("laredo verify public.t") else { panic!("no verify") };
        assert_eq!((args.no_heal, args.values, args.clients, args.rate), (false, false, false, None));
        let line = "laredo verify public.t --no-heal --values --clients --rate 20 --json";
        let Ok(LaredoCommand::Verify(args)) = parse(line) else { panic!("no verify") };
        assert!(args.no_heal && args.values && args.clients && args.oam.json);
        assert_eq!(args.rate, Some(20));
        assert!(parse("laredo verify").is_err() && parse("laredo verify public.t --rate 0").is_err());
    }

    #[test]
    fn what_cannot_be_meant_is_refused_with_a_way_out() {
        let said = |line: &str| parse(line).unwrap_err();
        assert!(said("laredo tail t").contains("write SCHEMA.TABLE"));
        assert!(said("laredo tail public.t --filter a").contains("write FIELD=VALUE"));
        assert!(said("laredo tail public.t --filter =a").contains("write FIELD=VALUE"));
        assert!(said("laredo tail public.t --server ftp://x").contains("write http://HOST:PORT"));
        assert!(said("laredo status --health http://").contains("write http://HOST:PORT"));
        for wrong in ["0", "-1", "soon", "NaN", "1e99"] {
            let line = format!("laredo status --timeout={wrong}");
            assert!(said(&line).contains("seconds above zero"), "{wrong}");
        }
    }
}
