//! `laredo tail`.

use std::io::{self, BufWriter, IsTerminal, Write};
use std::pin::pin;
use std::process::ExitCode;
use std::time::Duration;

use laredo_client::{
    ColumnPredicate, CommittedTransaction, NotReady, Replica, ReplicaError, ReplicaStatus, Row, StatusReceiver,
};
use laredo_core::{Schema, TableName};
use tokio_util::sync::CancellationToken;

use super::args::TailArgs;
use super::change_line::{ChangeStyle, RowChangeLine};
use super::connect::TlsFileContents;
use super::error::{CliError, SERVER_OPTION};
use super::print_message;

/// The timeout of a wait that only Ctrl-C ends.
const FOREVER: Duration = Duration::MAX;

/// Prints changes until `stop` is canceled.
pub(super) async fn run(args: TailArgs, stop: CancellationToken) -> Result<ExitCode, CliError> {
    let variable = |name| std::env::var(name).ok();
    let style = ChangeStyle::of(
        args.json,
        io::stdout().is_terminal(),
        variable("NO_COLOR").as_deref(),
        variable("TERM").as_deref(),
    );
    let replica = start_replica(&args)?;
    let result = match wait_until_connected(&replica, &args, &stop).await {
        Ok(Some(())) => print_changes(&replica, &args, style, stop).await,
        Ok(None) => Ok(()),
        Err(error) => Err(error),
    };
    replica.stop().await;
    result.map(|()| ExitCode::SUCCESS)
}

fn start_replica(args: &TailArgs) -> Result<Replica, CliError> {
    let equals = args.filters.iter().map(|(field, value)| ColumnPredicate::equals(field, value.as_str()));
    let prefixes = args.prefixes.iter().map(|(field, prefix)| ColumnPredicate::prefix(field, prefix));
    let mut builder = Replica::builder(&args.server.server, args.table.clone());
    builder = equals.chain(prefixes).fold(builder, |builder, predicate| builder.filter(predicate));
    if let Some(TlsFileContents { ca_pem, identity_pem }) = args.server.tls.read(&args.server.server)? {
        builder = ca_pem.into_iter().fold(builder, |builder, pem| builder.ca_pem(pem));
        if let Some((certificate, key)) = identity_pem {
            builder = builder.identity_pem(certificate, key);
        }
    }
    if let Some(token) = args.server.tls.token() {
        builder = builder.token(token).allow_plaintext_token();
    }
    Ok(builder.client_id(format!("laredo-tail-{}", std::process::id())).start()?)
}

/// Waits for the first stream, or returns `None` if `stop` is canceled. The wait is bounded: an
/// address that has never worked is probably wrong.
async fn wait_until_connected(
    replica: &Replica,
    args: &TailArgs,
    stop: &CancellationToken,
) -> Result<Option<()>, CliError> {
    let server = &args.server.server;
    let mut status = replica.watch_status();
    let settled = status.wait_for(|s| s.connects > 0 || s.stopped || s.error.as_ref().is_some_and(|e| e.is_definite()));
    let settled = tokio::select! {
        () = stop.cancelled() => return Ok(None),
        settled = tokio::time::timeout(args.server.timeout, settled) => settled,
    };
    let status = match settled {
        Ok(Some(status)) => status,
        Ok(None) => return Err(CliError::Stopped(None)),
        Err(_) => replica.status(),
    };
    match status.error.or(status.last_error) {
        _ if status.connects > 0 => Ok(Some(())),
        Some(error) => Err(replica_error(server, &args.table, error)),
        None => Err(CliError::timeout(server, args.server.timeout, SERVER_OPTION)),
    }
}

fn replica_error(server: &str, table: &TableName, error: ReplicaError) -> CliError {
    let server = server.to_owned();
    match error {
        ReplicaError::Refused { code, reason, .. } => {
            CliError::from_status(&server, table, tonic::Code::from_i32(code as i32), &reason)
        }
        ReplicaError::Connect { reason, .. } => CliError::Unreachable { server, reason, option: SERVER_OPTION },
        error => CliError::Refused { server, table: table.clone(), reason: error.to_string() },
    }
}

async fn print_changes(
    replica: &Replica,
    args: &TailArgs,
    style: ChangeStyle,
    stop: CancellationToken,
) -> Result<(), CliError> {
    let mut connection = TailConnection { status: replica.watch_status(), error: None, connects: 1, stop };
    match connection.wait_and_report(replica.ready(FOREVER)).await {
        None => return Ok(()),
        Some(Ok(())) => {}
        Some(Err(NotReady::Definite(error))) => return Err(replica_error(&args.server.server, &args.table, error)),
        Some(Err(_)) => return Err(CliError::Stopped(replica.status().last_error)),
    }
    // The order matters. Transactions that the view contains are skipped in the stream, and none is
    // missing between the two.
    let mut transactions = replica.transactions();
    let (start, rows, schema) = {
        let view = replica.view();
        let rows: Vec<Row> = if args.snapshot { view.rows().map(|row| row.to_row()).collect() } else { Vec::new() };
        print_message(&format!("following {} from {}, {} rows", args.table, view.position(), view.len()));
        (view.position(), rows, view.schema().clone())
    };
    check_columns(args, &schema)?;
    let mut out = BufWriter::with_capacity(1 << 16, io::stdout().lock());
    for row in rows {
        write_change(&mut out, &RowChangeLine::snapshot(start, row.as_ref())?, style)?;
    }
    out.flush().map_err(CliError::Output)?;
    while let Some(next) = connection.wait_and_report(transactions.next()).await {
        match next {
            Some(Ok(transaction)) if transaction.position <= start => {}
            Some(Ok(transaction)) => write_all(&mut out, &transaction, style)?,
            Some(Err(lagged)) => {
                let count = lagged.transactions;
                print_message(&format!("{count} transactions are not shown: the output is read too slowly"));
            }
            None => return Err(CliError::Stopped(replica.status().last_error)),
        }
    }
    Ok(())
}

fn check_columns(args: &TailArgs, schema: &Schema) -> Result<(), CliError> {
    let asked = args.filters.iter().chain(&args.prefixes).map(|(field, _)| field);
    match asked.into_iter().find(|field| schema.position_of(field).is_none()) {
        None => Ok(()),
        Some(column) => {
            let columns: Vec<&str> = schema.columns().iter().map(|c| c.name.as_str()).collect();
            let (table, column) = (args.table.clone(), column.clone());
            Err(CliError::NoColumn { table, column, columns: columns.join(", ") })
        }
    }
}

fn write_all(out: &mut impl Write, transaction: &CommittedTransaction, style: ChangeStyle) -> Result<(), CliError> {
    for change in &transaction.changes {
        let (old, new) = (change.old.as_ref().map(Row::as_ref), change.new.as_ref().map(Row::as_ref));
        write_change(out, &RowChangeLine::new(transaction.position, transaction.committed_at, old, new)?, style)?;
    }
    out.flush().map_err(CliError::Output)
}

fn write_change(out: &mut impl Write, change: &RowChangeLine<'_>, style: ChangeStyle) -> Result<(), CliError> {
    writeln!(out, "{}", change.line(style)).map_err(CliError::Output)
}

/// The state of the connection that was last printed.
struct TailConnection {
    status: StatusReceiver,
    error: Option<ReplicaError>,
    connects: u64,
    stop: CancellationToken,
}

impl TailConnection {
    /// Waits for a value, and prints news of the connection meanwhile. Returns `None` if `stop` is
    /// canceled.
    async fn wait_and_report<T>(&mut self, wanted: impl Future<Output = T>) -> Option<T> {
        let mut wanted = pin!(wanted);
        loop {
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return None,
                Some(status) = self.status.changed() => {
                    news(&status, &mut self.error, &mut self.connects).iter().for_each(|news| print_message(news));
                }
                value = &mut wanted => return Some(value),
            }
        }
    }
}

/// Returns the news of a connection since the last call, and updates `error` and `connects`.
fn news(status: &ReplicaStatus, error: &mut Option<ReplicaError>, connects: &mut u64) -> Vec<String> {
    let mut news = Vec::new();
    let line = |error: &ReplicaError| format!("{error}; connecting again");
    if status.connects > *connects {
        // The error and the new connection may both have come since the last call.
        let unseen = status.last_error.as_ref().filter(|_| error.is_none() && status.error.is_none());
        news.extend(unseen.map(line));
        *connects = status.connects;
        *error = None;
        news.push(match status.reason.as_str() {
            "" => "connected again".to_owned(),
            reason => format!("connected again: {reason}"),
        });
    }
    if let Some(now) = &status.error
        && error.as_ref() != Some(now)
    {
        *error = Some(now.clone());
        news.push(line(now));
    }
    news
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_printed_once_and_so_is_a_connection() {
        let (mut error, mut connects) = (None, 1);
        let mut lines = |status: &ReplicaStatus| news(status, &mut error, &mut connects);
        let mut status = ReplicaStatus::default();
        (status.connects, status.connected) = (1, true);
        assert!(lines(&status).is_empty());
        status.error = Some(ReplicaError::Silent(Duration::from_secs(30)));
        assert_eq!(lines(&status), ["the server was silent for 30 s; the connection is given up; connecting again"]);
        assert!(lines(&status).is_empty());
        status.error = None;
        assert!(lines(&status).is_empty());
        (status.connects, status.reason) = (2, "resumed".to_owned());
        assert_eq!(lines(&status), ["connected again: resumed"]);
        // A connection was lost and replaced between two calls.
        (status.connects, status.error) = (3, None);
        status.last_error = Some(ReplicaError::Silent(Duration::from_secs(30)));
        assert_eq!(lines(&status).len(), 2);
        // The next connection was lost, too.
        status.connects = 4;
        status.error = Some(ReplicaError::Silent(Duration::from_secs(30)));
        assert_eq!(lines(&status).len(), 2);
    }
}
