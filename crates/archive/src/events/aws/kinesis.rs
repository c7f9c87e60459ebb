use aws_sdk_kinesis::Client;
use aws_sdk_kinesis::primitives::Blob;
use futures::FutureExt as _;
use futures::future::BoxFuture;

use super::{AwsSinkOptions, failed, json, region_of_arn};
use crate::aws::AwsCredentials;
use crate::events::{ArtifactEvent, EventSink, SinkError};

/// A Kinesis stream as a sink. The event is the data of a record. The table is its partition key,
/// so that a table's events stay in order.
#[derive(Clone, Debug)]
pub struct KinesisSink {
    client: Client,
    stream: String,
    name: String,
}

impl KinesisSink {
    /// Creates a sink for a stream, given by its name or ARN.
    #[must_use]
    pub fn new(stream: impl Into<String>, options: &AwsSinkOptions, credentials: &AwsCredentials) -> KinesisSink {
        let stream = stream.into();
        let client = Client::new(&options.config(region_of_arn(&stream), credentials));
        KinesisSink { client, name: format!("kinesis {stream}"), stream }
    }

    async fn put(&self, event: &ArtifactEvent) -> Result<(), SinkError> {
        let record = self.client.put_record().partition_key(&event.table);
        let record = match self.stream.starts_with("arn:") {
            true => record.stream_arn(&self.stream),
            false => record.stream_name(&self.stream),
        };
        let data = Blob::new(json(&self.name, event)?);
        record.data(data).send().await.map(drop).map_err(failed(&self.name))
    }
}

impl EventSink for KinesisSink {
    fn name(&self) -> &str {
        &self.name
    }

    fn send<'a>(&'a self, event: &'a ArtifactEvent) -> BoxFuture<'a, Result<(), SinkError>> {
        self.put(event).boxed()
    }
}
