//! The comparison of an archive with a server. The state that the archive rebuilds and the server's
//! rows are brought to the same position, then compared.

use std::time::Duration;

use laredo_archive::{ArchivePoint, DestinationUri, ReadProgress, RebuiltTable};
use laredo_client::{ResumePoint, Subscription, SubscriptionBuilder, SubscriptionEvent};
use laredo_core::{DefinitionVersion, Lsn, TableName, TableState};

use super::args::S3AccessArgs;
use super::location::open_newest;
use super::progress::with_progress_bar;
use super::state_diff::differences;
use crate::cli::connect::{TlsArgs, TlsFileContents};
use crate::cli::error::CliError;

/// An archive that is compared with a server.
#[derive(Debug, clap::Args)]
pub(in super::super) struct ArchiveCompareArgs {
    /// Compare an archive of the table with the server's rows, too: a folder, or
    /// s3://BUCKET/PREFIX.
    #[arg(long, value_name = "ARCHIVE")]
    pub(in super::super) archive: Option<DestinationUri>,
    /// The server's fan-out address, for --archive.
    #[arg(long, value_name = "URL", env = "LAREDO_SERVER", default_value = "http://127.0.0.1:4002", value_parser = super::super::args::url)]
    pub(in super::super) server: String,
    #[command(flatten)]
    pub(super) store: S3AccessArgs,
}

/// The result of a comparison.
#[derive(Debug)]
pub(in super::super) struct ArchiveComparison {
    /// The position of the archive's newest state.
    pub(in super::super) boundary: Lsn,
    /// The position of the rows that were compared.
    pub(in super::super) position: Lsn,
    /// The number of the server's rows.
    pub(in super::super) rows: u64,
    /// The number of rows that differ.
    pub(in super::super) differing: u64,
}

/// Compares an archive with a server. Rebuilds the archive's newest state and applies the server's
/// changes since its position. Compares the result, at the same position, with the rows of a full
/// snapshot from the server.
pub(in super::super) async fn compare_with_server(
    place: &DestinationUri,
    args: &ArchiveCompareArgs,
    table: &TableName,
    (tls, timeout): (&TlsArgs, Duration),
) -> Result<ArchiveComparison, CliError> {
    let archive = open_newest(place, &args.store).await?;
    let progress = ReadProgress::default();
    let bytes = archive.boundary(ArchivePoint::Latest)?.bytes;
    let rebuilt =
        with_progress_bar("reading", bytes, &progress, archive.rebuild(ArchivePoint::Latest, &progress)).await?;
    let RebuiltTable { table: rows, boundary, .. } = rebuilt;
    let mark = boundary.mark;
    let Some(boundary) = boundary.position else {
        return Err(CliError::Compare("the archive does not record the position of its newest state".to_owned()));
    };
    let subscription = || -> Result<SubscriptionBuilder, CliError> {
        let mut builder = Subscription::builder(&args.server, table.clone());
        if let Some(token) = tls.token() {
            builder = builder.token(token).allow_plaintext_token();
        }
        if let Some(TlsFileContents { ca_pem, identity_pem }) = tls.read(&args.server)? {
            builder = ca_pem.into_iter().fold(builder, |builder, pem| builder.ca_pem(pem));
            if let Some((certificate, key)) = identity_pem {
                builder = builder.identity_pem(certificate, key);
            }
        }
        Ok(builder.client_id(format!("laredo-verify-{}", std::process::id())))
    };
    // Rows of another definition must be reported as differences, and not be replaced.
    let definition = DefinitionVersion::UNKNOWN;
    let mut resume = ResumePoint::new(rows.schema().clone(), boundary);
    (resume.definition, resume.mark) = (definition, mark);
    let mut archived = ComparisonSide::new(subscription()?.resume(resume).start()?, Some((rows, boundary)));
    let mut served = ComparisonSide::new(subscription()?.start()?, None);
    let meeting = tokio::time::timeout(timeout, advance_to_same_position(&mut archived, &mut served)).await;
    let late = |_| {
        let seconds = timeout.as_secs_f64();
        CliError::Compare(format!("{} did not send the table within {seconds} s (--timeout)", args.server))
    };
    let (archived, served, position) = meeting.map_err(late)??;
    if archived.schema() != served.schema() {
        return Err(CliError::Compare("the archive's columns or key are not those of the server".to_owned()));
    }
    let (rows, differing) = (served.len() as u64, differences(archived, served)?.len() as u64);
    Ok(ArchiveComparison { boundary, position, rows, differing })
}

/// Brings two states to a position at which both are known, and returns them with that position.
async fn advance_to_same_position<'a>(
    archived: &'a mut ComparisonSide,
    served: &'a mut ComparisonSide,
) -> Result<(&'a TableState, &'a TableState, Lsn), CliError> {
    loop {
        let is_behind = match (&archived.state, &served.state) {
            (Some(_), Some(_)) if archived.since.max(served.since) <= archived.until.min(served.until) => break,
            (Some(_), Some(_)) => archived.until < served.until,
            (None, _) => true,
            (Some(_), None) => false,
        };
        match is_behind {
            true => archived.advance(false).await?,
            false => served.advance(true).await?,
        }
    }
    let position = archived.since.max(served.since);
    match (&archived.state, &served.state) {
        (Some(archived), Some(served)) => Ok((archived, served, position)),
        (_, _) => Err(CliError::Compare("a state is missing".to_owned())),
    }
}

/// A table's state, and the positions between which it does not change.
struct ComparisonSide {
    subscription: Subscription,
    state: Option<TableState>,
    since: Lsn,
    until: Lsn,
}

impl ComparisonSide {
    fn new(subscription: Subscription, begun: Option<(TableState, Lsn)>) -> ComparisonSide {
        let (state, position) = begun.map_or((None, Lsn::ZERO), |(state, position)| (Some(state), position));
        ComparisonSide { subscription, state, since: position, until: position }
    }

    /// Handles the next event from the server. A state that the side began with is never replaced.
    async fn advance(&mut self, takes_states: bool) -> Result<(), CliError> {
        match self.subscription.next().await {
            SubscriptionEvent::State { table, position, .. } if takes_states => {
                self.state = Some(*table);
                (self.since, self.until) = (position, position);
            }
            SubscriptionEvent::Restart { .. } if takes_states => self.state = None,
            SubscriptionEvent::State { .. } => {
                return Err(CliError::Compare(
                    "the server does not continue from the archive's newest state".to_owned(),
                ));
            }
            SubscriptionEvent::Restart { reason, .. } => {
                let reason = format!("the server does not continue from the archive's newest state: {reason}");
                return Err(CliError::Compare(reason));
            }
            SubscriptionEvent::Resumed { .. } => {}
            SubscriptionEvent::Transaction(transaction) => {
                if let Some(state) = &mut self.state {
                    let unfit = |error| CliError::Compare(format!("a transaction does not fit the state: {error}"));
                    state.apply(&transaction).map_err(unfit)?;
                }
                (self.since, self.until) = (transaction.position, transaction.position);
            }
            SubscriptionEvent::Current { position, .. } => self.until = self.until.max(position),
            SubscriptionEvent::Ended { reason } => return Err(CliError::Compare(reason)),
        }
        Ok(())
    }
}
