//! Objects that no manifest names: of epochs that retention has dropped, or left behind by a crash. They go after a while, in which
//! whoever reads an older manifest can finish.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use super::ledger::Ledger;
use super::report::Report;
use super::{Tools, WriterError};
use crate::manifest::Manifest;

/// Since when objects were seen that no manifest names, by destination and name.
#[derive(Debug, Default)]
pub(crate) struct Unnamed {
    since: HashMap<(usize, String), Instant>,
}

impl Unnamed {
    /// Looks once, and deletes what has been unnamed for `grace`. No artifact may be on its way meanwhile.
    ///
    /// # Errors
    /// When another writer has taken over.
    pub(crate) async fn collect(
        &mut self,
        ledger: &mut Ledger,
        grace: Duration,
        tools: &Tools,
        report: &Report,
    ) -> Result<(), WriterError> {
        // What a newer writer has put there is none of ours to judge.
        ledger.check_fence(tools, report).await?;
        let now = Instant::now();
        let mut still = HashMap::new();
        for (number, destination) in ledger.destinations().enumerate() {
            let listed = match destination.list().await {
                Ok(listed) => listed,
                Err(error) => {
                    report.failed(number, &error);
                    continue;
                }
            };
            for object in listed.into_iter().map(|listed| listed.object) {
                if names(ledger.manifest(), &object) {
                    continue;
                }
                let place = (number, object);
                let since = self.since.get(&place).copied().unwrap_or(now);
                if now.duration_since(since) < grace {
                    still.insert(place, since);
                } else if let Err(error) = destination.delete(&place.1).await {
                    report.failed(number, &error);
                    still.insert(place, since);
                }
            }
        }
        self.since = still;
        Ok(())
    }
}

fn names(manifest: &Manifest, object: &str) -> bool {
    manifest.artifacts.iter().any(|artifact| {
        let by_name = artifact.known_formats().any(|format| artifact.object(format).as_deref() == Some(object));
        // Formats that we do not know have addresses all the same.
        by_name || artifact.formats.values().any(|stored| stored.uri.ends_with(object))
    })
}
