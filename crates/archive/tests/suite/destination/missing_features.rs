//! A store that lacks a feature. A proxy renames the request headers that it should ignore.

use std::net::SocketAddr;

use laredo_archive::DestinationError;
use laredo_testkit::MotoServer;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::destination::contract;
use crate::store::{BUCKET, TestBucket, keys};

/// Forwards connections, and replaces words of the requests by others of the same length.
async fn renaming(to: String, words: &'static [(&'static str, &'static str)]) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let store = TcpStream::connect(&to).await.unwrap();
            let (mut from_client, mut to_client) = client.into_split();
            let (mut from_store, mut to_store) = store.into_split();
            tokio::spawn(async move { tokio::io::copy(&mut from_store, &mut to_client).await });
            tokio::spawn(async move {
                let mut bytes = vec![0; 1 << 20];
                while let Ok(length @ 1..) = from_client.read(&mut bytes).await {
                    let mut text: String = bytes[..length].iter().map(|byte| char::from(*byte)).collect();
                    for (word, other) in words {
                        text = text.replace(word, other);
                    }
                    let sent: Vec<u8> = text.chars().map(|char| char as u8).collect();
                    if to_store.write_all(&sent).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    at
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_ignores_a_condition_is_unsuitable() {
    let moto = MotoServer::start().await.unwrap();
    moto.create_bucket(BUCKET).await.unwrap();
    let honest = TestBucket::new(moto.url(), keys()).await;
    for _ in 0..2 {
        honest.place("honest").probe().await.unwrap();
    }
    assert_eq!(honest.place("honest").list().await.unwrap(), [], "the probe is no artifact");
    let cases: [(&[_], _); 3] = [
        (&[("if-none-match:", "xx-none-match:")], "ignores If-None-Match"),
        (&[("if-match:", "xx-match:")], "ignores If-Match"),
        (&[("if-match:", "xx-match:"), ("if-none-match:", "xx-none-match:")], "ignores If-None-Match"),
    ];
    for (words, expected) in cases {
        let at = renaming(moto.addr(), words).await;
        let lacking = TestBucket::new(format!("http://{at}"), keys()).await;
        // The probe fails at the first start, and at a later one.
        for _ in 0..2 {
            let said = lacking.place(&expected.replace(' ', "-")).probe().await;
            let Err(DestinationError::Unsuitable { reason, .. }) = &said else { panic!("{words:?}: {said:?}") };
            assert!(reason.contains(expected), "{reason}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_without_the_request_that_deletes_many_is_asked_for_each() {
    let moto = MotoServer::start().await.unwrap();
    moto.create_bucket(BUCKET).await.unwrap();
    let at = renaming(moto.addr(), &[("?delete ", "?dxlete ")]).await;
    let lacking = TestBucket::new(format!("http://{at}"), keys()).await;
    let (stager, _folder) = contract::stager();
    let names: Vec<String> = (0..30).map(|number| format!("epoch=1/orphan-{number}.jsonl")).collect();
    let destination = lacking.place("singly");
    for name in &names {
        destination.put(name, &contract::staged(&stager, b"1")).await.unwrap();
    }
    destination.delete(&names).await.unwrap();
    assert_eq!(destination.list().await.unwrap(), []);
}
