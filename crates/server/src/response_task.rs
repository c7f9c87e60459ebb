//! The task that sends a response, and its end before the response's.
//!
//! A client that reads nothing keeps the part of the response that HTTP/2 has accepted, and the
//! part that waits for it. Neither the service nor the body of the response is polled meanwhile, so
//! only the end of the task releases them. HTTP/2 then resets the stream. Over HTTP/1.1 the
//! connection ends.

use std::sync::{Arc, OnceLock};

use hyper::rt::Executor;
use tokio::task::AbortHandle;

tokio::task_local! {
    static CURRENT: ResponseTask;
}

/// A task that sends a response: of one stream of HTTP/2, or of a whole connection over HTTP/1.1.
#[derive(Clone, Debug, Default)]
pub(crate) struct ResponseTask {
    /// Missing outside of connections.
    handle: Arc<OnceLock<AbortHandle>>,
}

impl ResponseTask {
    /// Spawns a task that sends responses.
    pub(crate) fn spawn(work: impl Future<Output: Send> + Send + 'static) {
        let task = ResponseTask::default();
        let running = tokio::spawn(CURRENT.scope(task.clone(), async move {
            work.await;
        }));
        // The cell is empty, because nothing else sets it.
        let _ = task.handle.set(running.abort_handle());
    }

    /// Returns the task that runs now. Outside of connections, the task is one that never runs.
    pub(crate) fn current() -> ResponseTask {
        CURRENT.try_with(ResponseTask::clone).unwrap_or_default()
    }

    /// Ends the task, and releases everything that waits to be sent.
    pub(crate) fn abort(&self) {
        if let Some(handle) = self.handle.get() {
            handle.abort();
        }
    }
}

/// An executor that runs each response as a [`ResponseTask`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct ResponseExecutor;

impl<F> Executor<F> for ResponseExecutor
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, response: F) {
        ResponseTask::spawn(response);
    }
}
