//! The messages that a client of version 0.4 sends after its request: about one acknowledgement per
//! second, as long as the stream lasts.
//!
//! They are read so that the client's sending never stalls, and are then discarded. At most a
//! prefix of five bytes is in memory here, for any number and size of messages. Nothing depends on
//! them.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use http_body::Body;
use laredo_proto::frame::{self, PREFIX_LENGTH};
use tonic::Status;

use super::check_flags;
use crate::refusal;

/// The maximum size of an acknowledgement in bytes. It contains a position and little more.
const BYTES_MAX: usize = 64 * 1024;
/// The number of pieces of the body that are read in one poll, so that the stream itself also makes
/// progress.
const PIECES_MAX: usize = 16;

/// The rest of a request whose first message opened a stream.
#[derive(Debug)]
pub(crate) struct AcknowledgementReader<B> {
    /// `None` once the client has ended its request, or has gone.
    body: Option<B>,
    prefix: [u8; PREFIX_LENGTH],
    prefix_filled: usize,
    /// The number of bytes of the present message that have not arrived.
    left: usize,
}

impl<B> AcknowledgementReader<B> {
    /// Starts with the bytes that have already arrived.
    ///
    /// # Errors
    /// Returns an error if those bytes are malformed.
    pub(crate) fn new(body: B, begun: &[u8]) -> Result<AcknowledgementReader<B>, Status> {
        let mut acknowledgements =
            AcknowledgementReader { body: Some(body), prefix: [0; PREFIX_LENGTH], prefix_filled: 0, left: 0 };
        acknowledgements.pass(begun)?;
        Ok(acknowledgements)
    }

    /// Skips bytes of messages.
    fn pass(&mut self, mut bytes: &[u8]) -> Result<(), Status> {
        while !bytes.is_empty() {
            let passed = self.left.min(bytes.len());
            bytes.advance(passed);
            self.left -= passed;
            if self.left > 0 || bytes.is_empty() {
                return Ok(());
            }
            let filling = (PREFIX_LENGTH - self.prefix_filled).min(bytes.len());
            bytes.copy_to_slice(&mut self.prefix[self.prefix_filled..self.prefix_filled + filling]);
            self.prefix_filled += filling;
            if self.prefix_filled == PREFIX_LENGTH {
                self.prefix_filled = 0;
                self.left = announced(self.prefix)?;
            }
        }
        Ok(())
    }
}

impl<B> AcknowledgementReader<B>
where
    B: Body<Data = Bytes> + Unpin,
{
    /// Reads the bytes that have arrived. It is ready only with the reason why the stream must end.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Status> {
        for _ in 0..PIECES_MAX {
            let Some(body) = &mut self.body else { return Poll::Pending };
            match Pin::new(body).poll_frame(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Some(Ok(frame))) => {
                    let Ok(data) = frame.into_data() else { continue };
                    if let Err(status) = self.pass(&data) {
                        return Poll::Ready(status);
                    }
                }
                // A client may end its request and continue to read. A client that has gone is
                // detected when the stream is sent.
                Poll::Ready(None | Some(Err(_))) => self.body = None,
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

/// Returns the length of a message, from its prefix.
fn announced(prefix: [u8; PREFIX_LENGTH]) -> Result<usize, Status> {
    check_flags(prefix[0])?;
    match frame::length(&prefix) {
        Some(length) if length <= BYTES_MAX => Ok(length),
        length => {
            let length = length.unwrap_or_default();
            Err(refusal::malformed("acknowledgement", format!("it has {length} bytes, and may have {BYTES_MAX}")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(length: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        frame::prefix(length, &mut bytes);
        bytes.resize(bytes.len() + length, 0xFF);
        bytes
    }

    #[test]
    fn messages_are_passed_wherever_they_are_cut() {
        let all = [0, 1, 7, 300, 0, 64 * 1024].map(message).concat();
        for size in [1, 2, 3, 5, 6, 11, 4096, all.len()] {
            let mut passing = AcknowledgementReader::new((), &[]).unwrap();
            all.chunks(size).for_each(|piece| passing.pass(piece).unwrap());
            assert_eq!((passing.left, passing.prefix_filled), (0, 0), "pieces of {size}");
            passing.pass(&all[..all.len() - 1]).unwrap();
            assert_eq!(passing.left, 1);
        }
    }

    #[test]
    fn what_is_no_message_is_found_wherever_it_is_cut() {
        let too_large = u32::to_be_bytes(64 * 1024 + 1);
        for bad in [[&[0], &too_large[..]].concat(), vec![1, 0, 0, 0, 0], vec![2, 0, 0, 0, 0], vec![0x80, 0, 0, 0, 1]] {
            let all = [message(3), bad].concat();
            for cut in 0..all.len() {
                let mut passing = AcknowledgementReader::new((), &all[..cut]).unwrap();
                assert!(passing.pass(&all[cut..]).is_err(), "{all:?} cut at {cut}");
            }
        }
    }
}
