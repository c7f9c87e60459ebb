//! The progress bar of a long read.

use std::future::Future;
use std::io::IsTerminal;
use std::pin::pin;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use laredo_archive::ReadProgress;

/// The interval between two updates of the bar.
const LOOK: Duration = Duration::from_millis(100);

/// Waits for a future that reads `bytes` bytes. Shows a progress bar on a terminal.
pub(super) async fn with_progress_bar<T>(
    what: &str,
    bytes: u64,
    progress: &ReadProgress,
    read: impl Future<Output = T>,
) -> T {
    let bar = match std::io::stderr().is_terminal() {
        true => ProgressBar::new(bytes),
        false => ProgressBar::hidden(),
    };
    if let Ok(style) = ProgressStyle::with_template("{msg} {bar:30} {bytes}/{total_bytes} {bytes_per_sec}, {eta} left")
    {
        bar.set_style(style);
    }
    bar.set_message(what.to_owned());
    let mut read = pin!(read);
    loop {
        match tokio::time::timeout(LOOK, &mut read).await {
            Ok(done) => {
                bar.finish_and_clear();
                return done;
            }
            Err(_) => bar.set_position(progress.bytes()),
        }
    }
}
