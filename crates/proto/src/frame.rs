//! The five-byte prefix before every message in gRPC, gRPC-Web and Connect: a flags byte and a
//! big-endian `u32` length.

use prost::Message;

/// The size of the prefix in bytes.
pub const PREFIX_LENGTH: usize = 5;

/// Appends a message as one uncompressed frame.
pub fn encode(message: &impl Message, out: &mut Vec<u8>) {
    prefix(message.encoded_len(), out);
    message.encode_raw(out);
}

/// Returns a message as one uncompressed frame.
#[must_use]
pub fn to_bytes(message: &impl Message) -> bytes::Bytes {
    let mut out = Vec::with_capacity(PREFIX_LENGTH + message.encoded_len());
    encode(message, &mut out);
    out.into()
}

/// Appends the prefix of a message of `length` bytes.
pub fn prefix(length: usize, out: &mut Vec<u8>) {
    let length =
        u32::try_from(length).expect("a frame is far below 4 GiB: rows are below 1 GiB and batches below 2 MiB");
    out.push(0);
    out.extend_from_slice(&length.to_be_bytes());
}

/// Returns the length in a prefix; `None` for fewer than five bytes.
#[must_use]
pub fn length(bytes: &[u8]) -> Option<usize> {
    let header = bytes.first_chunk::<PREFIX_LENGTH>()?;
    Some(u32::from_be_bytes([header[1], header[2], header[3], header[4]]) as usize)
}
