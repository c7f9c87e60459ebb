//! Conversion of messages from and to JSON, in protobuf's canonical mapping, by their descriptions.

use bytes::Bytes;
use prost::Message;
use prost_reflect::{DeserializeOptions, DynamicMessage, MessageDescriptor};
use serde::Serialize;
use tokio::task::spawn_blocking;
use tonic::Status;

use crate::refusal;

/// The size in bytes above which a message is converted on another thread, so that it does not
/// delay others.
pub(super) const INLINE_BYTES: usize = 16 * 1024;

/// Converts a request's JSON to a message's bytes. Unknown fields are ignored, because a newer
/// client may send them.
///
/// # Errors
/// Returns an error if the text is not JSON, or not such a message.
fn to_proto(json: &[u8], message: &MessageDescriptor) -> Result<Vec<u8>, Status> {
    let mut reader = serde_json::Deserializer::from_slice(json);
    let options = DeserializeOptions::new().deny_unknown_fields(false);
    let read = DynamicMessage::deserialize_with_options(message.clone(), &mut reader, &options)
        .and_then(|read| reader.end().map(|()| read));
    let read = read.map_err(|error| {
        refusal::malformed("request", format!("it is not the JSON of a {}: {error}", message.name()))
    })?;
    Ok(read.encode_to_vec())
}

/// Converts a request's JSON to a message's bytes. Large texts are converted on another thread.
///
/// # Errors
/// Returns the errors of [`to_proto`].
pub(super) async fn request(json: Bytes, message: &MessageDescriptor) -> Result<Vec<u8>, Status> {
    let descriptor = message.clone();
    convert(json, move |json| to_proto(json, &descriptor)).await
}

/// Runs a conversion of a message. A large message is converted on another thread.
///
/// # Errors
/// Returns the error of the conversion.
pub(super) async fn convert<T: Send + 'static>(
    message: Bytes,
    conversion: impl FnOnce(&[u8]) -> Result<T, Status> + Send + 'static,
) -> Result<T, Status> {
    if message.len() <= INLINE_BYTES {
        return conversion(&message);
    }
    let converted = spawn_blocking(move || conversion(&message)).await;
    converted.map_err(|error| Status::internal(format!("converting a message: {error}")))?
}

/// Converts an answer's message to JSON.
///
/// # Errors
/// Returns an error if the mapping cannot represent the message, as for a non-finite number in a
/// `Value`.
pub(super) fn from_proto(bytes: &[u8], message: &MessageDescriptor) -> Result<Vec<u8>, Status> {
    let failed = |error: &dyn std::fmt::Display| {
        Status::internal(format!("a {} cannot be written as JSON: {error}; request protobuf instead", message.name()))
    };
    let read = DynamicMessage::decode(message.clone(), bytes).map_err(|error| failed(&error))?;
    let mut json = Vec::with_capacity(bytes.len() * 2);
    read.serialize(&mut serde_json::Serializer::new(&mut json)).map_err(|error| failed(&error))?;
    Ok(json)
}

/// Converts an answer's message to JSON. Large messages are converted on another thread.
///
/// # Errors
/// Returns the errors of [`from_proto`].
pub(super) async fn answer(bytes: Bytes, message: &MessageDescriptor) -> Result<Bytes, Status> {
    let descriptor = message.clone();
    convert(bytes, move |bytes| from_proto(bytes, &descriptor)).await.map(Bytes::from)
}

#[cfg(test)]
mod fuzz_tests;
