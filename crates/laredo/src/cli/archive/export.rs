//! The export of a table to an archive, once: a server, its one client, and a writer, all in this
//! process.

use std::collections::{BTreeMap, VecDeque};
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::pin::pin;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use laredo_archive::{
    ArchiveWriter, ArtifactStager, Destination, Feed, FeedUpdate, MANIFEST_NAME, Manifest, SharedWriterStatus,
    WriterError, WriterHandle, WriterOptions, WriterResources, WrittenArtifact,
};
use laredo_client::Subscription;
use laredo_core::{Checksum, DefinitionVersion, Lsn, ScopedMark, StateError};
use laredo_postgres::ConnectionOptions;
use laredo_postgres::transport::SqlConnection;
use laredo_server::{ListenAddress, PortListener, ServerListeners};
use serde_json::json;
use tempfile::TempDir;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::args::ExportArgs;
use crate::cli::error::CliError;
use crate::cli::{end_at_interrupt, print_output};
use crate::config::server::{PostgresSourceConfig, PublicationConfig, ReconnectConfig, ServedTableConfig};
use crate::config::{ConfigSecret, ServerConfig};
use crate::program::{ProgramFailure, now, random};
use crate::serve::{StartMode, serve_at};
use crate::snapshotter::feed::SubscriptionFeed;

/// The beginning of the writer IDs of exports.
const WRITER: &str = "laredo archive export";
/// The name of the only source.
const SOURCE: &str = "database";
const LOOK: Duration = Duration::from_millis(100);

pub(super) async fn run(args: ExportArgs) -> Result<ExitCode, CliError> {
    ConnectionOptions::parse(&args.postgres)?;
    if let Some(name) = args.publication.as_deref().filter(|name| !PublicationConfig::is_name(name)) {
        return Err(CliError::Export(format!(
            "--publication {name:?}: expected a PostgreSQL name of at most 63 bytes"
        )));
    }
    let publication = format!("laredo_export_{:016x}", random());
    let interrupted = end_at_interrupt();
    let written = tokio::select! {
        written = export(&args, args.publication.as_deref().unwrap_or(&publication)) => written,
        () = interrupted.cancelled() => Err(CliError::Export("the export was interrupted".to_owned())),
    };
    let dropped = match args.publication {
        // The publication belongs to the operator, and stays.
        Some(_) => Ok(()),
        None => drop_publication(&args.postgres, &publication).await,
    };
    // The first error is reported, and also a publication that was left behind.
    let written = match (written, dropped) {
        (Ok(written), dropped) => dropped.map(|()| written),
        (Err(CliError::Export(why)), Ok(())) if why.contains(&publication) => {
            Err(CliError::Export(format!("{why}; or name a publication that has the table with --publication")))
        }
        (Err(error), Ok(())) => Err(error),
        (Err(CliError::Export(why)), Err(CliError::Export(left))) => Err(CliError::Export(format!("{why}\n{left}"))),
        (Err(error), Err(_)) => Err(error),
    }?;
    let WrittenArtifact { epoch, to_position, count, bytes, .. } = written;
    let table = args.table.to_string();
    print_output(&format!(
        "{}\n",
        json!({ "table": table, "epoch": epoch, "position": to_position.to_string(), "rows": count, "bytes": bytes })
    ))?;
    Ok(ExitCode::SUCCESS)
}

async fn export(args: &ExportArgs, publication: &str) -> Result<WrittenArtifact, CliError> {
    let config = config(args, publication);
    // The folder is removed when the value is dropped, also when the export is interrupted.
    let (_folder, address, listener) = private_listener().await?;
    let url = address.to_string();
    let listeners = ServerListeners { grpc: vec![listener], fanout: Vec::new(), health: None, metrics: None };
    let (stop, stopped) = watch::channel(false);
    let mut server = pin!(serve_at(&config, listeners, None, (StartMode::Once, Duration::ZERO), stopped, None, || {}));
    let exported = tokio::select! {
        exported = write_snapshot(args, url) => exported,
        ended = &mut server => return Err(CliError::Export(end_reason(ended))),
    };
    stop.send_replace(true);
    // The slot was temporary, and disappeared with its connection.
    server.await.map_err(|failure| CliError::Export(end_reason(Err(failure))))?;
    exported
}

/// Listens at a Unix socket in a new folder that only this user may enter. The server has the rows
/// in plain text, and a port would be open to every user of the machine.
async fn private_listener() -> Result<(TempDir, ListenAddress, PortListener), CliError> {
    let failed = |error: std::io::Error| {
        let folder = std::env::temp_dir();
        CliError::Export(format!(
            "cannot make a socket in {}: {error}; set TMPDIR to a folder with a short path that this user may write to",
            folder.display()
        ))
    };
    let mut builder = tempfile::Builder::new();
    let folder = builder.prefix("laredo-export-").permissions(Permissions::from_mode(0o700)).tempdir();
    let folder = folder.map_err(failed)?;
    let address = ListenAddress::Unix(folder.path().join("socket"));
    let listener = PortListener::bind(&address, 0).await.map_err(failed)?;
    Ok((folder, address, listener))
}

/// Writes one snapshot. Writes nothing, and takes over no archive, before all rows have arrived.
async fn write_snapshot(args: &ExportArgs, url: String) -> Result<WrittenArtifact, CliError> {
    let destination = args.archive.destination().await?;
    check_writer(args, &destination).await?;
    let feed = ExportFeed::wait_for_rows(url, args).await?;
    // Another writer may have appeared meanwhile.
    check_writer(args, &destination).await?;
    let destinations = vec![destination];
    let resources = WriterResources {
        stager: ArtifactStager::for_destinations(&destinations, &std::env::temp_dir()),
        destinations,
        wall: Box::new(now),
        publish: Box::new(|_| {}),
        status: SharedWriterStatus::default(),
    };
    let writer_id = format!("{WRITER}:{}:{:016x}", std::process::id(), random());
    let (formats, diff_interval) = (args.formats.clone(), Duration::from_secs(3600));
    let mut options = WriterOptions::new(args.table.to_string(), writer_id, formats, diff_interval);
    options.seed = random();
    // The export does not resume from the archive's state, because no journal has the changes since
    // then.
    let (writer, _) =
        ArchiveWriter::open(options, resources).await.map_err(|error: WriterError| export_error(&error))?;
    let (handle, stop) = (writer.handle(), CancellationToken::new());
    let mut writing = tokio::spawn(writer.run(feed, stop.clone()));
    let written = tokio::select! {
        written = wait_for_snapshot(&handle) => written,
        ended = &mut writing => return Err(export_error(&match ended {
            Ok(Ok(())) => "the writer has ended".to_owned(),
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        })),
    };
    stop.cancel();
    writing.await.map_err(|error| export_error(&error))?.map_err(|error| export_error(&error))?;
    Ok(written)
}

/// Checks that no other program writes the archive, unless the operator asked to take it over.
async fn check_writer(args: &ExportArgs, destination: &Arc<dyn Destination>) -> Result<(), CliError> {
    let Some(there) = destination.manifest().await? else { return Ok(()) };
    let at = destination.uri(MANIFEST_NAME);
    let manifest = Manifest::parse(&there.bytes, Some(&args.table.to_string()));
    let manifest = manifest.map_err(|error| export_error(&format!("{at}: {error}")))?;
    let writer = match manifest.writer {
        Some(writer) if writer.id.starts_with(WRITER) => return Ok(()),
        Some(writer) => format!("{} (number {})", writer.id, writer.fence),
        None => "another program".to_owned(),
    };
    match args.take_over {
        true => Ok(()),
        false => Err(export_error(&format!(
            "the archive {at} is written by {writer}; export to another place, or stop that writer and use --take-over"
        ))),
    }
}

/// A feed whose first rows have arrived.
struct ExportFeed {
    first: VecDeque<FeedUpdate>,
    rest: SubscriptionFeed,
}

impl ExportFeed {
    async fn wait_for_rows(url: String, args: &ExportArgs) -> Result<ExportFeed, CliError> {
        let subscription = Subscription::builder(url, args.table.clone()).client_id(WRITER).start()?;
        let (mut first, mut rest) = (VecDeque::new(), SubscriptionFeed(subscription));
        let bar = ProgressBar::new_spinner().with_message("copying the table");
        bar.enable_steady_tick(LOOK);
        loop {
            match rest.next().await {
                FeedUpdate::Ended { reason } => return Err(export_error(&reason)),
                update => {
                    let is_there = matches!(update, FeedUpdate::State { .. });
                    first.push_back(update);
                    if is_there {
                        bar.finish_and_clear();
                        return Ok(ExportFeed { first, rest });
                    }
                }
            }
        }
    }
}

impl Feed for ExportFeed {
    async fn next(&mut self) -> FeedUpdate {
        match self.first.pop_front() {
            Some(update) => update,
            None => self.rest.next().await,
        }
    }

    fn definition(&self) -> DefinitionVersion {
        self.rest.definition()
    }

    fn mark(&self) -> Option<ScopedMark> {
        self.rest.mark()
    }

    fn start_over(&mut self, error: StateError) {
        self.first.clear();
        self.rest.start_over(error);
    }

    fn compare(&mut self, position: Lsn, ours: Checksum, theirs: Checksum) -> bool {
        self.rest.compare(position, ours, theirs)
    }
}

/// Waits until the first snapshot is written.
async fn wait_for_snapshot(handle: &WriterHandle) -> WrittenArtifact {
    let bar = ProgressBar::new_spinner();
    if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} ({elapsed})") {
        bar.set_style(style);
    }
    loop {
        let status = handle.status();
        if let Some(written) = status.last_snapshot {
            bar.finish_and_clear();
            return written;
        }
        bar.set_message(match status.position {
            None => "copying the table".to_owned(),
            Some(position) => format!("writing it as of {position}"),
        });
        bar.tick();
        tokio::time::sleep(LOOK).await;
    }
}

fn export_error(error: &dyn std::fmt::Display) -> CliError {
    CliError::Export(error.to_string())
}

/// Returns the configuration of a server with this table alone, and with a slot that disappears
/// with its connection.
fn config(args: &ExportArgs, publication: &str) -> ServerConfig {
    let source = PostgresSourceConfig {
        connection: ConfigSecret::new(&args.postgres),
        publication: PublicationConfig { name: publication.to_owned(), create: args.publication.is_none() },
        reconnect: ReconnectConfig { max_attempts: Some(3), ..ReconnectConfig::default() },
        ..PostgresSourceConfig::default()
    };
    let table = ServedTableConfig {
        source: SOURCE.to_owned(),
        schema: args.table.schema.clone(),
        table: args.table.table.clone(),
        ..ServedTableConfig::default()
    };
    ServerConfig {
        sources: BTreeMap::from([(SOURCE.to_owned(), source)]),
        tables: vec![table],
        ..ServerConfig::default()
    }
}

fn end_reason(ended: Result<(), ProgramFailure>) -> String {
    match ended {
        Ok(()) => "the table's stream has ended".to_owned(),
        Err(ProgramFailure::Misconfigured(sentences)) => sentences.join("\n"),
        Err(ProgramFailure::Failed(error)) => format!("{error:#}"),
    }
}

async fn drop_publication(url: &str, publication: &str) -> Result<(), CliError> {
    let options = ConnectionOptions::parse(url)?;
    let left = |error: laredo_postgres::transport::TransportError| {
        CliError::Export(format!(
            "the publication {publication} may be left behind ({error}); run DROP PUBLICATION IF EXISTS {publication}"
        ))
    };
    let mut connection = SqlConnection::connect(&options).await.map_err(left)?;
    connection.simple_query(&format!("DROP PUBLICATION IF EXISTS {publication}")).await.map(drop).map_err(left)
}
