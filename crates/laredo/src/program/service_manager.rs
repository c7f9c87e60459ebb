//! Reports to the service manager that has started the program, in the protocol of systemd
//! (`sd_notify`). Nothing is sent without the variable NOTIFY_SOCKET.
//!
//! A report waits while the manager does not read, as those of libsystemd do. Only the main task
//! waits then: the tasks that serve continue.

use std::convert::Infallible;
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};

use super::stop::wait_for_flag;

/// Reports that the program serves, with a line about it for the operator.
pub(crate) fn report_ready(status: &str) {
    send(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// Reports that the program works, as often as the manager's watchdog expects, and that it stops
/// once `stop` is true. Never returns.
pub(super) async fn report_state(stop: watch::Receiver<bool>) -> Infallible {
    let stopping = async {
        wait_for_flag(stop).await;
        send(&[NotifyState::Stopping, NotifyState::Status("stopping")]);
        std::future::pending().await
    };
    let alive = async {
        match sd_notify::watchdog_enabled().filter(|limit| !limit.is_zero()) {
            // A half, so that a report may be late.
            Some(limit) => beat_while_alive(limit / 2, || send(&[NotifyState::Watchdog])).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        never = stopping => never,
        never = alive => never,
    }
}

/// Calls `beat` at each interval, as long as the runtime works: this task is polled, timers fire,
/// and the threads of the runtime run a new task. Never returns.
async fn beat_while_alive(every: Duration, mut beat: impl FnMut()) -> Infallible {
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        if tokio::spawn(async {}).await.is_ok() {
            beat();
        }
    }
}

fn send(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(
            event = "service_manager_unreachable", %error,
            "cannot report to the service manager at NOTIFY_SOCKET"
        );
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(60);

    #[test]
    fn no_beat_comes_while_the_threads_of_the_runtime_are_blocked() {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (beat, beats) = mpsc::channel();
        let handle = runtime.handle().clone();
        thread::spawn(move || {
            handle.block_on(beat_while_alive(Duration::from_millis(1), move || beat.send(()).unwrap_or_default()));
        });
        beats.recv_timeout(PATIENCE).expect("the runtime works");
        let (block, blocked) = mpsc::channel();
        let (release, released) = mpsc::channel::<()>();
        runtime.spawn(async move {
            block.send(()).unwrap();
            let _ = released.recv();
        });
        blocked.recv_timeout(PATIENCE).expect("the only thread is blocked");
        while beats.try_recv().is_ok() {}
        // The main task may have been at its beat when the thread was blocked.
        let late = (0..10).filter(|_| beats.recv_timeout(Duration::from_millis(20)).is_ok()).count();
        assert!(late <= 1, "{late} beats while the runtime was blocked");
        release.send(()).unwrap();
        beats.recv_timeout(PATIENCE).expect("the runtime works again");
        runtime.shutdown_background();
    }
}
