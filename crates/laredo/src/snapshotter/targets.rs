//! Destinations and event sinks, made from the configuration.

use std::collections::BTreeMap;
use std::sync::Arc;

use laredo_archive::{Destination, EventPublisher, PublisherOptions, PublisherTask};

#[cfg(feature = "aws")]
use super::aws::AwsProfiles;
use crate::config::CredentialsConfig;
use crate::config::snapshotter::{ArchivedTableConfig, DestinationConfig};
use crate::program::random;

/// The targets of all tables. A build without AWS has folders and no events; a configuration with
/// more does not load there.
pub(super) struct ArchiveTargets {
    #[cfg(feature = "aws")]
    aws: AwsProfiles,
}

impl ArchiveTargets {
    /// Makes the targets from the credentials profiles of the configuration.
    ///
    /// # Errors
    /// A profile whose base is missing, or leads back to the profile.
    #[cfg_attr(not(feature = "aws"), expect(unused_variables, reason = "only AWS has credentials"))]
    pub(super) fn new(profiles: &BTreeMap<String, CredentialsConfig>) -> anyhow::Result<ArchiveTargets> {
        Ok(ArchiveTargets {
            #[cfg(feature = "aws")]
            aws: AwsProfiles::new(profiles)?,
        })
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
        #[cfg(feature = "aws")]
        if let Some(aws) = destination.aws() {
            options.credentials = Some(self.aws.credentials(aws).await?);
        }
        Ok(destination.uri().open(&options).await?)
    }

    /// Makes the publisher of a table's artifacts, and the task that sends its events.
    ///
    /// # Errors
    /// A missing profile.
    #[cfg_attr(not(feature = "aws"), expect(unused_variables, reason = "all events are AWS's"))]
    pub(super) async fn publisher(
        &self,
        table: &ArchivedTableConfig,
    ) -> anyhow::Result<(EventPublisher, PublisherTask)> {
        #[cfg(feature = "aws")]
        let sinks = self.aws.sinks(&table.events).await?;
        #[cfg(not(feature = "aws"))]
        let sinks = Vec::new();
        let mut options = PublisherOptions::default();
        options.seed = random();
        Ok(EventPublisher::new(sinks, options))
    }
}
