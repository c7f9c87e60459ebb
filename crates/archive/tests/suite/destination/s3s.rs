//! S3 on s3s-fs.

use aws_credential_types::Credentials as Keys;
use hyper::HeaderMap;
use laredo_archive::{DestinationError, S3Encryption};

use crate::destination::contract::{self, noise, staged, stager};
use crate::store::{TestBucket, TestS3Server, keys};

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_keeps_to_the_contract() {
    let server = TestS3Server::start().await;
    let bucket = server.bucket().await;
    contract::keeps_to_the_contract(&|name| bucket.place(name)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_excludes_two_writers() {
    let server = TestS3Server::start().await;
    let bucket = server.bucket().await;
    contract::excludes_two_writers(&|name| bucket.place(name), 100).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn more_objects_than_one_answer_lists_are_listed() {
    let server = TestS3Server::start().await;
    let bucket = server.bucket().await;
    contract::lists_more_than_one_answer_holds(&|name| bucket.place(name)).await;
}

/// Both writers upload their parts at the same time, and the completion decides.
#[tokio::test(flavor = "multi_thread")]
async fn of_two_large_artifacts_of_one_name_one_stays() {
    let server = TestS3Server::start().await;
    let bucket = server.bucket().await;
    let (a, b) = (bucket.place("large"), bucket.place("large"));
    let (stager, _folder) = stager();
    let (of_a, mut of_b) = (noise(17 << 20), noise(17 << 20));
    of_b[0] ^= 1;
    let (staged_a, staged_b) = (staged(&stager, &of_a), staged(&stager, &of_b));
    let object = "epoch=1/snapshot-0_1.jsonl";
    let won = match tokio::join!(a.put(object, &staged_a), b.put(object, &staged_b)) {
        (Ok(()), Err(DestinationError::Occupied { .. })) => of_a,
        (Err(DestinationError::Occupied { .. }), Ok(())) => of_b,
        both => panic!("one has to win, and the other to be told: {both:?}"),
    };
    assert!(contract::read(&a, object).await == won);
    // The loser's parts are deleted.
    let left = std::fs::read_dir(server.folder.path()).unwrap().map(|entry| entry.unwrap().file_name());
    let left: Vec<_> = left.filter(|name| name.to_string_lossy().contains("upload")).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_credentials_are_refused_with_a_remedy() {
    let server = TestS3Server::start().await;
    for (wrong, keys) in [
        ("a secret", Keys::from_keys(keys().access_key_id(), "another", None)),
        ("an id", Keys::from_keys("AKIANOBODY", "secret", None)),
    ] {
        let destination = TestBucket::new(server.url().to_owned(), keys).await.place("users");
        let said = destination.manifest().await.map(drop);
        let Err(DestinationError::Refused { reason, .. }) = &said else { panic!("{wrong}: {said:?}") };
        assert!(reason.contains("credentials") || reason.contains("allow"), "{wrong}: {reason}");
    }
}

/// Writes a manifest, a small object and a large one. Returns the headers of each request that
/// begins an upload or has a body.
async fn writes(server: &TestS3Server, encryption: Option<S3Encryption>) -> Vec<HeaderMap> {
    let bucket = server.bucket().await;
    let name = encryption.as_ref().map_or("plain", |encryption| encryption.name()).replace(':', "-");
    let mut options = bucket.options();
    options.encryption = encryption;
    let destination = bucket.with(&format!("{name}/"), &options);
    let (stager, _folder) = stager();
    destination.probe().await.unwrap();
    destination.publish(b"manifest", None).await.unwrap();
    destination.put("epoch=1/snapshot-0_1.jsonl", &staged(&stager, b"1")).await.unwrap();
    destination.put("epoch=1/snapshot-0_2.jsonl", &staged(&stager, &noise(17 << 20))).await.unwrap();
    let heads = server.heads().await;
    let writes = heads.into_iter().filter(|head| head.method == "PUT" || head.uri.query() == Some("uploads"));
    writes.map(|head| head.headers).collect()
}

/// A bucket with Object Lock refuses writes without a checksum.
#[tokio::test(flavor = "multi_thread")]
async fn all_that_is_written_has_a_checksum() {
    let server = TestS3Server::start().await;
    let writes = writes(&server, None).await;
    assert!(writes.len() > 5, "{writes:?}");
    for headers in writes {
        assert!(headers.keys().any(|name| name.as_str().starts_with("x-amz-checksum-")), "{headers:?}");
    }
}

/// The parts of a large object have the encryption of its first request.
#[tokio::test(flavor = "multi_thread")]
async fn all_that_is_written_is_encrypted_as_the_options_say() {
    let server = TestS3Server::start().await;
    let key = "arn:aws:kms:eu-west-1:1:key/2";
    for encryption in [
        S3Encryption::Store,
        S3Encryption::Kms(None),
        S3Encryption::Kms(Some(key.to_owned())),
        S3Encryption::KmsTwice(Some(key.to_owned())),
    ] {
        let (name, key) = (encryption.name(), encryption.key_id().map(str::to_owned));
        let writes = writes(&server, Some(encryption)).await;
        let said = |headers: &HeaderMap, name| headers.get(name).map(|value| value.to_str().unwrap().to_owned());
        let encrypted: Vec<_> = writes
            .iter()
            .filter(|headers| said(headers, "x-amz-server-side-encryption").as_deref() == Some(name))
            .collect();
        // The manifest, an object, the first request of a large one, and the object of the probe.
        // The parts of the large one have no encryption header.
        assert!(encrypted.len() >= 4, "{name}: {writes:?}");
        for headers in encrypted {
            assert_eq!(said(headers, "x-amz-server-side-encryption-aws-kms-key-id"), key, "{name}: {headers:?}");
        }
    }
}
