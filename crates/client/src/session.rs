//! The network side of a client: one stream after another, each resuming where the previous one
//! ended.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::future::{FutureExt, OptionFuture};
use futures_util::{Stream, StreamExt};
use laredo_proto::replication::laredo_replication_service_client::LaredoReplicationServiceClient;
use laredo_proto::replication::{
    FieldPredicate, ReportChecksumRequest, RowEncoding, SyncRequest, SyncResponse, sync_response,
};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::metadata::AsciiMetadataValue;
use tonic::transport::{Channel, Endpoint};

use crate::counting_channel::CountingChannel;
use crate::health::SessionHealth;
use crate::status::{GrpcCode, ReplicaError, deepest};
use crate::sync_receiver::{ResumeState, SessionFeedback, SessionInput, message_weight};
use laredo_core::{RetryDelays, TableName};

/// The longest time for resolving the name, connecting, and the TLS handshake.
const CONNECT_MAX: Duration = Duration::from_secs(15);
/// The silence after which a stream is given up. A server sends heartbeats far more often.
const SILENCE: Duration = Duration::from_secs(30);
/// The number of answers to a server's checks that may wait. A server asks one question at a time.
const REPORTS_MAX: usize = 4;
/// The first wait before reconnecting. The wait then grows up to `RETRY_LAST`. Errors that do not
/// pass by themselves have `RETRY_DEFINITE`.
const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_LAST: Duration = Duration::from_secs(5);
const RETRY_DEFINITE: Duration = Duration::from_secs(15);

/// The settings of a session.
pub(crate) struct ClientSessionOptions {
    pub(crate) server: String,
    pub(crate) endpoint: Endpoint,
    /// The certificates of the endpoint.
    #[cfg(feature = "tls")]
    pub(crate) tls: crate::tls::TlsCertificates,
    /// The token header, for servers or proxies that require it.
    pub(crate) authorization: Option<AsciiMetadataValue>,
    pub(crate) table: TableName,
    pub(crate) client_id: String,
    pub(crate) filters: Vec<FieldPredicate>,
    pub(crate) message_bytes_max: usize,
    pub(crate) pending_bytes_max: u32,
    pub(crate) seed: u64,
}

/// Keeps a stream open until the session is stopped.
pub(crate) struct ClientSession {
    health: Arc<SessionHealth>,
    dialer: StreamDialer,
    feedback: mpsc::UnboundedReceiver<SessionFeedback>,
    /// Permits for the bytes of messages that may wait to be applied.
    room: Arc<Semaphore>,
    /// The time of the last move to another stream. It slows down a client that several servers
    /// send on at once.
    moved_at: Option<Instant>,
}

/// Opens streams.
#[derive(Clone)]
struct StreamDialer {
    options: Arc<ClientSessionOptions>,
    inputs: mpsc::UnboundedSender<SessionInput>,
}

/// A stream that the server has accepted.
struct AcceptedStream {
    stream: tonic::Streaming<SyncResponse>,
    /// The stream's connection, for answers to the server's checks.
    channel: Channel,
    activity: Arc<AtomicU64>,
    /// The first message, if it was read already.
    first: Option<Box<SyncResponse>>,
}

/// The reason why reading a stream ended.
enum StreamReadOutcome {
    Ended(ReplicaError),
    /// Another stream continues from here.
    Moved(Box<AcceptedStream>),
}

/// The end of a stream, with its error.
struct StreamFailure {
    error: ReplicaError,
    progressed: bool,
}

impl ClientSessionOptions {
    /// Returns the endpoint with its certificates as they are now.
    ///
    /// # Errors
    /// The reason, when a certificate cannot be read or is invalid.
    #[cfg(feature = "tls")]
    async fn current_endpoint(options: &Arc<ClientSessionOptions>) -> Result<Endpoint, String> {
        let is_fixed = options.endpoint.uri().scheme_str() != Some("https") || !options.tls.has_files();
        if is_fixed {
            return Ok(options.endpoint.clone());
        }
        let options = options.clone();
        let read = tokio::task::spawn_blocking(move || {
            let tls = options.tls.config()?;
            options.endpoint.clone().tls_config(tls).map_err(|error| deepest(&error))
        });
        read.await.map_err(|error| error.to_string())?
    }

    #[cfg(not(feature = "tls"))]
    async fn current_endpoint(options: &Arc<ClientSessionOptions>) -> Result<Endpoint, String> {
        Ok(options.endpoint.clone())
    }

    /// Wraps a message in a request with the authorization header.
    fn request_of<T>(&self, message: T) -> tonic::Request<T> {
        let mut request = tonic::Request::new(message);
        if let Some(authorization) = &self.authorization {
            request.metadata_mut().insert("authorization", authorization.clone());
        }
        request
    }

    /// Answers the checks of a stream one after another, on the connection that they came on. The
    /// task outlives the stream until the waiting answers are sent, because a client with wrong
    /// rows ends the stream at once.
    async fn report_checksums(self: Arc<Self>, channel: Channel, mut reports: mpsc::Receiver<ReportChecksumRequest>) {
        let (mut client, table) = (LaredoReplicationServiceClient::new(channel), &self.table);
        while let Some(report) = reports.recv().await {
            match tokio::time::timeout(SILENCE, client.report_checksum(self.request_of(report))).await {
                Ok(Ok(_)) => {}
                Ok(Err(status)) => {
                    tracing::warn!(
                        event = "checksum_not_reported", %table, %status,
                        "cannot report the checksum that the server requested"
                    )
                }
                Err(_) => {
                    tracing::warn!(
                        event = "checksum_not_reported", %table,
                        "cannot report the checksum that the server requested: no answer in time"
                    )
                }
            }
        }
    }
}

impl ClientSession {
    pub(crate) fn new(
        options: ClientSessionOptions,
        health: Arc<SessionHealth>,
        inputs: mpsc::UnboundedSender<SessionInput>,
        feedback: mpsc::UnboundedReceiver<SessionFeedback>,
    ) -> ClientSession {
        let room = Arc::new(Semaphore::new(options.pending_bytes_max as usize));
        ClientSession {
            health,
            dialer: StreamDialer { options: Arc::new(options), inputs },
            feedback,
            room,
            moved_at: None,
        }
    }

    pub(crate) async fn run(mut self, stopped: CancellationToken) {
        let table = self.dialer.options.table.clone();
        let mut delays = retry_delays(self.dialer.options.seed);
        loop {
            let end = tokio::select! {
                // Biased, so that a stopped session delivers nothing after the stop.
                biased;
                () = stopped.cancelled() => return,
                end = self.run_stream() => end,
            };
            self.health.fail(&end.error);
            if self.dialer.inputs.is_closed() {
                tracing::error!(
                    event = "subscription_ended", %table,
                    "the replica's thread has ended, or the subscription was dropped; no newer rows will be shown"
                );
                return;
            }
            if end.progressed {
                delays.reset();
            }
            let wait = wait_after(&end.error, &mut delays);
            let wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
            tracing::warn!(event = "reconnecting", %table, error = %end.error, wait_ms, "reconnecting");
            tokio::select! {
                () = stopped.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// Opens a stream and reads it to its end, including the streams that replace it.
    async fn run_stream(&mut self) -> StreamFailure {
        let mut progressed = false;
        let error = match self.open_stream().await {
            Ok(opened) => self.read_on(opened, &mut progressed).await,
            Err(error) => error,
        };
        StreamFailure { error, progressed }
    }

    async fn read_on(&mut self, mut opened: AcceptedStream, progressed: &mut bool) -> ReplicaError {
        loop {
            opened = match self.read_stream(opened, progressed).await {
                StreamReadOutcome::Ended(error) => return error,
                StreamReadOutcome::Moved(next) => *next,
            };
            tracing::info!(event = "stream_moved", table = %self.dialer.options.table, "moved to another stream");
            self.moved_at = Some(Instant::now());
            // From here on, messages are those of the new stream. Transactions that both streams
            // deliver are repeats.
            if let Err(error) = self.dialer.ask_resume_state(SessionInput::Open).await {
                return error;
            }
        }
    }

    async fn open_stream(&mut self) -> Result<AcceptedStream, ReplicaError> {
        let resume = self.dialer.ask_resume_state(SessionInput::Open).await?;
        // Feedback that is waiting now is about the previous stream.
        while self.feedback.try_recv().is_ok() {}
        self.dialer.dial(resume).await
    }

    async fn read_stream(&mut self, opened: AcceptedStream, progressed: &mut bool) -> StreamReadOutcome {
        let AcceptedStream { mut stream, channel, activity, mut first } = opened;
        let (reports, waiting) = mpsc::channel(REPORTS_MAX);
        tokio::spawn(self.dialer.options.clone().report_checksums(channel, waiting));
        let mut another = OptionFuture::default();
        let mut messages = 0_u64;
        loop {
            let next = tokio::select! {
                biased;
                Some(feedback) = self.feedback.recv() => match feedback {
                    SessionFeedback::Fault(fault) => {
                        *progressed = false;
                        return StreamReadOutcome::Ended(fault);
                    }
                    SessionFeedback::Report(report) => {
                        if reports.try_send(report).is_err() {
                            tracing::warn!(
                                event = "checksum_not_reported", table = %self.dialer.options.table,
                                "cannot report a checksum: the server requests them faster than it accepts them"
                            );
                        }
                        continue;
                    }
                },
                Some(another) = &mut another => return StreamReadOutcome::Moved(Box::new(another)),
                next = async {
                    match first.take() {
                        Some(first) => StreamMessage::Message(first),
                        None => next_message(&mut stream, &activity).await,
                    }
                } => next,
            };
            let message = match next {
                StreamMessage::Message(message) => message,
                StreamMessage::End(status) => return StreamReadOutcome::Ended(self.stream_end_error(&status).await),
                StreamMessage::Silence => return StreamReadOutcome::Ended(ReplicaError::Silent(SILENCE)),
            };
            if let Some(sync_response::Message::GoAway(farewell)) = message.message {
                tracing::info!(
                    event = "move_requested", table = %self.dialer.options.table, reason = farewell.reason,
                    "the server asked this client to move to another stream"
                );
                let is_new = self.moved_at.is_some_and(|at| at.elapsed() < RETRY_LAST);
                let pause = if is_new { RETRY_LAST } else { Duration::ZERO };
                another = Some(self.dialer.clone().retry_second_stream(pause).boxed()).into();
                continue;
            }
            let received = self.health.now();
            let share = u32::try_from(message_weight(&message)).unwrap_or(u32::MAX);
            let share = share.min(self.dialer.options.pending_bytes_max);
            // While too many bytes wait, the stream is not read, and HTTP/2 flow control slows the
            // server down.
            let Ok(share) = self.room.clone().acquire_many_owned(share).await else {
                continue;
            };
            let input = SessionInput::Message(message, received, share);
            if self.dialer.inputs.send(input).is_err() {
                return StreamReadOutcome::Ended(consumer_gone_error());
            }
            messages += 1;
            *progressed = messages > 1;
        }
    }

    /// Returns the error of the stream's end, or the fault that the receiver found in its messages.
    async fn stream_end_error(&mut self, status: &tonic::Status) -> ReplicaError {
        // The status changes at once, because the code that takes the messages may be blocked for a
        // long time.
        self.health.disconnected();
        // The answer only shows that all messages were processed.
        let _ = self.dialer.ask_resume_state(SessionInput::Open).await;
        let fault = std::iter::from_fn(|| self.feedback.try_recv().ok()).find_map(|feedback| match feedback {
            SessionFeedback::Fault(fault) => Some(fault),
            SessionFeedback::Report(_) => None,
        });
        fault.unwrap_or_else(|| ReplicaError::from_status(status, &self.dialer.options.table))
    }
}

impl StreamDialer {
    /// Opens a stream that continues from the client's position, retrying until a server accepts
    /// it. The current stream is read meanwhile.
    async fn retry_second_stream(self, pause: Duration) -> AcceptedStream {
        tokio::time::sleep(pause).await;
        let table = self.options.table.clone();
        let mut delays = retry_delays(self.options.seed);
        loop {
            let error = match self.open_second_stream().await {
                Ok(opened) => return opened,
                Err(error) => error,
            };
            let wait = wait_after(&error, &mut delays);
            tracing::info!(
                event = "second_stream_refused", %table, %error, wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX),
                "cannot open a second stream yet; retrying"
            );
            tokio::time::sleep(wait).await;
        }
    }

    async fn open_second_stream(&self) -> Result<AcceptedStream, ReplicaError> {
        let resume = self.ask_resume_state(SessionInput::OpenSecond).await?;
        let mut opened = self.dial(resume).await?;
        // The first message shows that the server has reached the client's position, or that it
        // sends all rows.
        match next_message(&mut opened.stream, &opened.activity).await {
            StreamMessage::Message(first) => opened.first = Some(first),
            StreamMessage::End(status) => return Err(ReplicaError::from_status(&status, &self.options.table)),
            StreamMessage::Silence => return Err(ReplicaError::Silent(SILENCE)),
        }
        Ok(opened)
    }

    /// Asks the receiver for the state to resume from.
    async fn ask_resume_state(
        &self,
        ask: impl FnOnce(oneshot::Sender<ResumeState>) -> SessionInput,
    ) -> Result<ResumeState, ReplicaError> {
        let (answer, resume) = oneshot::channel();
        self.inputs.send(ask(answer)).map_err(|_| consumer_gone_error())?;
        resume.await.map_err(|_| consumer_gone_error())
    }

    async fn dial(&self, resume: ResumeState) -> Result<AcceptedStream, ReplicaError> {
        // Each stream has its own connection, so that a load balancer may choose another server.
        let failed = |reason: String| ReplicaError::Connect { server: self.options.server.clone(), reason };
        // The endpoint's own timeout covers only TCP. A server may be silent in the TLS handshake,
        // or its name may not resolve.
        let endpoint = ClientSessionOptions::current_endpoint(&self.options).await.map_err(failed)?;
        let channel = match tokio::time::timeout(CONNECT_MAX, endpoint.connect()).await {
            Ok(connected) => connected.map_err(|error| failed(deepest(&error)))?,
            Err(_) => return Err(failed(format!("no answer within {} s", CONNECT_MAX.as_secs()))),
        };
        let activity = Arc::new(AtomicU64::new(0));
        let mut client = LaredoReplicationServiceClient::new(CountingChannel::new(channel.clone(), activity.clone()))
            .max_decoding_message_size(self.options.message_bytes_max);
        let request = self.options.request_of(self.sync_request(resume));
        match tokio::time::timeout(SILENCE, client.sync(request)).await {
            Ok(Ok(response)) => Ok(AcceptedStream { stream: response.into_inner(), channel, activity, first: None }),
            Ok(Err(status)) => Err(ReplicaError::from_status(&status, &self.options.table)),
            Err(_) => Err(ReplicaError::Silent(SILENCE)),
        }
    }

    fn sync_request(&self, resume: ResumeState) -> SyncRequest {
        let (instance_id, sequence) = match resume.sequence {
            Some(sequence) if !resume.instance_id.is_empty() => (resume.instance_id, sequence.to_wire()),
            _ => (String::new(), 0),
        };
        let position = match resume.position {
            laredo_core::Lsn::ZERO => String::new(),
            position => position.to_string(),
        };
        SyncRequest {
            last_known_sequence: sequence,
            client_id: self.options.client_id.clone(),
            last_known_source_position: position,
            instance_id,
            source: resume.source.map(Into::into),
            mark: resume.mark.map(Into::into),
            definition: resume.definition.0,
            wants_checksums: true,
            contents_differed: resume.contents_differed,
            answers_checks: true,
            ..snapshot_request(&self.options.table, &self.options.filters)
        }
    }
}

/// Returns a request for all rows that pass the filters.
pub(crate) fn snapshot_request(table: &TableName, filters: &[FieldPredicate]) -> SyncRequest {
    SyncRequest {
        schema: table.schema.clone(),
        table: table.table.clone(),
        filters: filters.to_vec(),
        accept: vec![RowEncoding::PostgresBinary.into()],
        ..SyncRequest::default()
    }
}

fn consumer_gone_error() -> ReplicaError {
    ReplicaError::Ended { code: GrpcCode::Cancelled, reason: "the consumer of the stream has ended".to_owned() }
}

enum StreamMessage {
    Message(Box<SyncResponse>),
    End(tonic::Status),
    Silence,
}

/// Waits for the next message. Returns silence only if not even a part of a message arrived.
async fn next_message(
    stream: &mut (impl Stream<Item = Result<SyncResponse, tonic::Status>> + Unpin),
    activity: &AtomicU64,
) -> StreamMessage {
    loop {
        let before = activity.load(Ordering::Relaxed);
        match tokio::time::timeout(SILENCE, stream.next()).await {
            Ok(Some(Ok(message))) => return StreamMessage::Message(Box::new(message)),
            Ok(Some(Err(status))) => return StreamMessage::End(status),
            Ok(None) => return StreamMessage::End(tonic::Status::unavailable("the server closed the stream")),
            Err(_) if activity.load(Ordering::Relaxed) == before => return StreamMessage::Silence,
            Err(_) => {}
        }
    }
}

/// Counts a failure, and returns the time until the next attempt. An error that does not pass by
/// itself has a longer one.
fn wait_after(error: &ReplicaError, delays: &mut RetryDelays) -> Duration {
    if error.is_definite() { delays.after_failure_with(RETRY_DEFINITE) } else { delays.after_failure() }
}

fn retry_delays(seed: u64) -> RetryDelays {
    RetryDelays::new(RETRY_FIRST, RETRY_LAST).with_random_share(seed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::pin::pin;

    use futures_util::stream;

    #[tokio::test(start_paused = true)]
    async fn a_silent_server_is_given_up_after_30_seconds() {
        let begun = tokio::time::Instant::now();
        let next = next_message(&mut stream::pending(), &AtomicU64::new(0)).await;
        assert!(matches!(next, StreamMessage::Silence));
        assert_eq!(begun.elapsed(), SILENCE);
    }

    #[tokio::test(start_paused = true)]
    async fn a_message_that_takes_long_to_arrive_is_no_silence() {
        let begun = tokio::time::Instant::now();
        let activity = Arc::new(AtomicU64::new(0));
        let parts = activity.clone();
        let slow = stream::once(async move {
            for _ in 0..10 {
                tokio::time::sleep(SILENCE / 2).await;
                parts.fetch_add(1, Ordering::Relaxed);
            }
            Ok(SyncResponse::default())
        });
        let next = next_message(&mut pin!(slow), &activity).await;
        assert!(matches!(next, StreamMessage::Message(_)));
        assert_eq!(begun.elapsed(), SILENCE * 5);
    }

    #[test]
    fn an_error_that_does_not_pass_by_itself_waits_longer() {
        let mut delays = retry_delays(1);
        let waits: Vec<_> = (0..12).map(|_| wait_after(&ReplicaError::Silent(SILENCE), &mut delays)).collect();
        assert!(waits[0] <= RETRY_FIRST && waits[11] >= RETRY_LAST / 2 && waits[11] <= RETRY_LAST, "{waits:?}");
        assert!(wait_after(&ReplicaError::Encoding, &mut delays) >= RETRY_DEFINITE / 2);
    }
}
