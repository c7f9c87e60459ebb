//! Destinations and event sinks at AWS, made from the configuration.

use std::collections::BTreeMap;

use anyhow::Context;
use laredo_archive::{AssumeRole, AwsCredentials, AwsProfile, AwsProfileSet};
use laredo_archive::{
    AwsSinkOptions, EventPublisher, EventSink, KinesisSink, PublisherOptions, PublisherTask, S3Destination, S3Options,
    SnsSink, SqsSink,
};

use crate::config;
use crate::config::snapshotter::{ArchivedTableConfig, AwsConfig, EventConfig, EventTarget, S3Config};
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

    /// Makes the S3 destination of a table's archive.
    ///
    /// # Errors
    /// A missing profile, or options that are invalid.
    pub(super) async fn s3(&self, s3: &S3Config, key_prefix: &str) -> anyhow::Result<S3Destination> {
        let options = S3Options {
            bucket: s3.bucket.clone(),
            prefix: format!("{}{key_prefix}", s3.prefix),
            region: s3.aws.region.clone(),
            endpoint: s3.aws.endpoint.clone(),
            force_path_style: s3.force_path_style,
            encryption: s3.encryption.clone(),
        };
        Ok(S3Destination::new(&options, &self.credentials(&s3.aws).await?)?)
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
        let options = PublisherOptions { seed: random(), ..PublisherOptions::default() };
        Ok(EventPublisher::new(sinks, options))
    }
}

fn sink(event: &EventConfig, credentials: &AwsCredentials) -> Box<dyn EventSink> {
    let options = AwsSinkOptions { region: event.aws.region.clone(), endpoint: event.aws.endpoint.clone() };
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
            AwsProfile::AssumeRole(AssumeRole {
                role_arn: role_arn.clone(),
                external_id: external_id.clone(),
                session_name: session_name.clone(),
                region: region.clone(),
                base: base.clone(),
            })
        }
    }
}
