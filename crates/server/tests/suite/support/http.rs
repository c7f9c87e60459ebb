//! HTTP by hand: calls over HTTP/1.1 on a socket, calls over HTTP/2 through a bare channel, and the
//! frames of an answer. The server shares no code with this module, so both cannot have the same
//! error.

use std::collections::HashMap;
use std::net::SocketAddr;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use laredo_proto::replication::SyncResponse;
use prost::Message as _;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpSocket;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tonic::transport::Channel;
use tower::Service;

use super::within;

pub(crate) const SYNC: &str = "/laredo.replication.v1.LaredoReplicationService/Sync";
pub(crate) const STATUS: &str = "/laredo.replication.v1.LaredoReplicationService/GetReplicationStatus";

/// An answer whose head has arrived.
pub(crate) struct HttpReply {
    pub(crate) status: u16,
    /// The headers by lower-case name.
    pub(crate) headers: HashMap<String, String>,
    body: ReplyBody,
    /// The sending half over HTTP/1.1. Dropping it would end the connection.
    request: Option<OwnedWriteHalf>,
}

enum ReplyBody {
    /// A body with `Content-Length`: its reader and the remaining bytes.
    Sized(BufReader<OwnedReadHalf>, usize),
    Chunked(BufReader<OwnedReadHalf>),
    Http2(tonic::body::Body),
    Over,
}

/// Calls over HTTP/1.1 on a connection of its own, and returns when the head of the answer has
/// arrived.
pub(crate) async fn http1(
    to: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> HttpReply {
    let length = body.len().to_string();
    let headers = [headers, &[("Content-Length", length.as_str())]].concat();
    within(http1_unbounded(to, method, path, &headers, body), "the head of an answer").await
}

/// Posts the first chunk of a request that stays open over HTTP/1.1. [`HttpReply::send`] sends more
/// of it.
pub(crate) async fn http1_open(to: SocketAddr, path: &str, content_type: &str, body: &[u8]) -> HttpReply {
    let headers = [("Transfer-Encoding", "chunked"), ("Content-Type", content_type)];
    within(http1_unbounded(to, "POST", path, &headers, &chunk(body)), "the head of an answer").await
}

fn chunk(bytes: &[u8]) -> Vec<u8> {
    [format!("{:x}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat()
}

async fn http1_unbounded(to: SocketAddr, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> HttpReply {
    // The smallest buffer that the system allows, so that a client that reads nothing soon blocks
    // the server.
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let (stream, mut request) = socket.connect(to).await.unwrap().into_split();
    let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let head = format!("{method} {path} HTTP/1.1\r\nHost: test\r\n{headers}\r\n");
    // The server may answer and close before it has read a body that it refuses.
    let _ = request.write_all(&[head.as_bytes(), body].concat()).await;
    let mut stream = BufReader::new(stream);
    let status = line(&mut stream).await.split(' ').nth(1).unwrap().parse().unwrap();
    let mut headers = HashMap::new();
    loop {
        let line = line(&mut stream).await;
        let Some((name, value)) = line.split_once(": ") else { break };
        headers.insert(name.to_ascii_lowercase(), value.to_owned());
    }
    let length = headers.get("content-length").map(|length| length.parse().unwrap());
    let body = match length {
        Some(length) => ReplyBody::Sized(stream, length),
        None if headers.get("transfer-encoding").is_some_and(|coding| coding == "chunked") => {
            ReplyBody::Chunked(stream)
        }
        None => ReplyBody::Over,
    };
    HttpReply { status, headers, body, request: Some(request) }
}

async fn line(stream: &mut BufReader<OwnedReadHalf>) -> String {
    let mut line = String::new();
    stream.read_line(&mut line).await.unwrap();
    line.trim_end().to_owned()
}

/// Posts over HTTP/2.
pub(crate) async fn http2(channel: &mut Channel, path: &str, content_type: &str, body: Vec<u8>) -> HttpReply {
    http2_open(channel, path, content_type, tonic::body::Body::new(Full::new(Bytes::from(body)))).await
}

/// Posts a body that may stay open over HTTP/2.
pub(crate) async fn http2_open(
    channel: &mut Channel,
    path: &str,
    content_type: &str,
    body: tonic::body::Body,
) -> HttpReply {
    let request = http::Request::post(path).header("content-type", content_type).body(body).unwrap();
    std::future::poll_fn(|cx| channel.poll_ready(cx)).await.unwrap();
    let response = within(channel.call(request), "the head of an answer").await.unwrap();
    let headers = response.headers().iter();
    let headers = headers.map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned())).collect();
    HttpReply {
        status: response.status().as_u16(),
        headers,
        body: ReplyBody::Http2(response.into_body()),
        request: None,
    }
}

impl HttpReply {
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    /// Sends more of an open request over HTTP/1.1.
    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        self.request.as_mut().unwrap().write_all(&chunk(bytes)).await.unwrap();
    }

    /// Returns the next piece of the body, or `None` at its end. Trailers are added to the headers.
    async fn piece(&mut self) -> Option<Vec<u8>> {
        match &mut self.body {
            ReplyBody::Over => None,
            ReplyBody::Sized(_, 0) => None,
            ReplyBody::Sized(stream, left) => {
                let mut bytes = vec![0; std::mem::take(left)];
                stream.read_exact(&mut bytes).await.unwrap();
                Some(bytes)
            }
            ReplyBody::Chunked(stream) => {
                let size = line(stream).await;
                let size =
                    usize::from_str_radix(&size, 16).unwrap_or_else(|_| panic!("not the size of a chunk: {size:?}"));
                let mut bytes = vec![0; size + 2];
                stream.read_exact(&mut bytes).await.unwrap();
                bytes.truncate(size);
                (size > 0).then_some(bytes)
            }
            ReplyBody::Http2(body) => {
                let frame = body.frame().await?.unwrap();
                match frame.into_data() {
                    Ok(data) => Some(data.to_vec()),
                    Err(frame) => {
                        let trailers = frame.into_trailers().unwrap();
                        let trailers = trailers.iter();
                        self.headers.extend(trailers.map(|(n, v)| (n.to_string(), v.to_str().unwrap().to_owned())));
                        None
                    }
                }
            }
        }
    }

    /// Returns the rest of the body.
    pub(crate) async fn bytes(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        while let Some(piece) = within(self.piece(), "the rest of an answer").await {
            bytes.extend(piece);
        }
        bytes
    }

    pub(crate) async fn json(&mut self) -> serde_json::Value {
        let bytes = self.bytes().await;
        serde_json::from_slice(&bytes).unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&bytes)))
    }

    pub(crate) fn frames(self) -> ReplyFrames {
        let is_text = self.header("content-type").starts_with("application/grpc-web-text");
        ReplyFrames { reply: self, is_text, text: Vec::new(), bytes: Vec::new() }
    }
}

/// A body split into frames.
pub(crate) struct ReplyFrames {
    pub(crate) reply: HttpReply,
    is_text: bool,
    text: Vec<u8>,
    bytes: Vec<u8>,
}

impl ReplyFrames {
    /// Returns the next frame with its prefix, or `None` at the end of the body.
    pub(crate) async fn next(&mut self) -> Option<Vec<u8>> {
        loop {
            if let Some(header) = self.bytes.first_chunk::<5>() {
                let length = u32::from_be_bytes([header[1], header[2], header[3], header[4]]) as usize + 5;
                if self.bytes.len() >= length {
                    return Some(self.bytes.drain(..length).collect());
                }
            }
            match within(self.reply.piece(), "a frame").await {
                Some(piece) if self.is_text => {
                    self.text.extend(piece);
                    // Four letters decode on their own, whatever surrounds them.
                    let whole = self.text.len() / 4 * 4;
                    let letters = self.text.drain(..whole).collect::<Vec<_>>();
                    letters.chunks(4).for_each(|four| self.bytes.extend(BASE64_STANDARD.decode(four).unwrap()));
                }
                Some(piece) => self.bytes.extend(piece),
                None => {
                    assert!(self.bytes.is_empty() && self.text.is_empty(), "the body ends inside a frame");
                    return None;
                }
            }
        }
    }
}

/// Returns the message of a frame.
pub(crate) fn message(frame: &[u8]) -> SyncResponse {
    assert_eq!(frame[0], 0, "a message without flags");
    SyncResponse::decode(&frame[5..]).unwrap()
}

/// Returns a frame with this message.
pub(crate) fn frame(message: &[u8]) -> Vec<u8> {
    let length = u32::try_from(message.len()).unwrap().to_be_bytes();
    [&[0], length.as_slice(), message].concat()
}
