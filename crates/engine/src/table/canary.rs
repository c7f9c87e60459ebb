//! Faults that are planted into a table's state for a test. Not in release builds.
//!
//! `LAREDO_TEST_CANARY` names a file. If the file contains a table's name and a [`Canary`], as in
//! `public.items changed-cell`, that table removes the file and plants the fault. The table looks
//! for the file whenever it updates its status, so a commit to any table is enough.

use std::path::PathBuf;
use std::sync::OnceLock;

use laredo_core::{CanaryFault, TableName, TableState};

/// Plants the fault that the file requests for this table, if any.
pub(super) fn plant_if_asked(table: &TableName, state: &mut TableState) {
    static FILE: OnceLock<Option<PathBuf>> = OnceLock::new();
    let Some(file) = FILE.get_or_init(|| std::env::var_os("LAREDO_TEST_CANARY").map(PathBuf::from)) else { return };
    let Ok(order) = std::fs::read_to_string(file) else { return };
    let Some((name, canary)) = order.trim().split_once(' ').filter(|(name, _)| *name == table.to_string()) else {
        return;
    };
    // The file is removed first, so that each fault is tried once only.
    if let Err(error) = std::fs::remove_file(file) {
        tracing::error!(
            event = "canary_not_removed", file = %file.display(), %error,
            "the canary's file cannot be removed"
        );
        return;
    }
    let planted = canary.parse::<CanaryFault>().map(|canary| state.plant(canary));
    tracing::warn!(
        event = "canary_planted",
        table = name,
        canary,
        ?planted,
        "a canary was planted: a row is wrong now"
    );
}
