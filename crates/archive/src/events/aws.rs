//! The event sinks of AWS: SNS, SQS and Kinesis.

mod kinesis;
mod sns;
mod sqs;

use std::error::Error;

use aws_config::retry::RetryConfig;
use aws_config::{Region, SdkConfig};
use aws_smithy_types::error::display::DisplayErrorContext;

pub use self::kinesis::KinesisSink;
pub use self::sns::SnsSink;
pub use self::sqs::SqsSink;
use super::{ArtifactEvent, SinkError};
use crate::aws::AwsCredentials;
use crate::layout::ArtifactKind;
use laredo_values::hex;

/// The location of a sink, in addition to its name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct AwsSinkOptions {
    /// The sink's region. If `None`, the region in its name is used, or else that of the
    /// credentials.
    pub region: Option<String>,
    /// The URL (`https://…`) of a service other than Amazon's.
    pub endpoint: Option<String>,
}

impl AwsSinkOptions {
    fn config(&self, named: Option<&str>, credentials: &AwsCredentials) -> SdkConfig {
        let region = self.region.as_deref().or(named).or(credentials.region());
        // The publisher retries and counts the failures, so the SDK must not retry.
        let config = credentials.sdk_config().to_builder().retry_config(RetryConfig::disabled());
        let mut config = config.region(region.map(|region| Region::new(region.to_owned())));
        if let Some(endpoint) = &self.endpoint {
            config.set_endpoint_url(Some(endpoint.clone()));
        }
        config.build()
    }
}

/// Returns the region in `arn:aws:sns:REGION:111122223333:name`.
fn region_of_arn(arn: &str) -> Option<&str> {
    let mut parts = arn.split(':');
    (parts.next()? == "arn").then(|| parts.nth(2)).flatten().filter(|region| !region.is_empty())
}

/// Returns the region in `https://sqs.REGION.amazonaws.com/111122223333/name`.
fn region_of_url(url: &str) -> Option<&str> {
    let host = url.split("://").nth(1)?.split('/').next()?;
    host.strip_prefix("sqs.")?.split_once(".amazonaws.com").map(|(region, _)| region)
}

fn kind(event: &ArtifactEvent) -> &'static str {
    match event.kind {
        ArtifactKind::Snapshot => "snapshot",
        ArtifactKind::Diff => "diff",
    }
}

/// Returns a hash of the event's content as its deduplication ID. FIFO queues and topics (`.fifo`)
/// use it to recognize an event that was sent twice.
fn once(json: &str) -> String {
    hex(ring::digest::digest(&ring::digest::SHA256, json.as_bytes()).as_ref())
}

fn json(to: &str, event: &ArtifactEvent) -> Result<String, SinkError> {
    serde_json::to_string(event).map_err(failed(to))
}

fn failed<E: Error>(to: &str) -> impl FnOnce(E) -> SinkError {
    move |error| SinkError { to: to.to_owned(), reason: DisplayErrorContext(error).to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_contain_their_region() {
        assert_eq!(region_of_arn("arn:aws:sns:eu-west-1:111122223333:events"), Some("eu-west-1"));
        assert_eq!(region_of_arn("arn:aws:iam::111122223333:role/x"), None);
        assert_eq!(region_of_arn("events"), None);
        assert_eq!(region_of_url("https://sqs.eu-west-1.amazonaws.com/111122223333/events"), Some("eu-west-1"));
        assert_eq!(region_of_url("https://sqs.cn-north-1.amazonaws.com.cn/1/events"), Some("cn-north-1"));
        assert_eq!(region_of_url("http://127.0.0.1:5000/1/events"), None);
    }
}
