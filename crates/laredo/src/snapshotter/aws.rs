//! Credentials profiles and event sinks of AWS, made from the configuration.

use std::collections::BTreeMap;

use anyhow::Context;
use laredo_archive::{AssumeRole, AwsCredentials, AwsProfile, AwsProfileSet};
use laredo_archive::{AwsSinkOptions, EventSink, KinesisSink, SnsSink, SqsSink};

use crate::config::CredentialsConfig;
use crate::config::snapshotter::{AwsConfig, EventConfig, EventTarget};

/// The credentials profiles that destinations and event sinks name. A profile obtains its
/// credentials when they are first used.
pub(super) struct AwsProfiles {
    profiles: AwsProfileSet,
}

impl AwsProfiles {
    /// Makes the profiles of the configuration.
    ///
    /// # Errors
    /// A profile whose base is missing, or leads back to the profile.
    pub(super) fn new(profiles: &BTreeMap<String, CredentialsConfig>) -> anyhow::Result<AwsProfiles> {
        let profile = |(name, credentials): (&String, &CredentialsConfig)| (name.clone(), profile(credentials));
        Ok(AwsProfiles { profiles: AwsProfileSet::new(profiles.iter().map(profile).collect()).context("credentials")? })
    }

    /// Returns the credentials of a connection.
    ///
    /// # Errors
    /// A missing profile.
    pub(super) async fn credentials(&self, aws: &AwsConfig) -> anyhow::Result<AwsCredentials> {
        self.profiles.credentials(aws.credentials.as_deref()).await.context("credentials")
    }

    /// Makes the sinks of a table's events.
    ///
    /// # Errors
    /// A missing profile.
    pub(super) async fn sinks(&self, events: &[EventConfig]) -> anyhow::Result<Vec<Box<dyn EventSink>>> {
        let mut sinks = Vec::new();
        for event in events {
            sinks.push(sink(event, &self.credentials(&event.aws).await?));
        }
        Ok(sinks)
    }
}

fn sink(event: &EventConfig, credentials: &AwsCredentials) -> Box<dyn EventSink> {
    let mut options = AwsSinkOptions::default();
    options.region.clone_from(&event.aws.region);
    options.endpoint.clone_from(&event.aws.endpoint);
    match &event.target {
        EventTarget::Sns { topic_arn } => Box::new(SnsSink::new(topic_arn, &options, credentials)),
        EventTarget::Sqs { queue_url } => Box::new(SqsSink::new(queue_url, &options, credentials)),
        EventTarget::Kinesis { stream } => Box::new(KinesisSink::new(stream, &options, credentials)),
    }
}

fn profile(credentials: &CredentialsConfig) -> AwsProfile {
    match credentials {
        CredentialsConfig::Ambient => AwsProfile::Ambient,
        CredentialsConfig::AssumeRole { role_arn, external_id, session_name, region, base } => {
            let mut role = AssumeRole::new(role_arn);
            role.external_id.clone_from(external_id);
            role.session_name.clone_from(session_name);
            role.region.clone_from(region);
            role.base.clone_from(base);
            AwsProfile::AssumeRole(role)
        }
    }
}
