use std::time::{SystemTime, UNIX_EPOCH};

use bytes::{BufMut, BytesMut};
use laredo_core::{CommitTime, Lsn};
use tokio::io::{AsyncWriteExt, ReadHalf, WriteHalf};

use super::error::TransportError;
use super::frame::BackendFrameReader;
use super::open::BoxedSocket;
use super::query::{SqlConnection, TextRow};
use crate::options::ConnectionOptions;

/// A walsender session. It accepts replication commands and SQL, and then becomes a stream.
#[derive(Debug)]
pub struct ReplicationConnection(SqlConnection);

impl ReplicationConnection {
    /// Connects with `replication=database`.
    ///
    /// # Errors
    /// Fails if the server cannot be reached or refuses the login.
    pub async fn connect(options: &ConnectionOptions) -> Result<ReplicationConnection, TransportError> {
        SqlConnection::connect_replication(options).await.map(ReplicationConnection)
    }

    /// Returns the ID of the server process that serves this session.
    #[must_use]
    pub fn process_id(&self) -> i32 {
        self.0.process_id()
    }

    /// Returns the server's major version.
    #[must_use]
    pub fn major_version(&self) -> u32 {
        self.0.major_version()
    }

    /// Runs a replication command or SQL, and returns its rows.
    ///
    /// # Errors
    /// The errors of [`SqlConnection::simple_query`]. An error of the server drops the session's
    /// temporary slots.
    pub async fn simple_query(&mut self, sql: &str) -> Result<Vec<TextRow>, TransportError> {
        self.0.simple_query(sql).await
    }

    /// Runs a `START_REPLICATION` and splits the session into a receiving and a sending half.
    ///
    /// # Errors
    /// Returns the server's error. The session is then over, and with it its temporary slots.
    pub async fn start_replication(self, sql: &str) -> Result<(ReplicationReader, ReplicationWriter), TransportError> {
        let (frames, writer) = self.0.into_copy_both(sql).await?.split();
        Ok((ReplicationReader { frames }, ReplicationWriter { writer, out: BytesMut::new() }))
    }
}

/// A message from the server, borrowed from the read buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplicationMessage<'a> {
    /// A message of the output plugin.
    XLogData {
        /// The WAL position that it belongs to; zero for some messages.
        start: Lsn,
        /// The end of the WAL, as the server knows it.
        end: Lsn,
        /// The server's clock when it sent the message.
        clock: CommitTime,
        /// The message.
        data: &'a [u8],
    },
    /// A report that there is nothing new up to a position.
    KeepAlive {
        /// The position that the server has read. Every earlier commit has been sent.
        wal_end: Lsn,
        /// The server's clock when it sent the message.
        clock: CommitTime,
        /// True if the server ends the connection unless it gets a status message soon.
        reply_requested: bool,
    },
}

/// The receiving half of a replication stream.
pub struct ReplicationReader {
    frames: BackendFrameReader<ReadHalf<BoxedSocket>>,
}

impl std::fmt::Debug for ReplicationReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ReplicationReader")
    }
}

impl ReplicationReader {
    /// Returns the next message; `None` if the server ended the stream regularly. Cancel safe: no
    /// data is lost.
    ///
    /// # Errors
    /// Fails if the connection is lost or the server ends the stream with an error.
    pub async fn next(&mut self) -> Result<Option<ReplicationMessage<'_>>, TransportError> {
        loop {
            match self.frames.advance().await? {
                b'd' => break,
                b'c' | b'C' => return Ok(None),
                b'E' => return Err(self.frames.frame().error().into()),
                b'N' | b'S' | b'A' => {}
                _ => return Err(self.frames.frame().unexpected("replication")),
            }
        }
        parse(self.frames.frame().body()).map(Some)
    }

    /// Returns true if the next message has arrived, so that [`ReplicationReader::next`] will not
    /// wait.
    #[must_use]
    pub fn buffered(&self) -> bool {
        self.frames.has_next()
    }
}

fn parse(body: &[u8]) -> Result<ReplicationMessage<'_>, TransportError> {
    let torn = || TransportError::Protocol("a replication message is incomplete".to_owned());
    let u64_at = |at: usize| {
        let bytes = body.get(at..at + 8).and_then(|bytes| bytes.try_into().ok());
        bytes.map(u64::from_be_bytes).ok_or_else(torn)
    };
    let clock_at = |at: usize| u64_at(at).map(|raw| CommitTime(raw.cast_signed()));
    match body.first() {
        Some(b'w') => Ok(ReplicationMessage::XLogData {
            start: Lsn(u64_at(1)?),
            end: Lsn(u64_at(9)?),
            clock: clock_at(17)?,
            data: &body[25..],
        }),
        Some(b'k') => Ok(ReplicationMessage::KeepAlive {
            wal_end: Lsn(u64_at(1)?),
            clock: clock_at(9)?,
            reply_requested: *body.get(17).ok_or_else(torn)? != 0,
        }),
        Some(other) => Err(TransportError::Protocol(format!("a replication message of the unknown kind {other:#04x}"))),
        None => Err(torn()),
    }
}

/// The sending half of a replication stream.
pub struct ReplicationWriter {
    writer: WriteHalf<BoxedSocket>,
    out: BytesMut,
}

impl std::fmt::Debug for ReplicationWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ReplicationWriter")
    }
}

impl ReplicationWriter {
    /// Reports to the server what has arrived (`write`) and what it may forget (`flush`, `apply`).
    /// Asks for an answer if `reply_requested`. Not cancel safe: if canceled, it may leave half a
    /// message behind, and the stream is unusable.
    ///
    /// # Errors
    /// Fails if the connection is lost.
    pub async fn standby_status(
        &mut self,
        write: Lsn,
        flush: Lsn,
        apply: Lsn,
        reply_requested: bool,
    ) -> Result<(), TransportError> {
        self.out.clear();
        self.out.put_u8(b'd');
        self.out.put_u32(38);
        self.out.put_u8(b'r');
        for position in [write, flush, apply] {
            self.out.put_u64(position.0);
        }
        self.out.put_i64(now().0);
        self.out.put_u8(u8::from(reply_requested));
        self.writer.write_all(&self.out).await?;
        Ok(self.writer.flush().await?)
    }
}

#[expect(clippy::disallowed_methods, reason = "the protocol includes the sender's clock; nothing here decides by it")]
fn now() -> CommitTime {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    CommitTime::from_unix_us(i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
}
