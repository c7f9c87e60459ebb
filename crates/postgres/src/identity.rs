//! The server of the database, with the database's system identifier, timeline and history.

use laredo_core::{SourceIdentity, TimelineSwitch};
use laredo_engine::source::SourceServer;

use crate::options::{ConnectionOptions, SessionWork};
use crate::transport::{ReplicationConnection, TextRow, TransportError};

/// An SQL expression for the time at which the server was started, in microseconds since 1970. The
/// settings of a session do not change its form.
pub(crate) const SERVER_STARTED: &str = "(extract(epoch FROM pg_postmaster_start_time()) * 1000000)::bigint";

/// The SQLSTATE `undefined_file`: a file is missing.
const UNDEFINED_FILE: &str = "58P01";

/// Reads the server's identity through a new walsender. This also shows that a walsender is
/// available.
pub(crate) async fn read_server(options: &ConnectionOptions) -> Result<SourceServer, TransportError> {
    read_server_on(&mut ReplicationConnection::connect(&options.for_work(SessionWork::Check)).await?).await
}

/// Reads the server's identity on a walsender connection.
pub(crate) async fn read_server_on(connection: &mut ReplicationConnection) -> Result<SourceServer, TransportError> {
    let rows = connection.simple_query("IDENTIFY_SYSTEM").await?;
    let field = |column: usize| text(&rows, column).ok_or_else(|| unexpected(&rows));
    let timeline: u32 = field(1)?.parse().map_err(|_| unexpected(&rows))?;
    let history = history(connection, timeline).await?;
    let written = field(2)?.parse().map_err(|_| unexpected(&rows))?;
    let (system_identifier, database) = (field(0)?.to_owned(), field(3)?.to_owned());
    let started = connection.simple_query(&format!("SELECT {SERVER_STARTED}")).await?;
    let started = text(&started, 0).ok_or_else(|| unexpected(&started))?.to_owned();
    let identity = SourceIdentity { system_identifier, database, timeline, history };
    Ok(SourceServer { identity, written, started })
}

/// Returns the ends of the earlier timelines of `timeline`, oldest first.
pub(crate) async fn history(
    connection: &mut ReplicationConnection,
    timeline: u32,
) -> Result<Vec<TimelineSwitch>, TransportError> {
    // The first timeline has no history file.
    if timeline <= 1 {
        return Ok(Vec::new());
    }
    let rows = match connection.simple_query(&format!("TIMELINE_HISTORY {timeline}")).await {
        Ok(rows) => rows,
        Err(TransportError::Server(error)) if error.code == UNDEFINED_FILE => {
            // A position of an earlier timeline then counts as one of an unknown history, and its
            // tables are copied again.
            tracing::warn!(
                event = "timeline_history_missing",
                timeline, %error,
                "the server has lost the history file of its timeline; positions of earlier timelines cannot be resumed from"
            );
            return Ok(Vec::new());
        }
        Err(error) => return Err(error),
    };
    Ok(parse_history(text(&rows, 1).ok_or_else(|| unexpected(&rows))?))
}

fn text(rows: &[TextRow], column: usize) -> Option<&str> {
    rows.first()?.get(column)?.as_deref()
}

fn unexpected(rows: &[TextRow]) -> TransportError {
    TransportError::Protocol(format!("unexpected answer about the server's identity: {rows:?}"))
}

/// Parses lines of a timeline, the position where it was left, and a reason.
fn parse_history(text: &str) -> Vec<TimelineSwitch> {
    let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default());
    lines
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            Some(TimelineSwitch { timeline: words.next()?.parse().ok()?, position: words.next()?.parse().ok()? })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use laredo_core::Lsn;

    #[test]
    fn a_history_is_read_as_postgres_writes_it() {
        let text = "1\t0/4000148\tno recovery target specified\n\n# a comment\n2\t0/50000A0\tbefore 2000-01-01\n";
        let switch = |timeline, position| TimelineSwitch { timeline, position: Lsn(position) };
        assert_eq!(parse_history(text), [switch(1, 0x400_0148), switch(2, 0x500_00A0)]);
    }
}
