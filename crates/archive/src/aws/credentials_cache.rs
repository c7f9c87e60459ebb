//! AWS credentials, which are kept while they are valid and renewed before they expire.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_config::timeout::TimeoutConfig;
use aws_credential_types::Credentials;
use aws_credential_types::provider::error::CredentialsError;
use aws_credential_types::provider::future::ProvideCredentials as Providing;
use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider};
use aws_smithy_types::error::display::DisplayErrorContext;
use object_store::CredentialProvider;
use object_store::aws::AwsCredential;
use tokio::sync::Mutex;

/// The maximum time before their expiry at which credentials are renewed. Short-lived ones are
/// renewed in the last fifth of their life.
const EARLY: Duration = Duration::from_secs(5 * 60);
/// The interval at which credentials without an expiry are fetched again, because the operator may
/// have replaced them.
const ENDLESS: Duration = Duration::from_secs(15 * 60);
/// The delay after a failed renewal, while the old credentials are still valid.
const AGAIN: Duration = Duration::from_secs(30);

/// A provider that keeps the credentials of another one. Callers must ask each time, and then
/// receive valid credentials.
#[derive(Debug)]
pub(super) struct CredentialsCache {
    from: SharedCredentialsProvider,
    clock: AwsClock,
    held: Mutex<Option<CachedCredentials>>,
}

/// The source of the current time.
pub(super) type AwsClock = aws_types::sdk_config::SharedTimeSource;

#[derive(Debug)]
struct CachedCredentials {
    credentials: Credentials,
    renew_at: SystemTime,
}

impl CredentialsCache {
    pub(super) fn new(from: SharedCredentialsProvider, clock: AwsClock) -> CredentialsCache {
        CredentialsCache { from, clock, held: Mutex::new(None) }
    }

    /// Returns valid credentials. Concurrent callers wait for the same renewal.
    async fn valid_credentials(&self) -> Result<Credentials, CredentialsError> {
        let mut held = self.held.lock().await;
        let now = self.clock.now();
        if let Some(known) = held.as_ref().filter(|known| now < known.renew_at) {
            return Ok(known.credentials.clone());
        }
        match (self.from.provide_credentials().await, held.as_mut()) {
            (Ok(credentials), _) => {
                *held = Some(CachedCredentials {
                    credentials: credentials.clone(),
                    renew_at: renew_at(now, credentials.expiry()),
                });
                Ok(credentials)
            }
            // Old credentials are used while they are still valid.
            (Err(error), Some(known)) if known.credentials.expiry().is_none_or(|end| now < end) => {
                tracing::warn!(
                    event = "aws_credentials_not_renewed", error = %DisplayErrorContext(&error),
                    "AWS credentials could not be renewed; the old ones are used while they are valid"
                );
                known.renew_at = now + AGAIN;
                if let Some(end) = known.credentials.expiry() {
                    known.renew_at = known.renew_at.min(end);
                }
                Ok(known.credentials.clone())
            }
            (Err(error), _) => Err(error),
        }
    }
}

fn renew_at(now: SystemTime, end: Option<SystemTime>) -> SystemTime {
    let Some(end) = end else { return now + ENDLESS };
    let life = end.duration_since(now).unwrap_or_default();
    now + (life - EARLY.min(life / 5))
}

impl ProvideCredentials for CredentialsCache {
    fn provide_credentials<'a>(&'a self) -> Providing<'a>
    where
        Self: 'a,
    {
        Providing::new(self.valid_credentials())
    }
}

/// An adapter that passes the SDK's credentials to `object_store`, which asks before each request.
#[derive(Debug)]
pub(crate) struct ObjectStoreCredentials(pub(crate) SharedCredentialsProvider);

#[async_trait::async_trait]
impl CredentialProvider for ObjectStoreCredentials {
    type Credential = AwsCredential;

    async fn get_credential(&self) -> object_store::Result<Arc<AwsCredential>> {
        let credentials = self.0.provide_credentials().await.map_err(|error| object_store::Error::Generic {
            store: "S3",
            source: Box::new(NoCredentials::from(error)),
        })?;
        Ok(Arc::new(AwsCredential {
            key_id: credentials.access_key_id().to_owned(),
            secret_key: credentials.secret_access_key().to_owned(),
            token: credentials.session_token().map(ToOwned::to_owned),
        }))
    }
}

/// An error that means that no credentials are available to sign a request.
#[derive(Debug)]
pub(crate) struct NoCredentials {
    /// True if the error stays until the operator changes something.
    pub(crate) definite: bool,
    reason: String,
}

impl From<CredentialsError> for NoCredentials {
    fn from(error: CredentialsError) -> NoCredentials {
        let reason = DisplayErrorContext(&error).to_string();
        let definite = match &error {
            CredentialsError::CredentialsNotLoaded(_) | CredentialsError::InvalidConfiguration(_) => true,
            // If a role may not be assumed, STS returns an error type of its own, of which only the
            // text is available here.
            _ => reason.contains("AccessDenied"),
        };
        NoCredentials { definite, reason }
    }
}

impl fmt::Display for NoCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no AWS credentials: {}", self.reason)
    }
}

impl std::error::Error for NoCredentials {}

/// Returns the SDK's timeouts: for a connection, for one response, and for all tries of a call
/// together.
pub(super) fn timeouts() -> TimeoutConfig {
    let timeouts = TimeoutConfig::builder().connect_timeout(Duration::from_secs(5));
    timeouts.operation_attempt_timeout(Duration::from_secs(10)).operation_timeout(Duration::from_secs(30)).build()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_renewed_before_their_end() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let renewed = |life: u64| renew_at(now, Some(now + Duration::from_secs(life))).duration_since(now).unwrap();
        assert_eq!(renewed(3600), Duration::from_secs(3300));
        assert_eq!(renewed(10), Duration::from_secs(8));
        assert_eq!(renew_at(now, Some(now - Duration::from_secs(1))), now);
        assert_eq!(renew_at(now, None), now + ENDLESS);
    }
}
