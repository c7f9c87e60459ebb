use bytes::{Buf, BytesMut};
use postgres_protocol::message::backend::Message;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadHalf, WriteHalf};

use super::error::{PostgresError, TransportError};

/// The size of a tag and a length, in bytes.
const HEADER: usize = 5;
/// The maximum size of a frame. PostgreSQL builds its messages in buffers of less than 1 GiB.
const FRAME_BYTES_MAX: usize = (1 << 30) + (1 << 16);
/// The maximum size of a frame before the login is complete. The server sends no long messages
/// then.
const LOGIN_FRAME_BYTES_MAX: usize = 1 << 20;
/// The number of bytes that one read asks for.
const READ_BYTES: usize = 256 * 1024;
/// The buffer size up to which a buffer is kept after a large frame.
const BUFFER_BYTES_KEPT: usize = 4 * 1024 * 1024;

/// A reader that splits the server's bytes into messages.
pub(super) struct BackendFrameReader<R> {
    from: R,
    buffer: BytesMut,
    /// The size of the frame that was returned last, in bytes.
    frame_bytes: usize,
    bytes_max: usize,
}

/// A message, borrowed from the read buffer.
pub(super) struct BackendFrame<'a>(&'a [u8]);

impl<'a> BackendFrame<'a> {
    pub(super) fn tag(&self) -> u8 {
        self.0[0]
    }

    pub(super) fn body(&self) -> &'a [u8] {
        &self.0[HEADER..]
    }

    /// Parses a copy of the message.
    pub(super) fn message(&self) -> Result<Message, TransportError> {
        match Message::parse(&mut BytesMut::from(self.0)) {
            Ok(Some(message)) => Ok(message),
            Ok(None) => Err(TransportError::Protocol("a message is incomplete".to_owned())),
            Err(error) => Err(TransportError::Protocol(error.to_string())),
        }
    }

    /// Returns the error in an `ErrorResponse` or `NoticeResponse`.
    pub(super) fn error(&self) -> PostgresError {
        match self.message() {
            Ok(Message::ErrorResponse(body)) => PostgresError::read(body.fields()),
            Ok(Message::NoticeResponse(body)) => PostgresError::read(body.fields()),
            _ => PostgresError::default(),
        }
    }

    pub(super) fn unexpected(&self, during: &str) -> TransportError {
        TransportError::Protocol(format!("unexpected message {:?} during {during}", char::from(self.tag())))
    }
}

impl<R: AsyncRead + Unpin> BackendFrameReader<R> {
    /// Creates a reader that accepts only short frames, until [`BackendFrameReader::logged_in`].
    pub(super) fn new(from: R) -> BackendFrameReader<R> {
        BackendFrameReader { from, buffer: BytesMut::new(), frame_bytes: 0, bytes_max: LOGIN_FRAME_BYTES_MAX }
    }

    pub(super) fn logged_in(&mut self) {
        self.bytes_max = FRAME_BYTES_MAX;
    }

    /// Reads the next message and drops the one before it. Cancel safe: no data is lost.
    pub(super) async fn next(&mut self) -> Result<BackendFrame<'_>, TransportError> {
        self.advance().await?;
        Ok(self.frame())
    }

    /// Advances to the next message and returns its tag. Cancel safe: no data is lost.
    pub(super) async fn advance(&mut self) -> Result<u8, TransportError> {
        self.release();
        self.frame_bytes = loop {
            match self.length_at(0)? {
                Some(length) => break length,
                None => self.fill().await?,
            }
        };
        Ok(self.buffer[0])
    }

    /// Returns the message that [`BackendFrameReader::advance`] has read.
    pub(super) fn frame(&self) -> BackendFrame<'_> {
        BackendFrame(&self.buffer[..self.frame_bytes])
    }

    /// Returns true if [`BackendFrameReader::next`] has a whole message without reading.
    pub(super) fn has_next(&self) -> bool {
        matches!(self.length_at(self.frame_bytes), Ok(Some(_)))
    }

    pub(super) fn get_mut(&mut self) -> &mut R {
        &mut self.from
    }

    fn release(&mut self) {
        self.buffer.advance(self.frame_bytes);
        self.frame_bytes = 0;
        if self.buffer.is_empty() && self.buffer.capacity() > BUFFER_BYTES_KEPT {
            self.buffer = BytesMut::new();
        }
    }

    /// Returns the length of the frame that begins `at`, if all of it has arrived.
    fn length_at(&self, at: usize) -> Result<Option<usize>, TransportError> {
        let rest = &self.buffer[at..];
        let Some(([_, length @ ..], _)) = rest.split_first_chunk::<HEADER>() else {
            return Ok(None);
        };
        // The length counts itself, but not the tag.
        let length = u32::from_be_bytes(*length) as usize + 1;
        if !(HEADER..=self.bytes_max).contains(&length) {
            return Err(TransportError::Protocol(format!("a message of the invalid length {length}")));
        }
        Ok((rest.len() >= length).then_some(length))
    }

    async fn fill(&mut self) -> Result<(), TransportError> {
        // The buffer grows with what has arrived, not with what a header claims.
        if self.buffer.capacity() - self.buffer.len() < READ_BYTES / 2 {
            self.buffer.reserve(READ_BYTES);
        }
        match self.from.read_buf(&mut self.buffer).await? {
            0 => Err(TransportError::closed()),
            _ => Ok(()),
        }
    }
}

impl<S: AsyncRead + AsyncWrite> BackendFrameReader<S> {
    /// Splits reading from writing. Buffered bytes stay with the reader.
    pub(super) fn split(self) -> (BackendFrameReader<ReadHalf<S>>, WriteHalf<S>) {
        let (from, writer) = tokio::io::split(self.from);
        let reader =
            BackendFrameReader { from, buffer: self.buffer, frame_bytes: self.frame_bytes, bytes_max: self.bytes_max };
        (reader, writer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(tag: u8, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(body.len() + 4).unwrap();
        [&[tag], length.to_be_bytes().as_slice(), body].concat()
    }

    #[tokio::test]
    async fn frames_come_whole_however_they_arrive() {
        let bytes = [frame(b'a', b"one"), frame(b'b', b""), frame(b'c', &[7; 7_000])].concat();
        for step in [1, 4, 5, 6, 9, 4096, bytes.len()] {
            let pieces: Vec<_> = bytes.chunks(step).map(<[u8]>::to_vec).collect();
            let mut reader = BackendFrameReader::new(PiecewiseReader(pieces.into()));
            for (tag, length) in [(b'a', 3), (b'b', 0), (b'c', 7_000)] {
                let frame = reader.next().await.unwrap();
                assert_eq!((frame.tag(), frame.body().len()), (tag, length));
            }
            assert!(matches!(reader.next().await, Err(TransportError::Lost(_))));
        }
    }

    #[tokio::test]
    async fn impossible_lengths_are_refused_before_they_are_believed() {
        for length in [0_u32, 3, 1 << 21, u32::MAX] {
            let bytes = [b"d".as_slice(), &length.to_be_bytes()].concat();
            let mut reader = BackendFrameReader::new(bytes.as_slice());
            assert!(matches!(reader.next().await, Err(TransportError::Protocol(_))), "{length}");
        }
    }

    #[tokio::test]
    async fn buffered_bytes_are_counted() {
        let bytes = [frame(b'a', b"x"), frame(b'b', b"y"), b"c".to_vec()].concat();
        let mut reader = BackendFrameReader::new(bytes.as_slice());
        reader.next().await.unwrap();
        assert!(reader.has_next());
        reader.next().await.unwrap();
        assert!(!reader.has_next(), "a header without its end is not a message");
    }

    struct PiecewiseReader(std::collections::VecDeque<Vec<u8>>);

    impl AsyncRead for PiecewiseReader {
        fn poll_read(
            mut self: std::pin::Pin<&mut Self>,
            _: &mut std::task::Context<'_>,
            into: &mut tokio::io::ReadBuf<'_>,
        ) -> std::task::Poll<std::io::Result<()>> {
            if let Some(mut piece) = self.0.pop_front() {
                let rest = piece.split_off(piece.len().min(into.remaining()));
                into.put_slice(&piece);
                if !rest.is_empty() {
                    self.0.push_front(rest);
                }
            }
            std::task::Poll::Ready(Ok(()))
        }
    }
}
