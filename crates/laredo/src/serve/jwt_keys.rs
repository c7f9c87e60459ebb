//! The keys of the issuers of JWTs: they are read at the start, and again while the server runs.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use laredo_core::RetryDelays;
use laredo_server::{JwtKeyFeed, JwtKeySet, JwtKeys};
use parking_lot::Mutex;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::key_request::{KeyAddress, KeyRequest};
use crate::config::server::{AccessConfig, JwtConfig};
use crate::program::READ_INTERVAL;

/// The bounds of the time between two requests in a row that fail.
const RETRY_MIN: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(60);

/// The sources of keys that the access rules name.
pub(super) struct JwtKeySources {
    /// The sources of the newest rules.
    current: Mutex<Vec<(KeySource, JwtKeys)>>,
    /// The sources that [`JwtKeyReader`] begins to read.
    begun: mpsc::UnboundedSender<(KeySource, JwtKeyFeed)>,
}

/// The reader of all sources.
pub(super) struct JwtKeyReader(mpsc::UnboundedReceiver<(KeySource, JwtKeyFeed)>);

/// A source of keys. Identities with the same source share its keys.
#[derive(Clone, Debug, PartialEq, Eq)]
enum KeySource {
    File(PathBuf),
    Request(KeyRequest),
}

impl KeySource {
    fn new(config: &JwtConfig) -> KeySource {
        match (&config.jwks_file, &config.jwks_url) {
            (Some(file), _) => KeySource::File(file.clone()),
            (None, url) => {
                let address = match url {
                    Some(url) => KeyAddress::Keys(url.clone()),
                    None => KeyAddress::Issuer(config.issuer.clone()),
                };
                let (ca_file, token_file) = (config.ca_file.clone(), config.token_file.clone());
                KeySource::Request(KeyRequest { address, ca_file, token_file })
            }
        }
    }

    fn name(&self) -> String {
        match self {
            KeySource::File(file) => file.display().to_string(),
            KeySource::Request(request) => request.address().to_owned(),
        }
    }

    /// Returns the keys of the source. Those of a file are read at once.
    fn begin(&self) -> Result<(JwtKeys, JwtKeyFeed), String> {
        let (keys, mut feed) = JwtKeys::new(self.name());
        match self {
            KeySource::File(file) => drop(feed.replace(read_key_file(file)?)),
            KeySource::Request(_) => {}
        }
        Ok((keys, feed))
    }

    /// Reads the keys. Also returns the time until the next reading.
    async fn read(&self) -> Result<(JwtKeySet, Duration), String> {
        match self {
            KeySource::File(file) => {
                let file = file.clone();
                // Files may be on a slow or a remote disk.
                let reading = tokio::task::spawn_blocking(move || read_key_file(&file)).await;
                let set = reading.map_err(|error| error.to_string())??;
                Ok((set, READ_INTERVAL))
            }
            KeySource::Request(request) => {
                let answer = request.send().await?;
                let set = JwtKeySet::parse(&answer.body).map_err(|error| format!("{}: {error}", request.address()))?;
                Ok((set, answer.use_time))
            }
        }
    }

    /// Reads the keys until nothing uses them. It never returns otherwise without an error.
    async fn keep_current(self, mut feed: JwtKeyFeed) -> anyhow::Result<()> {
        let mut hangups = signal(SignalKind::hangup()).context("waiting for SIGHUP")?;
        let mut delays = RetryDelays::new(RETRY_MIN, RETRY_MAX);
        // The result of the last reading, so that the same problem is logged once.
        let mut last: Option<Result<(), String>> = None;
        let source = self.name();
        loop {
            let pause = match self.read().await {
                Ok((set, pause)) => {
                    delays.reset();
                    let (keys, refused) = (set.key_count(), set.refused_keys().to_vec());
                    if feed.replace(set) || last != Some(Ok(())) {
                        tracing::info!(event = "jwt_keys_read", source, keys, "the keys of JWTs were read");
                        refused.iter().for_each(|reason| {
                            tracing::warn!(event = "jwt_key_refused", source, "{reason}; the key is not used")
                        });
                    }
                    last = Some(Ok(()));
                    pause
                }
                Err(problem) => {
                    feed.record_failure();
                    let result = Some(Err(problem));
                    if let (Some(Err(problem)), true) = (&result, last != result) {
                        tracing::error!(
                            event = "jwt_keys_not_read",
                            source,
                            "the keys of JWTs: {problem}; the previous keys remain, if there are any"
                        );
                    }
                    last = result;
                    match self {
                        KeySource::File(_) => READ_INTERVAL,
                        KeySource::Request(_) => delays.after_failure(),
                    }
                }
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                _ = hangups.recv() => {}
                is_used = feed.wait_requested() => if !is_used { return Ok(()) },
            }
        }
    }
}

fn read_key_file(file: &Path) -> Result<JwtKeySet, String> {
    let json = std::fs::read(file).map_err(|error| format!("cannot read {}: {error}", file.display()))?;
    JwtKeySet::parse(&json).map_err(|error| format!("{}: {error}", file.display()))
}

impl JwtKeySources {
    /// Returns no sources, and the reader for those that are added.
    pub(super) fn new() -> (JwtKeySources, JwtKeyReader) {
        let (begun, added) = mpsc::unbounded_channel();
        (JwtKeySources { current: Mutex::default(), begun }, JwtKeyReader(added))
    }

    /// Replaces the sources by those of other rules, and returns the keys of each identity. A
    /// source that both have keeps its keys. A new file is read at once, and a new address later.
    ///
    /// # Errors
    /// All problems of new files, each a sentence. The sources are then unchanged.
    pub(super) fn replace(&self, access: &AccessConfig) -> Result<BTreeMap<String, JwtKeys>, Vec<String>> {
        let mut current = self.current.lock();
        let mut sources: Vec<(KeySource, JwtKeys)> = Vec::new();
        let (mut keys_by_identity, mut added, mut problems) = (BTreeMap::new(), Vec::new(), Vec::new());
        for (name, identity) in &access.identities {
            let Some(jwt) = &identity.jwt else { continue };
            let source = KeySource::new(jwt);
            let known = sources.iter().chain(current.iter()).find(|(known, _)| *known == source);
            let keys = match known {
                Some((_, keys)) => keys.clone(),
                None => {
                    let (keys, feed) = source.begin().unwrap_or_else(|problem| {
                        problems.push(format!("access.identities.{name}.jwt.jwks_file: {problem}"));
                        JwtKeys::new(source.name())
                    });
                    added.push((source.clone(), feed));
                    keys
                }
            };
            if !sources.iter().any(|(known, _)| *known == source) {
                sources.push((source, keys.clone()));
            }
            keys_by_identity.insert(name.clone(), keys);
        }
        if !problems.is_empty() {
            return Err(problems);
        }
        *current = sources;
        // Without the reader, the server is about to end.
        added.into_iter().for_each(|added| drop(self.begun.send(added)));
        Ok(keys_by_identity)
    }
}

impl JwtKeyReader {
    /// Reads the keys of all sources. It never returns without an error.
    ///
    /// # Errors
    /// Returns an error if a signal cannot be waited for.
    pub(super) async fn keep_current(mut self) -> anyhow::Result<()> {
        let mut readings = JoinSet::new();
        loop {
            tokio::select! {
                Some((source, feed)) = self.0.recv() => drop(readings.spawn(source.keep_current(feed))),
                Some(ended) = readings.join_next() => ended.context("reading the keys of JWTs")??,
                // There are no rules with JWTs, and no others will come.
                else => std::future::pending().await,
            }
        }
    }
}

#[cfg(test)]
mod tests;
