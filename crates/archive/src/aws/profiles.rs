//! Named credentials for AWS, so that one process can write a bucket with one role and publish
//! events with another.

use std::collections::BTreeMap;

use aws_config::sts::AssumeRoleProvider;
use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider};
use object_store::aws::AwsCredentialProvider;
use tokio::sync::Mutex;

use super::ObjectStoreCredentials;
use super::credentials_cache::{CredentialsCache, timeouts};
use super::http::SdkHttpClient;

/// The default session name, which STS and the logs of the other account show.
const SESSION: &str = "laredo";
/// The region for STS if no region is known. Roles are the same in all regions.
const STS_REGION: &str = "us-east-1";

/// The method of obtaining credentials.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum AwsProfile {
    /// The SDK's default chain: environment, shared files (including `credential_process`, but not
    /// SSO), web identity (IRSA), task role, instance role.
    Ambient,
    /// A role that is assumed with other credentials.
    AssumeRole(AssumeRole),
}

/// A role, and the settings with which it is assumed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct AssumeRole {
    /// The ARN of the role, such as `arn:aws:iam::222233334444:role/laredo-events-pub`.
    pub role_arn: String,
    /// The external ID that the role's owner requires.
    pub external_id: Option<String>,
    /// The session's name in the owner's logs; `laredo` if `None`.
    pub session_name: Option<String>,
    /// The region of STS, and the default region for users of the profile.
    pub region: Option<String>,
    /// The profile that assumes the role; the default chain if `None`.
    pub base: Option<String>,
}

impl AssumeRole {
    /// Returns a role that the default chain assumes, without further settings.
    #[must_use]
    pub fn new(role_arn: impl Into<String>) -> AssumeRole {
        AssumeRole { role_arn: role_arn.into(), ..AssumeRole::default() }
    }
}

/// An error in a set of profiles.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AwsProfileError {
    /// No profile has this name.
    #[error("there is no credentials profile `{name}`")]
    Unknown {
        /// The missing profile's name.
        name: String,
    },
    /// A profile would have to assume itself first.
    #[error("the credentials profile `{name}` is its own base: {}", path.join(" -> "))]
    Circle {
        /// The profile's name.
        name: String,
        /// The chain of bases that leads from the profile back to itself.
        path: Vec<String>,
    },
}

/// All profiles of a process. Users of the same profile share its credentials, so that a role is
/// assumed once.
#[derive(Debug, Default)]
pub struct AwsProfileSet {
    named: BTreeMap<String, AwsProfile>,
    ambient: Option<SharedCredentialsProvider>,
    region: Option<String>,
    sts_endpoint: Option<String>,
    made: Mutex<BTreeMap<Option<String>, AwsCredentials>>,
}

impl AwsProfileSet {
    /// Creates a set of profiles, with the default chain for users that name no profile.
    ///
    /// # Errors
    /// If the base of a profile is missing, or is the profile itself.
    pub fn new(named: BTreeMap<String, AwsProfile>) -> Result<AwsProfileSet, AwsProfileError> {
        let profiles = AwsProfileSet { named, ..AwsProfileSet::default() };
        profiles.named.keys().try_for_each(|name| profiles.lineage(name).map(drop))?;
        Ok(profiles)
    }

    /// Uses these credentials instead of the default chain.
    #[must_use]
    pub fn with_ambient(mut self, provider: impl ProvideCredentials + 'static) -> AwsProfileSet {
        self.ambient = Some(SharedCredentialsProvider::new(provider));
        self
    }

    /// Uses this region instead of the one from the default chain.
    #[must_use]
    pub fn with_region(mut self, region: impl Into<String>) -> AwsProfileSet {
        self.region = Some(region.into());
        self
    }

    /// Sends STS requests to this endpoint: an emulator, or an endpoint in a private network.
    #[must_use]
    pub fn with_sts_endpoint(mut self, url: impl Into<String>) -> AwsProfileSet {
        self.sts_endpoint = Some(url.into());
        self
    }

    /// Returns the credentials of a profile, or of the default chain for `None`. They are not
    /// fetched before their first use.
    ///
    /// # Errors
    /// If the profile does not exist.
    pub async fn credentials(&self, profile: Option<&str>) -> Result<AwsCredentials, AwsProfileError> {
        let lineage = profile.map_or_else(|| Ok(Vec::new()), |name| self.lineage(name))?;
        let mut made = self.made.lock().await;
        let mut credentials = match made.get(&None) {
            Some(ambient) => ambient.clone(),
            None => made.entry(None).or_insert(self.ambient().await).clone(),
        };
        for (name, role) in lineage.into_iter().rev() {
            credentials = match made.get(&Some(name.to_owned())) {
                Some(there) => there.clone(),
                None => {
                    let assumed = credentials.assume(role, self.sts_endpoint.as_deref()).await;
                    made.entry(Some(name.to_owned())).or_insert(assumed).clone()
                }
            };
        }
        Ok(credentials)
    }

    /// Returns the roles from a profile to the one that is assumed with the default chain's
    /// credentials.
    fn lineage<'a>(&'a self, name: &'a str) -> Result<Vec<(&'a str, &'a AssumeRole)>, AwsProfileError> {
        let (mut path, mut next) = (Vec::<(&str, &AssumeRole)>::new(), Some(name));
        while let Some(current) = next {
            if path.iter().any(|(earlier, _)| *earlier == current) {
                let path = path.iter().map(|(name, _)| *name).skip_while(|earlier| *earlier != current);
                let path = path.chain([current]).map(ToOwned::to_owned).collect();
                return Err(AwsProfileError::Circle { name: current.to_owned(), path });
            }
            let profile =
                self.named.get(current).ok_or_else(|| AwsProfileError::Unknown { name: current.to_owned() })?;
            let AwsProfile::AssumeRole(role) = profile else { break };
            path.push((current, role));
            next = role.base.as_deref();
        }
        Ok(path)
    }

    /// Returns the credentials of the default chain.
    pub(crate) async fn ambient(&self) -> AwsCredentials {
        let mut loader = aws_config::defaults(BehaviorVersion::v2026_01_12());
        loader = loader.http_client(SdkHttpClient::default()).timeout_config(timeouts());
        if let Some(provider) = &self.ambient {
            loader = loader.credentials_provider(provider.clone());
        }
        if let Some(region) = &self.region {
            loader = loader.region(Region::new(region.clone()));
        }
        let config = loader.load().await;
        let chain = config.credentials_provider().expect("a loaded configuration has the default chain at least");
        AwsCredentials::kept(&config, chain)
    }
}

/// An identity at AWS. Clones share the fetched credentials.
#[derive(Clone, Debug)]
pub struct AwsCredentials {
    config: SdkConfig,
    provider: SharedCredentialsProvider,
}

impl AwsCredentials {
    fn kept(config: &SdkConfig, from: SharedCredentialsProvider) -> AwsCredentials {
        let clock = config.time_source().unwrap_or_default();
        let provider = SharedCredentialsProvider::new(CredentialsCache::new(from, clock));
        // The provider caches the credentials, also for `object_store`. A second cache would only
        // hide their age.
        let cache = aws_config::identity::IdentityCache::no_cache();
        let config = config.to_builder().credentials_provider(provider.clone()).identity_cache(cache).build();
        AwsCredentials { config, provider }
    }

    async fn assume(&self, role: &AssumeRole, sts_endpoint: Option<&str>) -> AwsCredentials {
        let known = role.region.clone().map(Region::new).or_else(|| self.config.region().cloned());
        let mut sts = self.config.to_builder();
        if let Some(endpoint) = sts_endpoint {
            sts.set_endpoint_url(Some(endpoint.to_owned()));
        }
        let mut builder = AssumeRoleProvider::builder(&role.role_arn)
            .configure(&sts.build())
            .region(known.clone().unwrap_or_else(|| Region::from_static(STS_REGION)))
            .session_name(role.session_name.as_deref().unwrap_or(SESSION));
        if let Some(external_id) = &role.external_id {
            builder = builder.external_id(external_id);
        }
        let provider = SharedCredentialsProvider::new(builder.build().await);
        AwsCredentials::kept(&self.config.to_builder().region(known).build(), provider)
    }

    /// Returns the configuration for the SDK's clients, with the known region and credentials that
    /// are valid at each use.
    #[must_use]
    pub fn sdk_config(&self) -> &SdkConfig {
        &self.config
    }

    /// Returns the default region for users that name none.
    #[must_use]
    pub fn region(&self) -> Option<&str> {
        self.config.region().map(AsRef::as_ref)
    }

    /// Returns a provider of these credentials for `object_store`.
    pub(crate) fn for_object_store(&self) -> AwsCredentialProvider {
        std::sync::Arc::new(ObjectStoreCredentials(self.provider.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn profiles(roles: &[(&str, Option<&str>)]) -> Result<AwsProfileSet, AwsProfileError> {
        let role = |base: &Option<&str>| AssumeRole { base: base.map(ToOwned::to_owned), ..AssumeRole::default() };
        let roles = roles.iter().map(|(name, base)| ((*name).to_owned(), AwsProfile::AssumeRole(role(base))));
        AwsProfileSet::new(roles.chain([("here".to_owned(), AwsProfile::Ambient)]).collect())
    }

    #[test]
    fn a_profile_stands_on_its_bases() {
        let profiles = profiles(&[("a", Some("b")), ("b", Some("here")), ("c", None)]).unwrap();
        let names = |name| profiles.lineage(name).unwrap().into_iter().map(|(name, _)| name).collect::<Vec<_>>();
        assert_eq!(names("a"), ["a", "b"]);
        assert_eq!(names("c"), ["c"]);
        assert!(names("here").is_empty());
    }

    #[test]
    fn a_profile_that_leads_back_to_itself_is_an_error() {
        let error = profiles(&[("a", Some("b")), ("b", Some("c")), ("c", Some("b"))]).unwrap_err();
        assert_eq!(error.to_string(), "the credentials profile `b` is its own base: b -> c -> b");
        let error = profiles(&[("a", Some("a"))]).unwrap_err();
        assert_eq!(error.to_string(), "the credentials profile `a` is its own base: a -> a");
        let error = profiles(&[("a", Some("nobody"))]).unwrap_err();
        assert_eq!(error, AwsProfileError::Unknown { name: "nobody".to_owned() });
    }
}
