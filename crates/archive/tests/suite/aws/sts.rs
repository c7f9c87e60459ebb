//! An STS that issues short-lived credentials and records its requests.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use aws_sdk_sqs::primitives::{DateTime, DateTimeFormat};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// An STS that runs until it is dropped.
pub(crate) struct FakeSts {
    pub(crate) url: String,
    shared: Arc<FakeStsState>,
    serving: JoinHandle<()>,
}

#[derive(Default)]
struct FakeStsState {
    life: Duration,
    asked: Mutex<Vec<StsRequest>>,
    handed_out: AtomicUsize,
    refuses: AtomicBool,
}

/// A recorded request.
#[derive(Clone, Debug)]
pub(crate) struct StsRequest {
    /// The headers as they arrived.
    pub(crate) head: String,
    /// The body, which is a form.
    pub(crate) body: String,
}

impl FakeSts {
    pub(crate) async fn start(life: Duration) -> FakeSts {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let shared = Arc::new(FakeStsState { life, ..FakeStsState::default() });
        let serving = tokio::spawn(serve(listener, shared.clone()));
        FakeSts { url, shared, serving }
    }

    pub(crate) fn asked(&self) -> Vec<StsRequest> {
        self.shared.asked.lock().clone()
    }

    /// Refuses all requests from now on.
    pub(crate) fn refuse(&self) {
        self.shared.refuses.store(true, Ordering::SeqCst);
    }
}

impl Drop for FakeSts {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn serve(listener: TcpListener, shared: Arc<FakeStsState>) {
    while let Ok((stream, _)) = listener.accept().await {
        answer(stream, &shared).await;
    }
}

/// Answers one request for each connection, and one connection at a time.
async fn answer(mut stream: TcpStream, shared: &FakeStsState) {
    let (mut text, mut buffer) = (String::new(), [0; 4096]);
    let asked = loop {
        let read = stream.read(&mut buffer).await.unwrap();
        text.push_str(std::str::from_utf8(&buffer[..read]).unwrap());
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = head.lines().find_map(|line| line.to_lowercase().strip_prefix("content-length: ")?.parse().ok());
        if body.len() >= length.unwrap_or(0) {
            break StsRequest { head: head.to_owned(), body: body.to_owned() };
        }
    };
    shared.asked.lock().push(asked);
    let (status, document) = if shared.refuses.load(Ordering::SeqCst) {
        let refusal = "<ErrorResponse><Error><Type>Sender</Type><Code>AccessDenied</Code><Message>not you</Message></Error>\
                       <RequestId>1</RequestId></ErrorResponse>";
        ("403 Forbidden", refusal.to_owned())
    } else {
        ("200 OK", assumed(shared))
    };
    let length = document.len();
    let answer = format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{document}");
    stream.write_all(answer.as_bytes()).await.unwrap();
}

fn assumed(shared: &FakeStsState) -> String {
    let number = shared.handed_out.fetch_add(1, Ordering::SeqCst) + 1;
    // The credentials expire by the system clock that the test also uses.
    #[expect(clippy::disallowed_methods, reason = "an STS has a clock of its own")]
    let end = DateTime::from(SystemTime::now() + shared.life);
    let end = end.fmt(DateTimeFormat::DateTime).unwrap();
    format!(
        "<AssumeRoleResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><AssumeRoleResult><AssumedRoleUser>\
         <AssumedRoleId>AROA:laredo</AssumedRoleId><Arn>arn:aws:sts::222233334444:assumed-role/pub/laredo</Arn>\
         </AssumedRoleUser><Credentials><AccessKeyId>ASIA{number}</AccessKeyId><SecretAccessKey>s{number}</SecretAccessKey>\
         <SessionToken>t{number}</SessionToken><Expiration>{end}</Expiration></Credentials></AssumeRoleResult>\
         <ResponseMetadata><RequestId>1</RequestId></ResponseMetadata></AssumeRoleResponse>"
    )
}
