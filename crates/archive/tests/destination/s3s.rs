//! S3 on s3s-fs, which checks every signature.
//!
//! It honours If-None-Match and If-Match on PUT, and both on the completion of an upload, but looks first and writes afterwards,
//! where S3 does both in one. So its requests are let in one by one, or two writers who exclude each other could both succeed. Whoever
//! has a key may do everything, so what a lack of permission looks like is tested by its words alone.

use std::net::Ipv4Addr;
use std::sync::Arc;

use aws_credential_types::Credentials as Keys;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use laredo_archive::DestinationError;
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use tokio::net::TcpListener;
use tokio::sync::Mutex;
use tokio::task::{JoinHandle, JoinSet};

use crate::moto::{Bucket, keys};
use crate::suite::{self, noise, staged, stager};

struct Server {
    url: String,
    serving: JoinHandle<()>,
    folder: tempfile::TempDir,
}

impl Server {
    async fn start() -> Server {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("archives")).unwrap();
        let mut builder = S3ServiceBuilder::new(s3s_fs::FileSystem::new(folder.path()).unwrap());
        builder.set_auth(SimpleAuth::from_single(keys().access_key_id(), keys().secret_access_key()));
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let serving = tokio::spawn(serve(listener, builder.build()));
        Server { url, serving, folder }
    }

    async fn bucket(&self) -> Bucket {
        Bucket::new(self.url.clone(), keys()).await
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn serve(listener: TcpListener, service: S3Service) {
    // Owned by this task, so that aborting it ends them too.
    let mut connections = JoinSet::new();
    let turn = Arc::new(Mutex::new(()));
    while let Ok((stream, _)) = listener.accept().await {
        let (service, turn) = (service.clone(), turn.clone());
        let one_by_one = hyper::service::service_fn(move |request| {
            let (service, turn) = (service.clone(), turn.clone());
            async move {
                let _mine = turn.lock().await;
                hyper::service::Service::call(&service, request).await
            }
        });
        connections.spawn(async move {
            let _ = Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), one_by_one).await;
        });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_keeps_to_the_contract() {
    let server = Server::start().await;
    let bucket = server.bucket().await;
    suite::keeps_to_the_contract(&|name| bucket.place(name)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_excludes_two_writers() {
    let server = Server::start().await;
    let bucket = server.bucket().await;
    suite::excludes_two_writers(&|name| bucket.place(name), 100).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn more_objects_than_one_answer_lists_are_listed() {
    let server = Server::start().await;
    let bucket = server.bucket().await;
    suite::lists_more_than_one_answer_holds(&|name| bucket.place(name)).await;
}

/// Both upload their parts at the same time; the completion decides.
#[tokio::test(flavor = "multi_thread")]
async fn of_two_large_artifacts_of_one_name_one_stays() {
    let server = Server::start().await;
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
    assert!(suite::read(&a, object).await == won);
    // The loser's parts are gone.
    let left = std::fs::read_dir(server.folder.path()).unwrap().map(|entry| entry.unwrap().file_name());
    let left: Vec<_> = left.filter(|name| name.to_string_lossy().contains("upload")).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_credentials_are_refused_with_a_remedy() {
    let server = Server::start().await;
    for (wrong, keys) in [
        ("a secret", Keys::from_keys(keys().access_key_id(), "another", None)),
        ("an id", Keys::from_keys("AKIANOBODY", "secret", None)),
    ] {
        let destination = Bucket::new(server.url.clone(), keys).await.place("users");
        let said = destination.manifest().await.map(drop);
        let Err(DestinationError::Refused { reason, .. }) = &said else { panic!("{wrong}: {said:?}") };
        assert!(reason.contains("credentials") || reason.contains("allow"), "{wrong}: {reason}");
    }
}
