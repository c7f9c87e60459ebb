//! Credentials that are kept as long as they are good, and renewed before they are not.

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

/// How long before their end credentials are renewed, at the most; those of a short life are renewed in its last fifth.
const EARLY: Duration = Duration::from_secs(5 * 60);
/// When credentials without an end are looked for again: somebody may have written others to where they are from.
const ENDLESS: Duration = Duration::from_secs(15 * 60);
/// After a renewal that failed, while the old ones are still good.
const AGAIN: Duration = Duration::from_secs(30);

/// Asks another provider, and remembers what it said. Whoever asks gets credentials that are good now, and asks each time.
#[derive(Debug)]
pub(super) struct Held {
    from: SharedCredentialsProvider,
    clock: Clock,
    held: Mutex<Option<Known>>,
}

/// Where the time comes from.
pub(super) type Clock = aws_types::sdk_config::SharedTimeSource;

#[derive(Debug)]
struct Known {
    credentials: Credentials,
    renew_at: SystemTime,
}

impl Held {
    pub(super) fn new(from: SharedCredentialsProvider, clock: Clock) -> Held {
        Held { from, clock, held: Mutex::new(None) }
    }

    /// All who ask wait for one renewal.
    async fn good(&self) -> Result<Credentials, CredentialsError> {
        let mut held = self.held.lock().await;
        let now = self.clock.now();
        if let Some(known) = held.as_ref().filter(|known| now < known.renew_at) {
            return Ok(known.credentials.clone());
        }
        match (self.from.provide_credentials().await, held.as_mut()) {
            (Ok(credentials), _) => {
                *held = Some(Known { credentials: credentials.clone(), renew_at: renew_at(now, credentials.expiry()) });
                Ok(credentials)
            }
            // Better old ones that are still good than none.
            (Err(error), Some(known)) if known.credentials.expiry().is_none_or(|end| now < end) => {
                tracing::warn!(error = %DisplayErrorContext(&error), "AWS credentials could not be renewed; the old ones are still good");
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

impl ProvideCredentials for Held {
    fn provide_credentials<'a>(&'a self) -> Providing<'a>
    where
        Self: 'a,
    {
        Providing::new(self.good())
    }
}

/// Hands the SDK's credentials to `object_store`, which asks before each request.
#[derive(Debug)]
pub(crate) struct Bridge(pub(crate) SharedCredentialsProvider);

#[async_trait::async_trait]
impl CredentialProvider for Bridge {
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

/// There are no credentials to sign a request with.
#[derive(Debug)]
pub(crate) struct NoCredentials {
    /// It stays so until somebody changes something.
    pub(crate) definite: bool,
    reason: String,
}

impl From<CredentialsError> for NoCredentials {
    fn from(error: CredentialsError) -> NoCredentials {
        let reason = DisplayErrorContext(&error).to_string();
        let definite = match &error {
            CredentialsError::CredentialsNotLoaded(_) | CredentialsError::InvalidConfiguration(_) => true,
            // STS says no to a role that may not be assumed in a type of its own, which leads here as text alone.
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

/// How long the SDK waits: for a connection, for one answer, and for all tries of a call together.
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
