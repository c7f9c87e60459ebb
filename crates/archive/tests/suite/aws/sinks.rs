//! Event sinks on moto.

use std::collections::BTreeMap;
use std::time::Duration;

use aws_credential_types::Credentials as Keys;
use aws_sdk_kinesis::types::ShardIteratorType;
use laredo_archive::{
    ArtifactEvent, ArtifactKind, AwsCredentials, AwsProfileSet, AwsSinkOptions, EventPublisher, EventSink, KinesisSink,
    PublisherOptions, SnsSink, SqsSink,
};
use laredo_testkit::{FaultProxy, MotoServer, eventually};
use serde_json::{Value, json};

async fn credentials() -> AwsCredentials {
    let keys = Keys::from_keys("AKIALAREDO", "secret", None);
    let profiles = AwsProfileSet::new(BTreeMap::new()).unwrap().with_ambient(keys).with_region("us-east-1");
    profiles.credentials(None).await.unwrap()
}

fn event() -> ArtifactEvent {
    ArtifactEvent {
        table: "public.users".to_owned(),
        kind: ArtifactKind::Diff,
        epoch: 3,
        from_position: Some("0/19F000".to_owned()),
        to_position: "0/1A2B3C".to_owned(),
        head_position: "0/1A2B3C".to_owned(),
        manifest_uri: "s3://archives/users/manifest.json".to_owned(),
        formats: BTreeMap::from([("jsonl".to_owned(), "s3://archives/users/epoch=3/diff.jsonl".to_owned())]),
        created_at: "2026-01-01T00:00:00Z".to_owned(),
    }
}

fn as_json() -> Value {
    json!({
        "table": "public.users",
        "kind": "diff",
        "epoch": 3,
        "from_position": "0/19F000",
        "to_position": "0/1A2B3C",
        "head_position": "0/1A2B3C",
        "manifest_uri": "s3://archives/users/manifest.json",
        "formats": { "jsonl": "s3://archives/users/epoch=3/diff.jsonl" },
        "created_at": "2026-01-01T00:00:00Z",
    })
}

fn at(endpoint: String) -> AwsSinkOptions {
    let mut options = AwsSinkOptions::default();
    options.endpoint = Some(endpoint);
    options
}

/// Returns the SDK's configuration for a test's own calls.
fn sdk(moto: &MotoServer, credentials: &AwsCredentials) -> aws_config::SdkConfig {
    credentials.sdk_config().to_builder().endpoint_url(moto.url()).build()
}

async fn queue(moto: &MotoServer, credentials: &AwsCredentials) -> (aws_sdk_sqs::Client, String) {
    let sqs = aws_sdk_sqs::Client::new(&sdk(moto, credentials));
    let made = sqs.create_queue().queue_name("events").send().await.unwrap();
    (sqs, made.queue_url.unwrap())
}

async fn bodies(sqs: &aws_sdk_sqs::Client, queue_url: &str) -> Vec<Value> {
    let got = sqs.receive_message().queue_url(queue_url).max_number_of_messages(10).send().await.unwrap();
    let body = |message: aws_sdk_sqs::types::Message| serde_json::from_str(message.body().unwrap()).unwrap();
    got.messages.unwrap_or_default().into_iter().map(body).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_gets_the_event_with_attributes_to_filter_by() {
    let (moto, credentials) = (MotoServer::start().await.unwrap(), credentials().await);
    let (sqs, queue_url) = queue(&moto, &credentials).await;
    let sns = aws_sdk_sns::Client::new(&sdk(&moto, &credentials));
    let topic = sns.create_topic().name("events").send().await.unwrap().topic_arn.unwrap();
    let subscribe = sns.subscribe().topic_arn(&topic).protocol("sqs");
    subscribe.endpoint("arn:aws:sqs:us-east-1:123456789012:events").send().await.unwrap();

    let sink = SnsSink::new(topic.clone(), &at(moto.url()), &credentials);
    assert_eq!(sink.name(), format!("sns {topic}"));
    sink.send(&event()).await.unwrap();

    let [message] = bodies(&sqs, &queue_url).await.try_into().unwrap();
    assert_eq!(serde_json::from_str::<Value>(message["Message"].as_str().unwrap()).unwrap(), as_json());
    let attributes = json!({
        "table": { "Type": "String", "Value": "public.users" },
        "kind": { "Type": "String", "Value": "diff" },
    });
    assert_eq!(message["MessageAttributes"], attributes);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_gets_the_event_as_its_body() {
    let (moto, credentials) = (MotoServer::start().await.unwrap(), credentials().await);
    let (sqs, queue_url) = queue(&moto, &credentials).await;
    SqsSink::new(queue_url.clone(), &at(moto.url()), &credentials).send(&event()).await.unwrap();
    assert_eq!(bodies(&sqs, &queue_url).await, [as_json()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_order_wants_a_group_and_says_what_is_the_same() {
    let (moto, credentials) = (MotoServer::start().await.unwrap(), credentials().await);
    let sqs = aws_sdk_sqs::Client::new(&sdk(&moto, &credentials));
    let made = sqs.create_queue().queue_name("events.fifo").attributes("FifoQueue".into(), "true").send().await;
    let queue_url = made.unwrap().queue_url.unwrap();
    let sink = SqsSink::new(queue_url.clone(), &at(moto.url()), &credentials);
    sink.send(&event()).await.unwrap();
    sink.send(&event()).await.unwrap();
    assert_eq!(bodies(&sqs, &queue_url).await, [as_json()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_gets_the_event_under_its_table() {
    let (moto, credentials) = (MotoServer::start().await.unwrap(), credentials().await);
    let kinesis = aws_sdk_kinesis::Client::new(&sdk(&moto, &credentials));
    kinesis.create_stream().stream_name("events").shard_count(1).send().await.unwrap();
    let described = kinesis.describe_stream().stream_name("events").send().await.unwrap();
    let described = described.stream_description.unwrap();
    KinesisSink::new("events", &at(moto.url()), &credentials).send(&event()).await.unwrap();
    KinesisSink::new(described.stream_arn, &at(moto.url()), &credentials).send(&event()).await.unwrap();

    let shard = described.shards[0].shard_id();
    let iterator = kinesis.get_shard_iterator().stream_name("events").shard_id(shard);
    let iterator = iterator.shard_iterator_type(ShardIteratorType::TrimHorizon).send().await.unwrap();
    let got = kinesis.get_records().shard_iterator(iterator.shard_iterator.unwrap()).send().await.unwrap();
    assert_eq!(got.records.len(), 2);
    for record in got.records {
        assert_eq!(record.partition_key.as_deref(), Some("public.users"));
        assert_eq!(serde_json::from_slice::<Value>(record.data.as_ref()).unwrap(), as_json());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sink_that_is_down_gets_its_events_later_and_is_counted() {
    let (moto, credentials) = (MotoServer::start().await.unwrap(), credentials().await);
    let (sqs, queue_url) = queue(&moto, &credentials).await;
    let proxy = FaultProxy::start("127.0.0.1:9").await.unwrap();
    let sink = SqsSink::new(queue_url.clone(), &at(format!("http://{}", proxy.addr())), &credentials);
    let mut options = PublisherOptions::default();
    options.retry_first = Duration::from_millis(50);
    let (publisher, publishing) = EventPublisher::new(vec![Box::new(sink)], options);
    let (end, ended) = tokio::sync::oneshot::channel::<()>();
    let run = tokio::spawn(publishing.run(async { drop(ended.await) }));
    publisher.publish(event());
    let failed = || async { publisher.counts()[0].failed >= 2 };
    eventually(Duration::from_secs(30), failed).await.unwrap();
    assert_eq!(publisher.counts()[0].sent, 0);
    proxy.retarget(moto.addr());
    let sent = || async { publisher.counts()[0].sent == 1 };
    eventually(Duration::from_secs(30), sent).await.unwrap();
    drop(end);
    run.await.unwrap();
    let counts = &publisher.counts()[0];
    assert_eq!((counts.dropped, counts.waiting), (0, 0), "{counts:?}");
    assert_eq!(bodies(&sqs, &queue_url).await, [as_json()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sink_that_is_not_there_says_so() {
    let (moto, credentials) = (MotoServer::start().await.unwrap(), credentials().await);
    let topic = "arn:aws:sns:us-east-1:123456789012:nobodys";
    let error = SnsSink::new(topic, &at(moto.url()), &credentials).send(&event()).await.unwrap_err();
    assert!(error.to_string().contains("NotFound") && error.to_string().contains(topic), "{error}");
}
