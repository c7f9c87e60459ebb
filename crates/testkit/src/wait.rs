use std::time::Duration;

use tokio::time::Instant;

use crate::{HarnessError, Result};

const POLL: Duration = Duration::from_millis(10);

/// Waits until `condition` holds, checking it every 10 ms.
///
/// # Errors
/// [`HarnessError::Timeout`] when the condition did not hold `within` that time.
pub async fn eventually<F>(within: Duration, mut condition: impl FnMut() -> F) -> Result<()>
where
    F: Future<Output = bool>,
{
    let deadline = Instant::now() + within;
    while !condition().await {
        if Instant::now() >= deadline {
            let what = "a condition to hold".to_owned();
            return Err(HarnessError::Timeout { what, waited: within });
        }
        tokio::time::sleep(POLL).await;
    }
    Ok(())
}
