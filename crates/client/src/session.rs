//! The network's side: one stream after another, each going on from where the last one left off.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::{Stream, StreamExt};
use laredo_proto::replication::laredo_replication_service_client::LaredoReplicationServiceClient;
use laredo_proto::replication::{FieldPredicate, RowEncoding, SyncRequest, SyncResponse, sync_response};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tonic::transport::Endpoint;

use crate::activity::Watched;
use crate::applier::{Input, Resume, Shared, weight};
use crate::status::ReplicaError;
use laredo_core::TableName;

/// A server sends heartbeats far more often than this.
const SILENCE: Duration = Duration::from_secs(30);
/// The first wait before connecting anew, and the longest: for what may pass by itself, and for what will not.
const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_LAST: Duration = Duration::from_secs(5);
const RETRY_DEFINITE: Duration = Duration::from_secs(15);

/// What a session needs to know.
pub(crate) struct Options {
    pub(crate) server: String,
    pub(crate) endpoint: Endpoint,
    pub(crate) table: TableName,
    pub(crate) client_id: String,
    pub(crate) filters: Vec<FieldPredicate>,
    pub(crate) message_bytes_max: usize,
    pub(crate) pending_bytes_max: u32,
    pub(crate) seed: u64,
}

/// Keeps a stream open until it is stopped.
pub(crate) struct Session {
    options: Options,
    shared: Arc<Shared>,
    inputs: mpsc::UnboundedSender<Input>,
    faults: mpsc::UnboundedReceiver<ReplicaError>,
    /// Bytes that may wait for the applier.
    room: Arc<Semaphore>,
}

/// How a stream ended, and whether it had brought anything.
struct End {
    error: ReplicaError,
    progressed: bool,
}

impl Session {
    pub(crate) fn new(
        options: Options,
        shared: Arc<Shared>,
        inputs: mpsc::UnboundedSender<Input>,
        faults: mpsc::UnboundedReceiver<ReplicaError>,
    ) -> Session {
        let room = Arc::new(Semaphore::new(options.pending_bytes_max as usize));
        Session { options, shared, inputs, faults, room }
    }

    pub(crate) async fn run(mut self, stopped: CancellationToken) {
        let mut backoff = Backoff::new(self.options.seed);
        loop {
            let end = tokio::select! {
                () = stopped.cancelled() => return,
                end = self.stream() => end,
            };
            self.shared.fail(&end.error);
            if self.inputs.is_closed() {
                tracing::error!(table = %self.options.table, "the replica's thread has ended; nothing newer will be shown");
                return;
            }
            let wait = backoff.next(&end.error, end.progressed);
            let wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
            match &end.error {
                error @ ReplicaError::GoAway { .. } => tracing::info!(table = %self.options.table, %error),
                error => tracing::warn!(table = %self.options.table, %error, wait_ms, "connecting anew"),
            }
            tokio::select! {
                () = stopped.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// Opens one stream and reads it to its end.
    async fn stream(&mut self) -> End {
        let mut progressed = false;
        let error = match self.open().await {
            Ok((stream, activity)) => self.read(stream, &activity, &mut progressed).await,
            Err(error) => error,
        };
        End { error, progressed }
    }

    async fn open(&mut self) -> Result<(tonic::Streaming<SyncResponse>, Arc<AtomicU64>), ReplicaError> {
        let (answer, resume) = oneshot::channel();
        let gone = |_| ReplicaError::Ended {
            code: tonic::Code::Cancelled,
            reason: "the replica's thread has ended".to_owned(),
        };
        self.inputs.send(Input::Open(answer)).map_err(|_| gone(()))?;
        let resume = resume.await.map_err(|_| gone(()))?;
        // Whatever was wrong with the stream before is known by now.
        while self.faults.try_recv().is_ok() {}
        // Each stream has a connection of its own: a balancer may then choose another server.
        let channel =
            self.options.endpoint.connect().await.map_err(|error| ReplicaError::Connect {
                server: self.options.server.clone(),
                reason: deepest(&error),
            })?;
        let activity = Arc::new(AtomicU64::new(0));
        let mut client = LaredoReplicationServiceClient::new(Watched::new(channel, activity.clone()))
            .max_decoding_message_size(self.options.message_bytes_max);
        let opened = tokio::time::timeout(SILENCE, client.sync(self.request(resume))).await;
        match opened {
            Ok(Ok(response)) => Ok((response.into_inner(), activity)),
            Ok(Err(status)) => Err(ReplicaError::from_status(&status, &self.options.table)),
            Err(_) => Err(ReplicaError::Silent(SILENCE)),
        }
    }

    fn request(&self, resume: Resume) -> SyncRequest {
        let (instance_id, sequence) = match resume.sequence {
            Some(sequence) if !resume.instance_id.is_empty() => (resume.instance_id, sequence.to_wire()),
            _ => (String::new(), 0),
        };
        let position = match resume.position {
            laredo_core::Lsn::ZERO => String::new(),
            position => position.to_string(),
        };
        SyncRequest {
            schema: self.options.table.schema.clone(),
            table: self.options.table.table.clone(),
            last_known_sequence: sequence,
            last_snapshot_id: String::new(),
            client_id: self.options.client_id.clone(),
            last_known_source_position: position,
            filters: self.options.filters.clone(),
            accept: vec![RowEncoding::PostgresBinary.into()],
            instance_id,
            source: resume.source,
        }
    }

    async fn read(
        &mut self,
        stream: tonic::Streaming<SyncResponse>,
        activity: &AtomicU64,
        progressed: &mut bool,
    ) -> ReplicaError {
        let mut stream = pin!(stream);
        let mut messages = 0_u64;
        loop {
            let next = tokio::select! {
                biased;
                Some(fault) = self.faults.recv() => {
                    *progressed = false;
                    return fault;
                }
                next = next_message(&mut stream, activity) => next,
            };
            let message = match next {
                Next::Message(message) => message,
                Next::End(status) => return self.ended(&status).await,
                Next::Silence => return ReplicaError::Silent(SILENCE),
            };
            if let Some(sync_response::Message::GoAway(farewell)) = message.message {
                // Nothing but heartbeats comes after it, so there is nothing to stay for.
                return ReplicaError::GoAway { reason: farewell.reason };
            }
            let received = (self.shared.now)();
            let share = u32::try_from(weight(&message)).unwrap_or(u32::MAX);
            let share = share.min(self.options.pending_bytes_max);
            // While too much waits, the stream is not read, and the server feels it.
            let Ok(share) = self.room.clone().acquire_many_owned(share).await else {
                continue;
            };
            let input = Input::Message(message, received, share);
            if self.inputs.send(input).is_err() {
                return ReplicaError::Ended {
                    code: tonic::Code::Cancelled,
                    reason: "the replica's thread has ended".to_owned(),
                };
            }
            messages += 1;
            *progressed = messages > 1;
        }
    }

    /// The stream's own end, unless what it brought was wrong: then that.
    async fn ended(&mut self, status: &tonic::Status) -> ReplicaError {
        // At once: the applier may be held up for long.
        self.shared.status.send_modify(|status| status.connected = false);
        let (answer, applied) = oneshot::channel();
        if self.inputs.send(Input::Open(answer)).is_ok() {
            // The answer says only that all messages were looked at.
            let _ = applied.await;
        }
        self.faults.try_recv().unwrap_or_else(|_| ReplicaError::from_status(status, &self.options.table))
    }
}

enum Next {
    Message(Box<SyncResponse>),
    End(tonic::Status),
    Silence,
}

/// The next message; silence is when not even a part of one comes.
async fn next_message(
    stream: &mut (impl Stream<Item = Result<SyncResponse, tonic::Status>> + Unpin),
    activity: &AtomicU64,
) -> Next {
    loop {
        let before = activity.load(Ordering::Relaxed);
        match tokio::time::timeout(SILENCE, stream.next()).await {
            Ok(Some(Ok(message))) => return Next::Message(Box::new(message)),
            Ok(Some(Err(status))) => return Next::End(status),
            Ok(None) => return Next::End(tonic::Status::unavailable("the server closed the stream")),
            Err(_) if activity.load(Ordering::Relaxed) == before => return Next::Silence,
            Err(_) => {}
        }
    }
}

/// The innermost cause: what is around it says only "transport error".
pub(crate) fn deepest(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

/// How long to wait before connecting anew: longer each time, and never the same as others do.
#[derive(Debug)]
struct Backoff {
    failures: u32,
    random: u64,
}

impl Backoff {
    fn new(seed: u64) -> Backoff {
        Backoff { failures: 0, random: seed }
    }

    fn next(&mut self, error: &ReplicaError, progressed: bool) -> Duration {
        if progressed {
            self.failures = 0;
        }
        let full = match error {
            error if error.is_definite() => RETRY_DEFINITE,
            ReplicaError::GoAway { .. } if self.failures == 0 => Duration::ZERO,
            _ => RETRY_LAST.min(RETRY_FIRST.saturating_mul(1 << self.failures.min(16))),
        };
        self.failures = self.failures.saturating_add(1);
        // Between half of it and all of it.
        let share = (self.random() >> 11) as f64 / (1_u64 << 53) as f64;
        full.mul_f64(0.5 + share / 2.0)
    }

    /// SplitMix64.
    fn random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.random;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::stream;

    #[tokio::test(start_paused = true)]
    async fn a_silent_server_is_given_up_after_30_seconds() {
        let begun = tokio::time::Instant::now();
        let next = next_message(&mut stream::pending(), &AtomicU64::new(0)).await;
        assert!(matches!(next, Next::Silence));
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
        assert!(matches!(next, Next::Message(_)));
        assert_eq!(begun.elapsed(), SILENCE * 5);
    }

    #[test]
    fn waits_grow_differ_and_start_over() {
        let ended = ReplicaError::Silent(SILENCE);
        let mut backoff = Backoff::new(1);
        let waits: Vec<_> = (0..12).map(|_| backoff.next(&ended, false)).collect();
        assert!(waits[0] <= RETRY_FIRST && waits[11] >= RETRY_LAST / 2 && waits[11] <= RETRY_LAST, "{waits:?}");
        assert_ne!(waits[10], waits[11]);
        assert!(backoff.next(&ended, true) <= RETRY_FIRST);
        assert!(backoff.next(&ReplicaError::Encoding, false) >= RETRY_DEFINITE / 2);
    }

    #[test]
    fn a_farewell_is_followed_at_once_but_not_in_a_loop() {
        let farewell = ReplicaError::GoAway { reason: String::new() };
        let mut backoff = Backoff::new(1);
        assert_eq!(backoff.next(&farewell, true), Duration::ZERO);
        assert!(backoff.next(&farewell, false) > Duration::ZERO);
    }
}
