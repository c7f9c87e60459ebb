//! Events: the event sinks that are notified of new artifacts.

use super::super::diagnostics::ConfigProblem;
use super::super::fields::{BlockFields, BlockVariant};
use super::super::schema::{BlockSchema, KeySchema, SettingKind, TEXT, VariantSchema};
use super::super::write::{self, text};
use super::aws::{self, AwsConfig};

/// An event sink.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventConfig {
    /// The service and the queue, topic or stream.
    pub target: EventTarget,
    /// The connection to the service.
    pub aws: AwsConfig,
}

/// The target of events.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EventTarget {
    /// A topic of SNS.
    Sns {
        /// The topic's ARN.
        topic_arn: String,
    },
    /// A queue of SQS.
    Sqs {
        /// The queue's URL.
        queue_url: String,
    },
    /// A stream of Kinesis.
    Kinesis {
        /// The stream's name.
        stream: String,
    },
}

/// The schema of `events`.
pub(super) const EVENTS: SettingKind = SettingKind::List(&SettingKind::Tagged(&VariantSchema {
    tag: "type",
    what: "kind of event",
    variants: &[(&["sns"], &SNS), (&["sqs"], &SQS), (&["kinesis"], &KINESIS)],
}));

static SNS: BlockSchema = BlockSchema { keys: &keys(KeySchema::required("topic_arn", ARN)) };
static SQS: BlockSchema = BlockSchema { keys: &keys(KeySchema::required("queue_url", aws::URL)) };
static KINESIS: BlockSchema = BlockSchema { keys: &keys(KeySchema::required("stream", STREAM)) };

const fn keys(own: KeySchema) -> [KeySchema; 5] {
    [KeySchema::required("type", TEXT), own, aws::REGION, aws::ENDPOINT, aws::PROFILE]
}

const ARN: SettingKind = SettingKind::Text {
    accepts: |text| text.starts_with("arn:") && text.matches(':').count() >= 5 && !text.contains(char::is_whitespace),
    expected: "an ARN, such as arn:aws:sns:eu-west-1:222233334444:changes",
};

const STREAM: SettingKind = SettingKind::Text {
    accepts: |text| !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c)),
    expected: "a stream's name: letters, digits, _, . and -",
};

impl EventConfig {
    pub(super) fn read_all(
        table: &BlockFields,
        profiles: &[&str],
        problems: &mut Vec<ConfigProblem>,
    ) -> Vec<EventConfig> {
        let events = table.variants("events");
        events
            .iter()
            .map(|event| EventConfig {
                target: EventTarget::read(event),
                aws: AwsConfig::read(&event.fields, profiles, problems),
            })
            .collect()
    }

    pub(super) fn write(&self, out: &mut write::HoconBlock) {
        self.target.write(out);
        self.aws.write(out);
    }
}

impl EventTarget {
    fn read(event: &BlockVariant) -> EventTarget {
        let own = |key: &str| event.fields.text(key).unwrap_or_default();
        match event.tag {
            "sns" => EventTarget::Sns { topic_arn: own("topic_arn") },
            "sqs" => EventTarget::Sqs { queue_url: own("queue_url") },
            _ => EventTarget::Kinesis { stream: own("stream") },
        }
    }

    fn write(&self, out: &mut write::HoconBlock) {
        let (tag, key, value) = match self {
            EventTarget::Sns { topic_arn } => ("sns", "topic_arn", topic_arn),
            EventTarget::Sqs { queue_url } => ("sqs", "queue_url", queue_url),
            EventTarget::Kinesis { stream } => ("kinesis", "stream", stream),
        };
        out.put("type", tag);
        out.put(key, text(value));
    }
}
