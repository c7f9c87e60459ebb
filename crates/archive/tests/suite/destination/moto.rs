//! S3 on moto.

use std::io::{ErrorKind, Read as _};

use laredo_archive::{Destination as _, DestinationError, DestinationReader as _, S3Destination};
use laredo_testkit::{FaultProxy, MotoServer, ProxyDirection};

use crate::destination::contract::{self, noise, staged, stager};
use crate::store::{BUCKET, TestBucket, keys};

async fn bucket(moto: &MotoServer) -> TestBucket {
    moto.create_bucket(BUCKET).await.unwrap();
    TestBucket::new(moto.url(), keys()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_keeps_to_the_contract() {
    let moto = MotoServer::start().await.unwrap();
    let bucket = bucket(&moto).await;
    contract::keeps_to_the_contract(&|name| bucket.place(name)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_excludes_two_writers() {
    let moto = MotoServer::start().await.unwrap();
    let bucket = bucket(&moto).await;
    contract::excludes_two_writers(&|name| bucket.place(name), 50).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prefix_is_taken_as_it_is() {
    let moto = MotoServer::start().await.unwrap();
    let bucket = bucket(&moto).await;
    let (stager, _folder) = stager();
    for prefix in ["", "without-a-slash", "a=b c+d/ü%20/"] {
        let destination = bucket.with(prefix, &bucket.options());
        destination.put("epoch=1/snapshot-0_1.jsonl", &staged(&stager, prefix.as_bytes())).await.unwrap();
        assert_eq!(contract::read(&destination, "epoch=1/snapshot-0_1.jsonl").await, prefix.as_bytes());
        let listed = destination.list().await.unwrap();
        assert_eq!(listed.iter().map(|one| &*one.object).collect::<Vec<_>>(), ["epoch=1/snapshot-0_1.jsonl"]);
        assert_eq!(destination.uri("manifest.json"), format!("s3://{BUCKET}/{prefix}manifest.json"));
    }
    for prefix in ["/a/", "a//b/", "a/../b/"] {
        let said = S3Destination::new(BUCKET, prefix, &bucket.options(), &bucket.credentials).map(drop);
        assert!(matches!(said, Err(DestinationError::Refused { .. })), "{prefix}: {said:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn more_objects_than_one_answer_lists_are_listed() {
    let moto = MotoServer::start().await.unwrap();
    let bucket = bucket(&moto).await;
    contract::lists_more_than_one_answer_holds(&|name| bucket.place(name)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_that_is_not_there_is_refused_with_a_remedy() {
    let moto = MotoServer::start().await.unwrap();
    let bucket = bucket(&moto).await;
    let destination = S3Destination::new("nobodys", "users/", &bucket.options(), &bucket.credentials).unwrap();
    let (stager, _folder) = stager();
    let large = staged(&stager, &noise(17 << 20));
    let said = [
        destination.manifest().await.map(drop),
        destination.publish(b"1", None).await.map(drop),
        destination.put("epoch=1/snapshot-0_1.jsonl", &staged(&stager, b"1")).await,
        destination.put("epoch=1/snapshot-0_2.jsonl", &large).await,
        destination.list().await.map(drop),
        destination.open("epoch=1/snapshot-0_1.jsonl").await.map(drop),
    ];
    for said in said {
        let Err(DestinationError::Refused { reason, .. }) = &said else { panic!("{said:?}") };
        assert!(reason.contains("correct `bucket`"), "{reason}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_not_there_is_unavailable() {
    let bucket = TestBucket::new("http://127.0.0.1:9".to_owned(), keys()).await;
    let said = bucket.place("users").manifest().await;
    let Err(DestinationError::Unavailable { reason, .. }) = &said else { panic!("{said:?}") };
    assert!(reason.contains("refused"), "{reason}");
}

/// The paused clock advances whenever all tasks wait, so the minute takes no time.
#[tokio::test(start_paused = true)]
async fn a_store_that_does_not_answer_is_unavailable_before_long() {
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let bucket = TestBucket::new(format!("http://{}", silent.local_addr().unwrap()), keys()).await;
    let begun = tokio::time::Instant::now();
    let said = bucket.place("users").publish(b"manifest", None).await;
    assert!(matches!(said, Err(DestinationError::Unavailable { .. })), "{said:?}");
    let said = bucket.place("users").manifest().await;
    assert!(matches!(said, Err(DestinationError::Unavailable { .. })), "{said:?}");
    assert!(begun.elapsed().as_secs() < 120, "{:?}", begun.elapsed());
}

/// Each connection ends after a megabyte. The reader requests the rest a few times, and then fails.
#[tokio::test(flavor = "multi_thread")]
async fn an_object_that_is_cut_off_is_an_error_and_no_end() {
    let moto = MotoServer::start().await.unwrap();
    let direct = bucket(&moto).await;
    let (stager, _folder) = stager();
    let bytes = noise(12 << 20);
    direct.place("cut").put("epoch=1/snapshot-0_1.jsonl", &staged(&stager, &bytes)).await.unwrap();

    let proxy = FaultProxy::start(moto.addr()).await.unwrap();
    let bucket = TestBucket::new(format!("http://{}", proxy.addr()), keys()).await;
    proxy.cut_after_bytes(ProxyDirection::ToClient, 1 << 20);
    let mut opened = bucket.place("cut").open("epoch=1/snapshot-0_1.jsonl").await.unwrap();
    proxy.refuse(true);
    let mut read = Vec::new();
    let (error, read) = tokio::task::spawn_blocking(move || {
        let error = opened.read_to_end(&mut read).unwrap_err();
        // Another read fails too.
        assert!(opened.read(&mut [0; 10]).is_err());
        (error, read)
    })
    .await
    .unwrap();
    assert_eq!(error.kind(), ErrorKind::UnexpectedEof, "{error}");
    assert!(read.len() < bytes.len() && bytes.starts_with(&read), "{} bytes", read.len());

    // After a single broken connection, the reader requests the missing rest.
    proxy.refuse(false);
    proxy.cut_after_bytes(ProxyDirection::ToClient, 1 << 20);
    assert!(contract::read(&bucket.place("cut"), "epoch=1/snapshot-0_1.jsonl").await == bytes);
}

/// The object exists, but the response was lost.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_done_without_an_answer_is_found_when_it_is_done_again() {
    let moto = MotoServer::start().await.unwrap();
    bucket(&moto).await;
    let proxy = FaultProxy::start(moto.addr()).await.unwrap();
    let bucket = TestBucket::new(format!("http://{}", proxy.addr()), keys()).await;
    let destination = bucket.place("lost");
    proxy.cut_after_bytes(ProxyDirection::ToClient, 0);
    let said = destination.publish(b"manifest", None).await;
    if said.is_err() {
        assert!(matches!(said, Err(DestinationError::Unavailable { .. })), "{said:?}");
        destination.publish(b"manifest", None).await.unwrap();
    }
    let there = destination.manifest().await.unwrap().unwrap();
    let said = destination.publish(b"another", None).await;
    assert!(matches!(said, Err(DestinationError::Moved { .. })), "{said:?}");
    assert_eq!(there.bytes, b"manifest");
}
