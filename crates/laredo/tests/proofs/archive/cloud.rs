//! An archive in S3 with event sinks: laredo-snapshotter against the API of AWS.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use aws_credential_types::Credentials as Keys;
use laredo_archive::{
    Archive, ArchivePoint, AwsCredentials, AwsProfileSet, Destination, ReadProgress, S3Destination, S3Options,
};
use laredo_core::TableName;
use laredo_testkit::{Cluster, ClusterOptions, MotoServer, clean_command, eventually, oracle};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::support::compare::rows_differences;
use crate::support::server::{PATIENCE, ServerProcessConfig, http};
use crate::support::snapshotter::SnapshotterProcess;

const REGION: &str = "us-east-1";
const ROLE: &str = "arn:aws:iam::222233334444:role/laredo-events-pub";

/// A proxy that forwards requests to moto and records them.
struct RecordingProxy {
    url: String,
    seen: Arc<Mutex<Vec<u8>>>,
}

impl RecordingProxy {
    async fn start(moto: &MotoServer) -> RecordingProxy {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let recorder =
            RecordingProxy { url: format!("http://{}", listener.local_addr().unwrap()), seen: Arc::default() };
        let (seen, to) = (recorder.seen.clone(), moto.addr());
        tokio::spawn(async move {
            while let Ok((from, _)) = listener.accept().await {
                let to = TcpStream::connect(&to).await.unwrap();
                tokio::spawn(hand_on(from, to, seen.clone()));
            }
        });
        recorder
    }

    fn has_seen(&self, text: &str) -> bool {
        String::from_utf8_lossy(&self.seen.lock().unwrap()).contains(text)
    }
}

async fn hand_on(from: TcpStream, to: TcpStream, seen: Arc<Mutex<Vec<u8>>>) {
    let ((mut asks, mut answered), (mut answers, mut asked)) = (from.into_split(), to.into_split());
    let back = tokio::spawn(async move { tokio::io::copy(&mut answers, &mut answered).await });
    let mut buffer = [0; 1 << 14];
    while let Ok(read @ 1..) = asks.read(&mut buffer).await {
        seen.lock().unwrap().extend_from_slice(&buffer[..read]);
        if asked.write_all(&buffer[..read]).await.is_err() {
            break;
        }
    }
    drop(asked);
    let _ = back.await;
}

async fn credentials() -> AwsCredentials {
    let keys = Keys::from_keys("AKIALAREDO", "secret", None);
    let profiles = AwsProfileSet::new(BTreeMap::new()).unwrap().with_ambient(keys).with_region(REGION);
    profiles.credentials(None).await.unwrap()
}

/// The event sinks: a topic with a queue behind it, a queue, and a stream.
struct CloudEventSinks {
    sqs: aws_sdk_sqs::Client,
    kinesis: aws_sdk_kinesis::Client,
    topic: String,
    behind_topic: String,
    queue: String,
}

impl CloudEventSinks {
    async fn make(moto: &MotoServer) -> CloudEventSinks {
        let sdk = credentials().await.sdk_config().to_builder().endpoint_url(moto.url()).build();
        let (sqs, sns) = (aws_sdk_sqs::Client::new(&sdk), aws_sdk_sns::Client::new(&sdk));
        let kinesis = aws_sdk_kinesis::Client::new(&sdk);
        let queue = async |name: &str| sqs.create_queue().queue_name(name).send().await.unwrap().queue_url.unwrap();
        let (behind_topic, queue) = (queue("behind").await, queue("events").await);
        let topic = sns.create_topic().name("events").send().await.unwrap().topic_arn.unwrap();
        let subscribe = sns.subscribe().topic_arn(&topic).protocol("sqs");
        subscribe.endpoint("arn:aws:sqs:us-east-1:123456789012:behind").send().await.unwrap();
        kinesis.create_stream().stream_name("events").shard_count(1).send().await.unwrap();
        CloudEventSinks { sqs, kinesis, topic, behind_topic, queue }
    }

    async fn messages(&self, queue: &str) -> Vec<Value> {
        let mut all = Vec::new();
        loop {
            let got = self.sqs.receive_message().queue_url(queue).max_number_of_messages(10).send().await.unwrap();
            let got = got.messages.unwrap_or_default();
            if got.is_empty() {
                return all;
            }
            all.extend(got.iter().map(|message| serde_json::from_str::<Value>(message.body().unwrap()).unwrap()));
        }
    }

    async fn records(&self) -> Vec<(String, Value)> {
        let shards = self.kinesis.list_shards().stream_name("events").send().await.unwrap();
        let iterator = self.kinesis.get_shard_iterator().stream_name("events").shard_id(shards.shards()[0].shard_id());
        let iterator = iterator.shard_iterator_type(aws_sdk_kinesis::types::ShardIteratorType::TrimHorizon);
        let iterator = iterator.send().await.unwrap().shard_iterator.unwrap();
        let got = self.kinesis.get_records().shard_iterator(iterator).send().await.unwrap();
        let record = |record: &aws_sdk_kinesis::types::Record| {
            let key = record.partition_key().unwrap_or_default().to_owned();
            (key, serde_json::from_slice(record.data().as_ref()).unwrap())
        };
        got.records().iter().map(record).collect()
    }
}

fn in_bucket(bucket: &str, moto: &MotoServer) -> Value {
    json!({ "type": "s3", "bucket": bucket, "prefix": "lake/", "region": REGION, "endpoint": moto.url(),
        "force_path_style": true, "credentials": "here" })
}

fn events(told: &CloudEventSinks, moto: &MotoServer) -> Value {
    let at = |mut sink: Value, credentials: &str| {
        sink.as_object_mut().unwrap().extend([
            ("region".to_owned(), REGION.into()),
            ("endpoint".to_owned(), moto.url().into()),
            ("credentials".to_owned(), credentials.into()),
        ]);
        sink
    };
    json!([
        at(json!({ "type": "sns", "topic_arn": told.topic }), "there"),
        at(json!({ "type": "sqs", "queue_url": told.queue }), "here"),
        at(json!({ "type": "kinesis", "stream": "events" }), "here"),
    ])
}

async fn open(moto: &MotoServer) -> Archive {
    let mut options = S3Options::default();
    options.region = Some(REGION.to_owned());
    options.endpoint = Some(moto.url());
    options.force_path_style = true;
    let destination = S3Destination::new("archives", "lake/t/", &options, &credentials().await).unwrap();
    Archive::open(Arc::new(destination), Some("public.t")).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_in_a_bucket_is_complete_and_announced() {
    let moto = MotoServer::start().await.unwrap();
    moto.create_bucket("archives").await.unwrap();
    let (told, recorder) = (CloudEventSinks::make(&moto).await, RecordingProxy::start(&moto).await);
    let cluster = Cluster::start(ClusterOptions::default()).unwrap();
    // More rows than fit into one request.
    cluster
        .psql(
            "CREATE TABLE t (id int PRIMARY KEY, v text);
             INSERT INTO t SELECT g, repeat(md5(g::text), 64) FROM generate_series(1, 10000) g; CREATE TABLE u (id int PRIMARY KEY)",
        )
        .unwrap();
    let tables = ["t", "u"].map(|name| TableName::new("public", name));
    let folder = tempfile::tempdir().unwrap();
    let mut server = ServerProcessConfig::new(cluster.url("postgres"), tables).start().await;
    server.has_archive(&TableName::new("public", "t"), &folder.path().join("t"));
    let source = |table: &str| json!({ "server": server.url(), "schema": "public", "table": table });
    let written = json!({
        "source": source("t"), "diff": { "interval": "100ms" }, "events": events(&told, &moto),
        "formats": { "snapshot": ["jsonl"], "diff": ["jsonl.zst"] },
        "destinations": [in_bucket("archives", &moto), { "type": "local", "path": folder.path() }],
    });
    let not_written = json!({ "source": source("u"), "destinations": [in_bucket("nowhere", &moto)] });
    let keys = json!({ "credentials": {
        "here": { "type": "ambient" },
        "there": { "type": "assume_role", "role_arn": ROLE, "external_id": "laredo-ext", "base": "here" },
    } });
    let environment = [
        ("AWS_ACCESS_KEY_ID", "AKIALAREDO"),
        ("AWS_SECRET_ACCESS_KEY", "secret"),
        ("AWS_REGION", REGION),
        ("AWS_ENDPOINT_URL", recorder.url.as_str()),
        ("AWS_EC2_METADATA_DISABLED", "true"),
    ];
    let mut snapshotter = SnapshotterProcess::launch(&[written, not_written], &keys, &environment);
    let has_base = async || snapshotter.status().await[0]["epoch"] == 1;
    eventually(PATIENCE, has_base).await.expect("the table is written, although the other cannot be");
    // The bucket may be created later, so the snapshotter tries again.
    let fails = async || {
        let status = &snapshotter.status().await[1];
        status["state"] == "opening" && status["last_error"].as_str().is_some_and(|error| error.contains("nowhere"))
    };
    eventually(PATIENCE, fails).await.expect("a bucket that is missing is an error");
    let (_, ready) = http(snapshotter.port, "GET", "/health/ready").await.unwrap();
    assert!(ready.contains("nowhere"), "{ready}");
    for number in 1..=6 {
        cluster.psql(&format!("UPDATE t SET v = 'round {number}' WHERE id % 7 = {number}")).unwrap();
        if number == 3 {
            snapshotter.restart().await;
        }
        if number == 5 {
            has_all(&snapshotter, &cluster).await;
            assert_eq!(snapshotter.snapshot("?table=t").await.0, 200);
        }
    }
    has_all(&snapshotter, &cluster).await;
    snapshotter.process.terminate();
    let ended = snapshotter.process.wait(PATIENCE).await.unwrap();
    assert_eq!(ended.code(), Some(0), "an archive that was never opened has lost nothing");

    let archive = open(&moto).await;
    archive.verify(&ReadProgress::default(), |damage| panic!("{damage}")).await;
    let sql = cluster.connect().await.unwrap();
    let rows = oracle::rows_at_rest(&sql, &TableName::new("public", "t"), &["id"], "true").await.unwrap();
    let beside: Arc<dyn Destination> = Arc::new(laredo_archive::FolderDestination::new(folder.path().join("t")));
    for archive in [&archive, &Archive::open(beside, None).await.unwrap()] {
        let rebuilt = archive.rebuild(ArchivePoint::Latest, &ReadProgress::default()).await.unwrap().table;
        assert_eq!(rows_differences(rebuilt.schema(), rebuilt.rows(), &rows, &["id"]), "");
    }
    let epochs: Vec<u64> = archive.manifest().artifacts.iter().map(|artifact| artifact.epoch).collect();
    assert!(*epochs.last().unwrap() == 2, "a restart is no reason for a base, a request is: {epochs:?}");
    is_reported(&told, &archive).await;
    assert!(recorder.has_seen("ExternalId=laredo-ext") && recorder.has_seen("laredo-events-pub"), "STS is told");
    commands(&moto);
}

/// Waits until nothing is left in the buffer.
async fn has_all(snapshotter: &SnapshotterProcess, cluster: &Cluster) {
    let position = cluster.psql("SELECT pg_current_wal_flush_lsn()").unwrap();
    let position: laredo_core::Lsn = position.trim().parse().unwrap();
    cluster.psql("UPDATE t SET v = v || '.' WHERE id = 1").unwrap();
    let is_written = async || {
        let status = snapshotter.status().await[0].clone();
        super::position_of(&status["head_position"]) > position && status["buffer_depth"] == 0
    };
    eventually(PATIENCE, is_written).await.expect("it is written");
}

/// Checks that every sink received the events of the newest artifacts, as documented.
async fn is_reported(told: &CloudEventSinks, archive: &Archive) {
    let last = archive.manifest().artifacts.last().unwrap();
    let shown = |position: Option<laredo_core::Lsn>| position.map(|position| position.to_string());
    let expected = json!({
        "table": "public.t", "kind": "diff", "epoch": 2,
        "from_position": shown(last.from_position), "to_position": shown(last.to_position),
        "head_position": shown(last.to_position), "manifest_uri": "s3://archives/lake/t/manifest.json",
        "formats": { "jsonl.zst": last.formats["jsonl.zst"].uri }, "created_at": last.created_at,
    });
    let queued = told.messages(&told.queue).await;
    assert!(queued.contains(&expected), "{expected} is not among {queued:#?}");
    let of_topic = told.messages(&told.behind_topic).await;
    let told_of = |message: &Value| serde_json::from_str::<Value>(message["Message"].as_str().unwrap()).unwrap();
    let message = of_topic.iter().find(|message| told_of(message) == expected).expect("the topic has it");
    assert_eq!(message["MessageAttributes"]["table"]["Value"], "public.t");
    assert_eq!(message["MessageAttributes"]["kind"]["Value"], "diff");
    assert!(told.records().await.contains(&("public.t".to_owned(), expected)));
}

/// Checks that the operator's command reads a bucket as it reads a folder.
fn commands(moto: &MotoServer) {
    for arguments in [["verify"].as_slice(), &["ls"], &["reconstruct", "--format", "csv"]] {
        let mut command = clean_command(env!("CARGO_BIN_EXE_laredo"));
        command.arg("archive").args(arguments).args(["s3://archives/lake/t", "--region", REGION, "--force-path-style"]);
        command.args(["--endpoint", &moto.url()]);
        let keys = [("AWS_ACCESS_KEY_ID", "AKIALAREDO"), ("AWS_SECRET_ACCESS_KEY", "secret")];
        let output = command.envs(keys).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        assert!(output.stdout.len() > 50, "{arguments:?}");
    }
}
