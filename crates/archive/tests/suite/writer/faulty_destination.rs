//! A destination on which one call fails.

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use laredo_archive::{
    Destination, DestinationError, DestinationReader, ListedObject, ManifestTag, StagedArtifact, VersionedManifest,
};

use crate::scene::is_whole;

/// The way in which a call fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CallFaultMode {
    /// The call fails before it has any effect.
    Before,
    /// The call fails after it is complete, like a lost response.
    After,
    /// The call fails in the middle: the reader ends with an error.
    Halfway,
    /// The call succeeds after a delay.
    Slow,
    /// All calls succeed, but each deletion takes a minute.
    SlowDeletes,
}

#[derive(Debug)]
pub(crate) struct FaultyDestination {
    inner: Arc<dyn Destination>,
    mode: CallFaultMode,
    /// The number of the failing call, from 0.
    fails: usize,
    calls: AtomicUsize,
}

impl FaultyDestination {
    pub(crate) fn new(inner: Arc<dyn Destination>, mode: CallFaultMode, fails: usize) -> Arc<FaultyDestination> {
        Arc::new(FaultyDestination { inner, mode, fails, calls: AtomicUsize::new(0) })
    }

    /// Returns true if there were enough calls that one has failed.
    pub(crate) fn has_failed(&self) -> bool {
        self.calls.load(Ordering::Relaxed) > self.fails
    }

    async fn call<T>(&self, call: BoxFuture<'_, Result<T, DestinationError>>) -> Result<T, DestinationError> {
        let mode = (self.calls.fetch_add(1, Ordering::Relaxed) == self.fails).then_some(self.mode);
        let lost = || DestinationError::Unavailable {
            doing: "call",
            at: self.inner.name().to_owned(),
            reason: "a fault was made".to_owned(),
        };
        let result = match mode {
            None | Some(CallFaultMode::SlowDeletes) => call.await,
            Some(CallFaultMode::Before | CallFaultMode::Halfway) => Err(lost()),
            Some(CallFaultMode::After) => call.await.and(Err(lost())),
            Some(CallFaultMode::Slow) => {
                tokio::time::sleep(Duration::from_secs(60)).await;
                call.await
            }
        };
        is_whole(&*self.inner).await.unwrap();
        result
    }
}

struct TornObjectReader(Box<dyn Read + Send>, usize);

impl Read for TornObjectReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.1 == 0 {
            return Err(io::Error::new(io::ErrorKind::ConnectionReset, "a fault was made"));
        }
        let some = buffer.len().min(self.1);
        let read = self.0.read(&mut buffer[..some])?;
        self.1 -= read;
        Ok(read)
    }
}

impl DestinationReader for FaultyDestination {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn uri(&self, object: &str) -> String {
        self.inner.uri(object)
    }

    fn manifest(&self) -> BoxFuture<'_, Result<Option<VersionedManifest>, DestinationError>> {
        self.call(self.inner.manifest()).boxed()
    }

    fn open<'a>(&'a self, object: &'a str) -> BoxFuture<'a, Result<Box<dyn Read + Send>, DestinationError>> {
        async move {
            if self.mode == CallFaultMode::Halfway && self.calls.load(Ordering::Relaxed) == self.fails {
                self.calls.fetch_add(1, Ordering::Relaxed);
                let whole = self.inner.open(object).await?;
                return Ok(Box::new(TornObjectReader(whole, 40)) as Box<dyn Read + Send>);
            }
            self.call(self.inner.open(object)).await
        }
        .boxed()
    }
}

impl Destination for FaultyDestination {
    fn put<'a>(&'a self, object: &'a str, staged: &'a StagedArtifact) -> BoxFuture<'a, Result<(), DestinationError>> {
        self.call(self.inner.put(object, staged)).boxed()
    }

    fn publish<'a>(
        &'a self,
        manifest: &'a [u8],
        over: Option<&'a ManifestTag>,
    ) -> BoxFuture<'a, Result<ManifestTag, DestinationError>> {
        self.call(self.inner.publish(manifest, over)).boxed()
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<ListedObject>, DestinationError>> {
        self.call(self.inner.list()).boxed()
    }

    fn delete<'a>(&'a self, objects: &'a [String]) -> BoxFuture<'a, Result<(), DestinationError>> {
        async move {
            if self.mode == CallFaultMode::SlowDeletes {
                tokio::time::sleep(Duration::from_secs(60)).await;
            }
            self.call(self.inner.delete(objects)).await
        }
        .boxed()
    }
}
