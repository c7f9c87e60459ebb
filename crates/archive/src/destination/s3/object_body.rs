//! The bytes of an object, for a thread that may block.

use std::io::{self, ErrorKind, Read};

use bytes::{Buf, Bytes};
use futures::StreamExt;
use futures::stream::BoxStream;
use object_store::GetResult;
use tokio::runtime::Handle;

/// A reader of an object while it is received. It reports the end only after all announced bytes.
pub(super) struct ObjectBody {
    runtime: Handle,
    stream: BoxStream<'static, object_store::Result<Bytes>>,
    chunk: Bytes,
    left: u64,
    broken: Option<String>,
}

impl ObjectBody {
    pub(super) fn new(found: GetResult) -> ObjectBody {
        let left = found.range.end - found.range.start;
        ObjectBody { runtime: Handle::current(), stream: found.into_stream(), chunk: Bytes::new(), left, broken: None }
    }

    /// Receives the next chunk if the last one is used up and the object has more bytes.
    fn fill(&mut self) -> Result<(), String> {
        while self.chunk.is_empty() && self.left > 0 {
            self.chunk = match self.runtime.block_on(self.stream.next()) {
                Some(Ok(chunk)) => chunk,
                Some(Err(error)) => return Err(super::error_response::deepest(&error).to_string()),
                None => return Err(format!("it ended {} bytes early", self.left)),
            };
            let length = self.chunk.len() as u64;
            self.left = self.left.checked_sub(length).ok_or("it is longer than its length")?;
        }
        Ok(())
    }
}

impl Read for ObjectBody {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.broken.is_none() {
            self.broken = self.fill().err();
        }
        if let Some(reason) = &self.broken {
            return Err(io::Error::new(ErrorKind::UnexpectedEof, format!("an object was cut off: {reason}")));
        }
        let length = buffer.len().min(self.chunk.len());
        self.chunk.copy_to_slice(&mut buffer[..length]);
        Ok(length)
    }
}
