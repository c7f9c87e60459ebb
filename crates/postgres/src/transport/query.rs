use std::collections::BTreeMap;
use std::time::Duration;

use bytes::BytesMut;
use fallible_iterator::FallibleIterator;
use laredo_core::Oid;
use postgres_protocol::IsNull;
use postgres_protocol::message::backend::Message;
use postgres_protocol::message::frontend::{self, BindError};
use tokio::io::AsyncWriteExt;

use super::error::{PostgresError, TransportError};
use super::frame::{BackendFrame, BackendFrameReader};
use super::open::{self, BoxedSocket, SessionPurpose};
use crate::options::ConnectionOptions;

/// A row of a plain query: every value as text, `None` for NULL.
pub type TextRow = Vec<Option<String>>;

/// A parameter of a query.
#[derive(Clone, Copy, Debug)]
pub(crate) struct QueryParameter<'a> {
    /// The OID of the type.
    pub(crate) type_oid: Oid,
    /// True if the value is in the type's text form instead of its binary form.
    pub(crate) is_text: bool,
    /// The encoded value.
    pub(crate) value: &'a [u8],
}

/// The values that a request to cancel a session's statement has to contain.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct CancelKey {
    pub(super) process_id: i32,
    pub(super) secret: i32,
}

/// The time after which a canceled statement that has not ended is canceled again.
const CANCEL_AGAIN: Duration = Duration::from_secs(5);

/// A session that accepts SQL.
pub struct SqlConnection {
    frames: BackendFrameReader<BoxedSocket>,
    parameters: BTreeMap<String, String>,
    process_id: i32,
    /// The key for canceling a statement. A pooler provides its own.
    cancel_key: CancelKey,
    /// True if a query was sent and the end of its answer was not read.
    busy: bool,
}

impl std::fmt::Debug for SqlConnection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").field("process_id", &self.process_id).finish_non_exhaustive()
    }
}

impl SqlConnection {
    /// Connects for SQL.
    ///
    /// # Errors
    /// Fails if the server cannot be reached or refuses the login.
    pub async fn connect(options: &ConnectionOptions) -> Result<SqlConnection, TransportError> {
        open::open(options, SessionPurpose::Sql).await
    }

    pub(super) async fn connect_replication(options: &ConnectionOptions) -> Result<SqlConnection, TransportError> {
        open::open(options, SessionPurpose::Replication).await
    }

    /// Reads the server's parameters after a login, and returns the session once it accepts
    /// queries.
    pub(super) async fn ready(frames: BackendFrameReader<BoxedSocket>) -> Result<SqlConnection, TransportError> {
        let mut connection = SqlConnection {
            frames,
            parameters: BTreeMap::new(),
            process_id: 0,
            cancel_key: CancelKey::default(),
            busy: false,
        };
        loop {
            let frame = connection.frames.next().await?;
            match frame.tag() {
                b'Z' => break,
                b'E' => return Err(frame.error().into()),
                b'S' | b'K' => match frame.message()? {
                    Message::ParameterStatus(body) => {
                        let pair = body.name().and_then(|name| Ok((name.to_owned(), body.value()?.to_owned())));
                        connection.parameters.extend(pair);
                    }
                    Message::BackendKeyData(body) => {
                        connection.process_id = body.process_id();
                        connection.cancel_key = CancelKey { process_id: body.process_id(), secret: body.secret_key() };
                    }
                    _ => return Err(frame.unexpected("the start of the session")),
                },
                b'N' => {}
                _ => return Err(frame.unexpected("the start of the session")),
            }
        }
        connection.frames.logged_in();
        Ok(connection)
    }

    /// Records the ID of the server process. Returns true if it differs from that of the login, as
    /// it does through a pooler.
    pub(super) fn set_process_id(&mut self, process_id: i32) -> bool {
        std::mem::replace(&mut self.process_id, process_id) != process_id
    }

    /// Returns the ID of the server process that serves this session.
    #[must_use]
    pub fn process_id(&self) -> i32 {
        self.process_id
    }

    /// Ends the session, and waits until the server has ended it. Until then it counts against
    /// `max_connections`. A running statement is canceled. `options` are those of
    /// [`SqlConnection::connect`].
    pub(crate) async fn close(mut self, options: &ConnectionOptions) {
        let mut terminate = BytesMut::new();
        frontend::terminate(&mut terminate);
        let mut is_reported = false;
        loop {
            if self.busy {
                let canceled = open::cancel(options, self.cancel_key);
                match tokio::time::timeout(CANCEL_AGAIN, canceled).await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => tracing::debug!(event = "cancel_failed", %error, "cannot cancel a statement"),
                    Err(_) => {
                        tracing::debug!(event = "cancel_failed", "no answer to the request to cancel a statement")
                    }
                }
            }
            let ended = async {
                if !std::mem::replace(&mut is_reported, true) {
                    let writer = self.frames.get_mut();
                    if writer.write_all(&terminate).await.is_err() || writer.flush().await.is_err() {
                        return;
                    }
                }
                // The server closes the connection when its process ends. Keepalives notice a
                // vanished server.
                while self.frames.advance().await.is_ok() {}
            };
            if tokio::time::timeout(CANCEL_AGAIN, ended).await.is_ok() {
                return;
            }
        }
    }

    /// Returns true if the session waits for a statement. An error in the last one did not end it.
    pub(crate) fn is_idle(&self) -> bool {
        !self.busy
    }

    /// Returns the server's major version: 15 for PostgreSQL 15.18, and 0 if it is unknown.
    #[must_use]
    pub fn major_version(&self) -> u32 {
        let version = self.parameters.get("server_version").map_or("", String::as_str);
        let digits = version.split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default();
        digits.parse().unwrap_or(0)
    }

    /// Runs one or more statements, and returns the rows of all of them.
    ///
    /// # Errors
    /// [`TransportError::Server`] leaves the session usable. Any other error ends it, and so does
    /// dropping the future early.
    pub async fn simple_query(&mut self, sql: &str) -> Result<Vec<TextRow>, TransportError> {
        self.send(sql).await?;
        let mut rows = Vec::new();
        let mut error = None;
        loop {
            let frame = self.frames.next().await?;
            match frame.tag() {
                b'D' => rows.push(text_row(&frame)?),
                b'E' => error = error.or(Some(frame.error())),
                b'Z' => break,
                b'T' | b'C' | b'I' | b'N' | b'S' | b'A' => {}
                _ => return Err(frame.unexpected("a query")),
            }
        }
        self.finish(error).map(|()| rows)
    }

    /// Runs one query with parameters, and returns its rows as the server sends them. Each row is
    /// an `i16` count and its cells in binary form.
    ///
    /// # Errors
    /// [`TransportError::Server`] leaves the session usable. Any other error ends it, and so does
    /// dropping the future early.
    pub(crate) async fn query(
        &mut self,
        sql: &str,
        parameters: &[QueryParameter<'_>],
    ) -> Result<Vec<Vec<u8>>, TransportError> {
        let mut out = BytesMut::new();
        frontend::parse("", sql, parameters.iter().map(|parameter| parameter.type_oid), &mut out)?;
        let formats = parameters.iter().map(|parameter| i16::from(!parameter.is_text));
        let values = parameters.iter().map(|parameter| parameter.value);
        let put = |value: &[u8], out: &mut BytesMut| {
            out.extend_from_slice(value);
            Ok(IsNull::No)
        };
        frontend::bind("", "", formats, values, put, [1], &mut out).map_err(|error| match error {
            BindError::Serialization(error) => TransportError::from(error),
            BindError::Conversion(error) => TransportError::Protocol(error.to_string()),
        })?;
        frontend::execute("", 0, &mut out)?;
        frontend::sync(&mut out);
        self.send_messages(&out).await?;
        let (mut rows, mut error) = (Vec::new(), None);
        loop {
            let frame = self.frames.next().await?;
            match frame.tag() {
                b'D' => rows.push(frame.body().to_vec()),
                b'E' => error = error.or(Some(frame.error())),
                b'Z' => break,
                b'1' | b'2' | b'C' | b'I' | b'N' | b'S' | b'A' => {}
                _ => return Err(frame.unexpected("a query with parameters")),
            }
        }
        self.finish(error).map(|()| rows)
    }

    /// Begins a `COPY … TO STDOUT`.
    pub(crate) async fn copy_out(&mut self, sql: &str) -> Result<CopyOut<'_>, TransportError> {
        self.send(sql).await?;
        self.starts(b'H', "the start of a COPY").await?;
        Ok(CopyOut { connection: self })
    }

    /// Begins a `COPY … FROM STDIN`.
    pub(crate) async fn copy_in(&mut self, sql: &str) -> Result<CopyIn<'_>, TransportError> {
        self.send(sql).await?;
        self.starts(b'G', "the start of a COPY").await?;
        Ok(CopyIn { connection: self, out: BytesMut::new() })
    }

    /// Reads up to the message which says that the copy has begun.
    async fn starts(&mut self, tag: u8, during: &str) -> Result<(), TransportError> {
        loop {
            let frame = self.frames.next().await?;
            match frame.tag() {
                found if found == tag => return Ok(()),
                b'E' => {
                    let error = frame.error();
                    return Err(self.fail(error).await);
                }
                b'N' | b'S' | b'A' => {}
                _ => return Err(frame.unexpected(during)),
            }
        }
    }

    /// Sends a statement that turns the session into a stream in both directions, and returns its
    /// reader.
    pub(super) async fn into_copy_both(mut self, sql: &str) -> Result<BackendFrameReader<BoxedSocket>, TransportError> {
        self.send(sql).await?;
        loop {
            let frame = self.frames.next().await?;
            match frame.tag() {
                b'W' => return Ok(self.frames),
                b'E' => return Err(frame.error().into()),
                b'N' | b'S' | b'A' => {}
                _ => return Err(frame.unexpected("the start of replication")),
            }
        }
    }

    async fn send(&mut self, sql: &str) -> Result<(), TransportError> {
        let mut out = BytesMut::new();
        frontend::query(sql, &mut out)?;
        self.send_messages(&out).await
    }

    async fn send_messages(&mut self, messages: &[u8]) -> Result<(), TransportError> {
        if self.busy {
            return Err(TransportError::closed());
        }
        self.busy = true;
        self.frames.get_mut().write_all(messages).await?;
        Ok(self.frames.get_mut().flush().await?)
    }

    /// Reads after an error until the session accepts the next query.
    async fn fail(&mut self, error: PostgresError) -> TransportError {
        loop {
            match self.frames.advance().await {
                Ok(b'Z') => break,
                Ok(_) => {}
                // The server sends nothing after a FATAL error.
                Err(_) => return error.into(),
            }
        }
        self.busy = false;
        error.into()
    }

    fn finish(&mut self, error: Option<PostgresError>) -> Result<(), TransportError> {
        self.busy = false;
        error.map_or(Ok(()), |error| Err(error.into()))
    }
}

/// A running `COPY … TO STDOUT`. If it is dropped before its end, the session ends.
pub(crate) struct CopyOut<'a> {
    connection: &'a mut SqlConnection,
}

impl CopyOut<'_> {
    /// Returns the next message's bytes; `None` when the copy is complete.
    pub(crate) async fn next(&mut self) -> Result<Option<&[u8]>, TransportError> {
        loop {
            match self.connection.frames.advance().await? {
                b'd' => break,
                b'c' | b'C' | b'N' | b'S' | b'A' => {}
                b'Z' => return self.connection.finish(None).map(|()| None),
                b'E' => {
                    let error = self.connection.frames.frame().error();
                    return Err(self.connection.fail(error).await);
                }
                _ => return Err(self.connection.frames.frame().unexpected("a COPY")),
            }
        }
        Ok(Some(self.connection.frames.frame().body()))
    }
}

/// The size of the pieces in which copied data is sent, in bytes.
const COPY_IN_BYTES: usize = 256 * 1024;

/// A running `COPY … FROM STDIN`. If it is dropped before its end, the session ends and nothing is
/// copied.
pub(crate) struct CopyIn<'a> {
    connection: &'a mut SqlConnection,
    out: BytesMut,
}

impl CopyIn<'_> {
    /// Sends bytes of the copy, in pieces of any size. [`Self::finish`] reports the server's
    /// errors.
    pub(crate) async fn send(&mut self, bytes: &[u8]) -> Result<(), TransportError> {
        frontend::CopyData::new(bytes)?.write(&mut self.out);
        if self.out.len() >= COPY_IN_BYTES {
            self.flush().await?;
        }
        Ok(())
    }

    async fn flush(&mut self) -> Result<(), TransportError> {
        self.connection.frames.get_mut().write_all(&self.out).await?;
        self.out.clear();
        Ok(())
    }

    /// Ends the copy.
    pub(crate) async fn finish(mut self) -> Result<(), TransportError> {
        frontend::copy_done(&mut self.out);
        self.flush().await?;
        self.connection.frames.get_mut().flush().await?;
        let mut error = None;
        loop {
            let frame = self.connection.frames.next().await?;
            match frame.tag() {
                b'E' => error = error.or(Some(frame.error())),
                b'Z' => break,
                b'C' | b'N' | b'S' | b'A' => {}
                _ => return Err(frame.unexpected("the end of a COPY")),
            }
        }
        self.connection.finish(error)
    }
}

fn text_row(frame: &BackendFrame<'_>) -> Result<TextRow, TransportError> {
    let broken = |error: std::io::Error| TransportError::Protocol(error.to_string());
    let Message::DataRow(body) = frame.message()? else {
        return Err(frame.unexpected("a query"));
    };
    let ranges = body.ranges().map(|range| {
        let text = range.map(|range| String::from_utf8_lossy(&body.buffer()[range]).into_owned());
        Ok(text)
    });
    ranges.collect().map_err(broken)
}
