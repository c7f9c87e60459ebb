use super::*;
use crate::fixtures::{greeting, snapshot};
use crate::layout::Layout;
use laredo_core::{KeyColumns, Schema};
use laredo_proto::replication::sync_response::Message;
use laredo_proto::replication::{Heartbeat, RowBatch, SyncMode, SyncResponse};
use prost_types::Timestamp;
use std::sync::Mutex;

/// An applier on a clock that only the test moves; it is given what is received by hand.
struct Rig {
    applier: Applier,
    started: Instant,
    now: Arc<Mutex<Duration>>,
    position: u64,
    _inputs: mpsc::UnboundedSender<Input>,
}

impl Rig {
    /// At position 1, with no row.
    fn new() -> Rig {
        let layout = Arc::new(Layout::new(Arc::new(Schema::new(vec![], KeyColumns::new([]), Default::default()))));
        let (started, now) = (Instant::now(), Arc::new(Mutex::new(Duration::ZERO)));
        let clock = now.clone();
        let clock = Box::new(move || started + *clock.lock().unwrap());
        let health = Arc::new(Health::new(clock));
        let shared = Arc::new(Shared::new(Front::new(Side::empty(layout)), Hub::new(1), health));
        let (inputs, waiting) = mpsc::unbounded_channel();
        let applier = Applier::new(shared, vec![], None, waiting, mpsc::unbounded_channel().0);
        let mut rig = Rig { applier, started, now, position: 1, _inputs: inputs };
        rig.receive(0, Message::Handshake(greeting(SyncMode::FullSnapshot, 1)));
        snapshot(1, &[]).into_iter().for_each(|message| rig.receive(0, message));
        rig
    }

    fn receive(&mut self, second: u64, message: Message) {
        let share = Arc::new(tokio::sync::Semaphore::new(1)).try_acquire_owned().unwrap();
        let received = self.started + Duration::from_secs(second);
        self.applier.take(Input::Message(Box::new(SyncResponse { message: Some(message) }), received, share));
    }

    fn transaction(&mut self, second: u64) {
        self.position += 1;
        let batch = RowBatch { position: self.position, ends: true, ..RowBatch::default() };
        self.receive(second, Message::Batch(batch));
        self.applier.show();
        self.applier.intake.note_ready();
    }

    fn heartbeat(&mut self, second: u64, sent: u64) {
        let server_time = Some(Timestamp { seconds: sent.try_into().unwrap(), nanos: 0 });
        let source_position = Lsn(self.position).to_string();
        self.receive(second, Message::Heartbeat(Heartbeat { server_time, source_position, ..Heartbeat::default() }));
        self.applier.show();
    }

    /// In seconds, at this second.
    fn age(&self, second: u64) -> f64 {
        *self.now.lock().unwrap() = Duration::from_secs(second);
        let shared = &self.applier.shared;
        (shared.health.now)().saturating_duration_since(shared.at_head().unwrap()).as_secs_f64().round()
    }
}

#[test]
fn transactions_say_nothing_of_the_age() {
    let mut rig = Rig::new();
    assert!(rig.applier.shared.at_head().is_none());
    rig.heartbeat(0, 1000);
    for second in 1..10 {
        rig.transaction(second);
        assert_eq!(rig.age(second), second as f64);
    }
    assert!(rig.applier.shared.health.status.borrow().ready);
}

#[test]
fn a_client_at_the_head_stays_young_under_steady_traffic() {
    let mut rig = Rig::new();
    for second in 0..10 {
        rig.transaction(second);
        rig.heartbeat(second, 1000 + second);
        assert_eq!(rig.age(second), 0.0);
    }
}

#[test]
fn a_client_on_a_line_that_is_too_slow_says_how_far_it_lags() {
    let mut rig = Rig::new();
    for step in 0..10 {
        rig.transaction(2 * step);
        rig.heartbeat(2 * step, 1000 + step);
        assert_eq!(rig.age(2 * step), step as f64);
    }
}

#[test]
fn a_heartbeat_that_waits_to_be_applied_counts_from_when_it_came() {
    let mut rig = Rig::new();
    rig.transaction(3);
    *rig.now.lock().unwrap() = Duration::from_secs(10);
    rig.heartbeat(3, 1000);
    assert_eq!(rig.age(10), 7.0);
}

#[test]
fn a_heartbeat_without_a_position_says_nothing_of_the_age() {
    let mut rig = Rig::new();
    rig.heartbeat(0, 1000);
    rig.receive(5, Message::Heartbeat(Heartbeat::default()));
    rig.applier.show();
    assert_eq!(rig.age(5), 5.0);
}
