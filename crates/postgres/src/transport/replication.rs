use std::time::{SystemTime, UNIX_EPOCH};

use bytes::{BufMut, BytesMut};
use laredo_core::{CommitTime, Lsn};
use tokio::io::{AsyncWriteExt, ReadHalf, WriteHalf};

use super::error::TransportError;
use super::frame::FrameReader;
use super::open::BoxStream;
use super::query::{Connection, Row};
use crate::options::ConnectionOptions;

/// A walsender session: takes replication commands and SQL, then becomes a stream.
#[derive(Debug)]
pub struct ReplicationConnection(Connection);

impl ReplicationConnection {
    /// Connects with `replication=database`.
    ///
    /// # Errors
    /// When the server cannot be reached or does not let us in.
    pub async fn connect(options: &ConnectionOptions) -> Result<ReplicationConnection, TransportError> {
        Connection::connect_replication(options).await.map(ReplicationConnection)
    }

    /// The server process that serves this session.
    #[must_use]
    pub fn process_id(&self) -> i32 {
        self.0.process_id()
    }

    /// The server's major version.
    #[must_use]
    pub fn major_version(&self) -> u32 {
        self.0.major_version()
    }

    /// Runs a replication command or SQL, and returns its rows.
    ///
    /// # Errors
    /// As [`Connection::simple_query`]. An error of the server drops the session's temporary slots.
    pub async fn simple_query(&mut self, sql: &str) -> Result<Vec<Row>, TransportError> {
        self.0.simple_query(sql).await
    }

    /// Runs a `START_REPLICATION` and parts the session into what comes and what goes.
    ///
    /// # Errors
    /// What the server says against it. The session is over then, and with it its temporary slots.
    pub async fn start_replication(self, sql: &str) -> Result<(ReplicationReader, ReplicationWriter), TransportError> {
        let (frames, writer) = self.0.into_copy_both(sql).await?.split();
        Ok((ReplicationReader { frames }, ReplicationWriter { writer, out: BytesMut::new() }))
    }
}

/// What the server sends, borrowed from the read buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplicationMessage<'a> {
    /// A message of the output plugin.
    XLogData {
        /// The WAL position it belongs to; zero for some.
        start: Lsn,
        /// The end of WAL as the server knows it.
        end: Lsn,
        /// The server's clock when it was sent.
        clock: CommitTime,
        /// The message.
        data: &'a [u8],
    },
    /// Nothing new, up to here.
    KeepAlive {
        /// Where the server has read to: everything that committed before has been sent.
        wal_end: Lsn,
        /// The server's clock when it was sent.
        clock: CommitTime,
        /// The server ends the connection unless it gets a status soon.
        reply_requested: bool,
    },
}

/// The receiving half of a replication stream.
pub struct ReplicationReader {
    frames: FrameReader<ReadHalf<BoxStream>>,
}

impl std::fmt::Debug for ReplicationReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ReplicationReader")
    }
}

impl ReplicationReader {
    /// The next message; `None` when the server ended the stream in good order. May be cancelled: nothing is lost.
    ///
    /// # Errors
    /// When the connection is lost, or the server ends the stream with an error.
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

    /// Whether the next message is here already, so that [`ReplicationReader::next`] will not wait.
    #[must_use]
    pub fn buffered(&self) -> bool {
        self.frames.has_next()
    }
}

fn parse(body: &[u8]) -> Result<ReplicationMessage<'_>, TransportError> {
    let torn = || TransportError::Protocol("a replication message ends before its end".to_owned());
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
        Some(other) => Err(TransportError::Protocol(format!("replication message of kind {other}"))),
        None => Err(torn()),
    }
}

/// The sending half of a replication stream.
pub struct ReplicationWriter {
    writer: WriteHalf<BoxStream>,
    out: BytesMut,
}

impl std::fmt::Debug for ReplicationWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ReplicationWriter")
    }
}

impl ReplicationWriter {
    /// Tells the server what has arrived (`write`) and what it may forget (`flush`, `apply`), and asks for an answer if
    /// `reply_requested`. Cancelled, it may leave half a message behind: the stream is over then.
    ///
    /// # Errors
    /// When the connection is lost.
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

#[expect(clippy::disallowed_methods, reason = "the protocol wants the sender's clock; nothing here decides by it")]
fn now() -> CommitTime {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    CommitTime::from_unix_us(i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
}
