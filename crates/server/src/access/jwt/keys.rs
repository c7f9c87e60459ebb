//! The current keys of an issuer: the end that verifies with them, and the end that reads them.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout};

use super::key_set::{JwtAlgorithm, JwtKeySet};

/// The time that a request waits for the key of its token, if the key is not known yet.
const KEY_WAIT_MAX: Duration = Duration::from_secs(2);
/// The time after a reading in which no unknown key causes another one. Anyone can send tokens with
/// invented names of keys.
const REREAD_INTERVAL_MIN: Duration = Duration::from_secs(10);

/// The current keys of an issuer. Clones share them.
#[derive(Clone)]
pub struct JwtKeys {
    source: Arc<str>,
    state: watch::Receiver<KeyState>,
    /// Full while a reading is requested.
    requests: mpsc::Sender<()>,
}

/// The end of [`JwtKeys`] that reads the keys and replaces them.
#[derive(Debug)]
pub struct JwtKeyFeed {
    state: watch::Sender<KeyState>,
    requests: mpsc::Receiver<()>,
}

/// The result of the readings so far.
#[derive(Debug, Default)]
struct KeyState {
    /// The newest keys; `None` before the first reading that succeeded.
    set: Option<Arc<JwtKeySet>>,
    /// The time of the last reading, and true if it failed.
    last: Option<(Instant, bool)>,
}

impl JwtKeys {
    /// Returns keys that were not read yet, and the end that replaces them. `source` is a file or
    /// an address, for logs and metrics.
    #[must_use]
    pub fn new(source: impl Into<Arc<str>>) -> (JwtKeys, JwtKeyFeed) {
        let (state_sender, state) = watch::channel(KeyState::default());
        let (request_sender, requests) = mpsc::channel(1);
        let keys = JwtKeys { source: source.into(), state, requests: request_sender };
        (keys, JwtKeyFeed { state: state_sender, requests })
    }

    /// Returns the source that was given to [`JwtKeys::new`].
    pub(crate) fn source(&self) -> &str {
        &self.source
    }

    /// Returns the number of keys that tokens are verified with.
    #[must_use]
    pub fn key_count(&self) -> usize {
        self.set().map_or(0, |set| set.key_count())
    }

    /// Returns true if the last reading failed.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.state.borrow().last.is_some_and(|(_, has_failed)| has_failed)
    }

    pub(in crate::access) fn set(&self) -> Option<Arc<JwtKeySet>> {
        self.state.borrow().set.clone()
    }

    /// Returns true if the key of a token is known.
    pub(super) fn has_key(&self, id: Option<&str>, algorithm: JwtAlgorithm) -> bool {
        self.set().is_some_and(|set| set.has_key(id, algorithm))
    }

    /// Requests a reading, and waits for its end, but no longer than [`KEY_WAIT_MAX`]. Returns at
    /// once if the last reading was only just now.
    pub(super) async fn request_reading(&self) {
        let mut state = self.state.clone();
        let last = state.borrow_and_update().last;
        if last.is_some_and(|(at, _)| at.elapsed() < REREAD_INTERVAL_MIN) {
            return;
        }
        // If the channel is full, a reading is requested already.
        let _ = self.requests.try_send(());
        let _ = timeout(KEY_WAIT_MAX, state.changed()).await;
    }
}

/// Two are equal if they share their keys.
impl PartialEq for JwtKeys {
    fn eq(&self, other: &JwtKeys) -> bool {
        self.state.same_channel(&other.state)
    }
}

impl fmt::Debug for JwtKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("JwtKeys").field(&self.source).finish()
    }
}

impl JwtKeyFeed {
    /// Replaces the keys. Returns true if they are different from the previous ones.
    pub fn replace(&mut self, set: JwtKeySet) -> bool {
        let is_new = self.state.borrow().set.as_deref() != Some(&set);
        self.record(Some(set));
        is_new
    }

    /// Records a reading that failed. The previous keys remain.
    pub fn record_failure(&mut self) {
        self.record(None);
    }

    /// Waits until a token has a key that is not known. Returns false if the keys are no longer
    /// used.
    pub async fn wait_requested(&mut self) -> bool {
        self.requests.recv().await.is_some()
    }

    fn record(&mut self, set: Option<JwtKeySet>) {
        self.state.send_modify(|state| {
            state.last = Some((Instant::now(), set.is_none()));
            if let Some(set) = set {
                state.set = Some(Arc::new(set));
            }
        });
        // This reading has answered the request that came during it.
        let _ = self.requests.try_recv();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::jwt::tests::TestSigner;

    /// Returns true if the request waited for a reading.
    async fn waits(keys: &JwtKeys, feed: &mut JwtKeyFeed) -> bool {
        let request = keys.request_reading();
        tokio::pin!(request);
        if futures::poll!(&mut request).is_ready() {
            return false;
        }
        assert!(feed.wait_requested().await, "the keys are in use");
        feed.record_failure();
        request.await;
        true
    }

    #[tokio::test(start_paused = true)]
    async fn a_reading_is_requested_once_in_ten_seconds() {
        let (keys, mut feed) = JwtKeys::new("a");
        assert!(waits(&keys, &mut feed).await, "nothing was read yet");
        assert!(!waits(&keys, &mut feed).await);
        tokio::time::advance(REREAD_INTERVAL_MIN / 2).await;
        assert!(!waits(&keys, &mut feed).await);
        tokio::time::advance(REREAD_INTERVAL_MIN / 2).await;
        assert!(waits(&keys, &mut feed).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_waits_no_longer_than_its_limit() {
        let (keys, feed) = JwtKeys::new("a");
        let begun = Instant::now();
        keys.request_reading().await;
        let waited = begun.elapsed();
        assert!((KEY_WAIT_MAX..2 * KEY_WAIT_MAX).contains(&waited), "{waited:?}");
        drop(feed);
        keys.request_reading().await;
        assert_eq!(begun.elapsed(), waited, "no reading will come");
    }

    #[tokio::test]
    async fn a_failure_keeps_the_keys_and_unused_keys_are_noticed() {
        let (keys, mut feed) = JwtKeys::new("a");
        let set = || TestSigner::ed25519("one").key_set();
        assert_eq!((keys.key_count(), keys.has_failed()), (0, false));
        feed.record_failure();
        assert_eq!((keys.key_count(), keys.has_failed()), (0, true));
        let one = set();
        assert!(feed.replace(one.clone()) && !feed.replace(one), "the same keys are not new");
        assert_eq!((keys.key_count(), keys.has_failed()), (1, false));
        feed.record_failure();
        assert_eq!((keys.key_count(), keys.has_failed()), (1, true));
        assert!(feed.replace(set()), "another key with the same name is new");
        drop(keys);
        assert!(!feed.wait_requested().await);
    }
}
