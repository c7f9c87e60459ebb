use aws_sdk_sns::Client;
use aws_sdk_sns::types::MessageAttributeValue;
use futures::FutureExt as _;
use futures::future::BoxFuture;

use super::{AwsSinkOptions, failed, json, kind, once, region_of_arn};
use crate::aws::AwsCredentials;
use crate::events::{ArtifactEvent, EventSink, SinkError};

/// An SNS topic as a sink. The event is the message. Subscriptions can filter by its attributes
/// `table` and `kind`.
#[derive(Clone, Debug)]
pub struct SnsSink {
    client: Client,
    topic_arn: String,
    name: String,
}

impl SnsSink {
    /// Creates a sink for a topic.
    #[must_use]
    pub fn new(topic_arn: impl Into<String>, options: &AwsSinkOptions, credentials: &AwsCredentials) -> SnsSink {
        let topic_arn = topic_arn.into();
        let client = Client::new(&options.config(region_of_arn(&topic_arn), credentials));
        SnsSink { client, name: format!("sns {topic_arn}"), topic_arn }
    }

    async fn publish(&self, event: &ArtifactEvent) -> Result<(), SinkError> {
        let json = json(&self.name, event)?;
        let mut message = self.client.publish().topic_arn(&self.topic_arn);
        for (name, value) in [("table", event.table.as_str()), ("kind", kind(event))] {
            let value = MessageAttributeValue::builder().data_type("String").string_value(value).build();
            message = message.message_attributes(name, value.map_err(failed(&self.name))?);
        }
        if self.topic_arn.ends_with(".fifo") {
            message = message.message_group_id(&event.table).message_deduplication_id(once(&json));
        }
        message.message(json).send().await.map(drop).map_err(failed(&self.name))
    }
}

impl EventSink for SnsSink {
    fn name(&self) -> &str {
        &self.name
    }

    fn send<'a>(&'a self, event: &'a ArtifactEvent) -> BoxFuture<'a, Result<(), SinkError>> {
        self.publish(event).boxed()
    }
}
