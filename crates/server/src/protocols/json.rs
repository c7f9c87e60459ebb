//! Messages as JSON, in protobuf's canonical mapping, by their descriptions.

use bytes::Bytes;
use prost::Message;
use prost_reflect::{DeserializeOptions, DynamicMessage, MessageDescriptor};
use serde::Serialize;
use tokio::task::spawn_blocking;
use tonic::Status;

use crate::refusal;

/// What is larger is made JSON of on a thread of its own, for it would hold up others.
pub(super) const INLINE_BYTES: usize = 16 * 1024;

/// A request's JSON as a message's bytes. Fields that the message does not have are left out: a newer client may know them.
///
/// # Errors
/// When it is not JSON, or not such a message.
pub(super) fn to_proto(json: &[u8], message: &MessageDescriptor) -> Result<Vec<u8>, Status> {
    let mut reader = serde_json::Deserializer::from_slice(json);
    let options = DeserializeOptions::new().deny_unknown_fields(false);
    let read = DynamicMessage::deserialize_with_options(message.clone(), &mut reader, &options)
        .and_then(|read| reader.end().map(|()| read));
    let read = read.map_err(|error| {
        refusal::malformed("request", format!("it is not the JSON of a {}: {error}", message.name()))
    })?;
    Ok(read.encode_to_vec())
}

/// An answer's message as JSON.
///
/// # Errors
/// When the mapping has no words for it, as for a number in a `Value` that is not finite.
pub(super) fn from_proto(bytes: &[u8], message: &MessageDescriptor) -> Result<Vec<u8>, Status> {
    let told = |error: &dyn std::fmt::Display| {
        Status::internal(format!("a {} cannot be told as JSON: {error}; ask for proto instead", message.name()))
    };
    let read = DynamicMessage::decode(message.clone(), bytes).map_err(|error| told(&error))?;
    let mut json = Vec::with_capacity(bytes.len() * 2);
    read.serialize(&mut serde_json::Serializer::new(&mut json)).map_err(|error| told(&error))?;
    Ok(json)
}

/// The same, without holding up others.
///
/// # Errors
/// As [`from_proto`].
pub(super) async fn answer(bytes: Bytes, message: &MessageDescriptor) -> Result<Bytes, Status> {
    if bytes.len() <= INLINE_BYTES {
        return from_proto(&bytes, message).map(Bytes::from);
    }
    let message = message.clone();
    let written = spawn_blocking(move || from_proto(&bytes, &message)).await;
    written.map_err(|error| Status::internal(format!("writing JSON: {error}")))?.map(Bytes::from)
}
