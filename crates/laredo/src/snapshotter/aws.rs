//! Destinations and event sinks, made from the configuration.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::Context;
use laredo_archive::{AssumeRole, AwsCredentials, AwsProfile, AwsProfileSet};
use laredo_archive::{
    AwsSinkOptions, Destination, EventPublisher, EventSink, KinesisSink, PublisherOptions, PublisherTask, SnsSink,
    SqsSink,
};

use crate::config;
use crate::config::snapshotter::{ArchivedTableConfig, AwsConfig, DestinationConfig, EventConfig, EventTarget};
use crate::program::random;

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
    pub(super) fn new(profiles: &BTreeMap<String, config::CredentialsConfig>) -> anyhow::Result<AwsProfiles> {
        let profile = |(name, credentials): (&String, &config::CredentialsConfig)| (name.clone(), profile(credentials));
        Ok(AwsProfiles { profiles: AwsProfileSet::new(profiles.iter().map(profile).collect()).context("credentials")? })
    }

    async fn credentials(&self, aws: &AwsConfig) -> anyhow::Result<AwsCredentials> {
        self.profiles.credentials(aws.credentials.as_deref()).await.context("credentials")
    }

    /// Opens a destination of a table's archive.
    ///
    /// # Errors
    /// A missing profile, or options that are invalid.
    pub(super) async fn open(
        &self,
        destination: &DestinationConfig,
        key_prefix: &str,
    ) -> anyhow::Result<Arc<dyn Destination>> {
        let mut options = destination.options();
        key_prefix.clone_into(&mut options.key_prefix);
        if let Some(aws) = destination.aws() {
            options.credentials = Some(self.credentials(aws).await?);
        }
        Ok(destination.uri().open(&options).await?)
    }

    /// Makes the publisher of a table's artifacts, and the task that sends its events.
    ///
    /// # Errors
    /// A missing profile.
    pub(super) async fn publisher(
        &self,
        table: &ArchivedTableConfig,
    ) -> anyhow::Result<(EventPublisher, PublisherTask)> {
        let mut sinks = Vec::new();
        for event in &table.events {
            sinks.push(sink(event, &self.credentials(&event.aws).await?));
        }
        let mut options = PublisherOptions::default();
        options.seed = random();
        Ok(EventPublisher::new(sinks, options))
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

fn profile(credentials: &config::CredentialsConfig) -> AwsProfile {
    match credentials {
        config::CredentialsConfig::Ambient => AwsProfile::Ambient,
        config::CredentialsConfig::AssumeRole { role_arn, external_id, session_name, region, base } => {
            let mut role = AssumeRole::new(role_arn);
            role.external_id.clone_from(external_id);
            role.session_name.clone_from(session_name);
            role.region.clone_from(region);
            role.base.clone_from(base);
            AwsProfile::AssumeRole(role)
        }
    }
}
