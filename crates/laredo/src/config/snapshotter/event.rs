//! Events: the event sinks that are notified of new artifacts.

use super::super::declaration::{ConfigBlock, config_variants, required};
use super::super::fields::BlockFields;
use super::super::reader::ConfigReader;
use super::super::schema::{BlockSchema, BlockVariant, FieldSchema, SettingKind, VariantSchema};
use super::super::write::HoconBlock;
use super::aws::{self, AwsConfig};

/// An event sink.
#[derive(Debug, Clone, PartialEq)]
pub struct EventConfig {
    /// The service and the queue, topic or stream.
    pub target: EventTarget,
    /// The connection to the service.
    pub aws: AwsConfig,
}

config_variants! {
    /// The target of events.
    pub enum EventTarget("kind of event") {
        /// A topic of SNS.
        Sns["sns"] {
            /// The ARN of the topic.
            topic_arn: String = required("topic_arn", ARN),
        },
        /// A queue of SQS.
        Sqs["sqs"] {
            /// The URL of the queue.
            queue_url: String = required("queue_url", aws::URL),
        },
        /// A stream of Kinesis. The partition key is the table.
        Kinesis["kinesis"] {
            /// The name of the stream.
            stream: String = required("stream", STREAM),
        },
    }
}

const ARN: SettingKind = SettingKind::Text {
    accepts: |text| text.starts_with("arn:") && text.matches(':').count() >= 5 && !text.contains(char::is_whitespace),
    expected: "an ARN, such as arn:aws:sns:eu-west-1:222233334444:changes",
};

const STREAM: SettingKind = SettingKind::Text {
    accepts: |text| !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c)),
    expected: "a stream's name: letters, digits, _, . and -",
};

/// The keys of each target, and those of the connection.
const VARIANTS: &[BlockVariant] = &[with_aws(0), with_aws(1), with_aws(2)];

const fn with_aws(index: usize) -> BlockVariant {
    const AWS: FieldSchema = FieldSchema::Group(AwsConfig::KIND.fields());
    const TARGETS: &[BlockVariant] = EventTarget::VARIANTS;
    const BLOCKS: [&BlockSchema; 3] = [
        &BlockSchema { fields: &[FieldSchema::Group(TARGETS[0].block.fields), AWS] },
        &BlockSchema { fields: &[FieldSchema::Group(TARGETS[1].block.fields), AWS] },
        &BlockSchema { fields: &[FieldSchema::Group(TARGETS[2].block.fields), AWS] },
    ];
    BlockVariant { block: BLOCKS[index], ..TARGETS[index] }
}

impl ConfigBlock for EventConfig {
    const KIND: SettingKind = SettingKind::Tagged(&VariantSchema { what: "kind of event", variants: VARIANTS });

    fn read(fields: &BlockFields<'_>, reader: &mut ConfigReader<'_>) -> Self {
        aws::check_built_with_aws(fields, reader);
        EventConfig { target: EventTarget::read(fields, reader), aws: AwsConfig::read(fields, reader) }
    }

    fn write(&self, out: &mut HoconBlock) {
        self.target.write(out);
        self.aws.write(out);
    }
}
