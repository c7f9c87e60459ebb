//! Plants a fault into a table's state where a test asks for it. Not in release builds.
//!
//! `LAREDO_TEST_CANARY` names a file. Where it holds a table's name and a [`Canary`], as in `public.items changed-cell`, that table takes
//! the file away and plants the fault. It looks whenever it shows what it has handled, so a commit to any table is enough.

use std::path::PathBuf;
use std::sync::OnceLock;

use laredo_core::{Canary, TableName, TableState};

/// Plants what the file asks this table for, if anything.
pub(super) fn plant_if_asked(table: &TableName, state: &mut TableState) {
    static FILE: OnceLock<Option<PathBuf>> = OnceLock::new();
    let Some(file) = FILE.get_or_init(|| std::env::var_os("LAREDO_TEST_CANARY").map(PathBuf::from)) else { return };
    let Ok(order) = std::fs::read_to_string(file) else { return };
    let Some((name, canary)) = order.trim().split_once(' ').filter(|(name, _)| *name == table.to_string()) else {
        return;
    };
    // What is taken away is planted once, and what cannot be is not planted again and again.
    if let Err(error) = std::fs::remove_file(file) {
        tracing::error!(file = %file.display(), %error, "the canary's file cannot be removed");
        return;
    }
    let planted = canary.parse::<Canary>().map(|canary| state.plant(canary));
    tracing::warn!(table = name, canary, ?planted, "a canary was planted: a row is wrong now");
}
