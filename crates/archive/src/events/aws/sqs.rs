use aws_sdk_sqs::Client;
use futures::FutureExt as _;
use futures::future::BoxFuture;

use super::{AwsSinkOptions, failed, json, once, region_of_url};
use crate::aws::AwsCredentials;
use crate::events::{ArtifactEvent, EventSink, SinkError};

/// An SQS queue as a sink. The event is the body of the message.
#[derive(Clone, Debug)]
pub struct SqsSink {
    client: Client,
    queue_url: String,
    name: String,
}

impl SqsSink {
    /// Creates a sink for a queue.
    #[must_use]
    pub fn new(queue_url: impl Into<String>, options: &AwsSinkOptions, credentials: &AwsCredentials) -> SqsSink {
        let queue_url = queue_url.into();
        let client = Client::new(&options.config(region_of_url(&queue_url), credentials));
        SqsSink { client, name: format!("sqs {queue_url}"), queue_url }
    }

    async fn put(&self, event: &ArtifactEvent) -> Result<(), SinkError> {
        let json = json(&self.name, event)?;
        let mut message = self.client.send_message().queue_url(&self.queue_url);
        if self.queue_url.ends_with(".fifo") {
            message = message.message_group_id(&event.table).message_deduplication_id(once(&json));
        }
        message.message_body(json).send().await.map(drop).map_err(failed(&self.name))
    }
}

impl EventSink for SqsSink {
    fn name(&self) -> &str {
        &self.name
    }

    fn send<'a>(&'a self, event: &'a ArtifactEvent) -> BoxFuture<'a, Result<(), SinkError>> {
        self.put(event).boxed()
    }
}
