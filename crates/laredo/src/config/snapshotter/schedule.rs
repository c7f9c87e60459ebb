//! The schedule of snapshots and diffs, and the retention of epochs.

use std::time::Duration;

use laredo_archive::RebaseThresholds;

use super::super::diagnostics::ConfigProblem;
use super::super::fields::BlockFields;
use super::super::leaf::{show_size, show_time};
use super::super::schema::{ABOVE_ZERO, AT_LEAST_ONE, BlockSchema, KeySchema, SettingKind};
use super::super::write;

/// The schema of `diff`.
pub(super) static DIFF: BlockSchema = BlockSchema { keys: &[KeySchema::new("interval", INTERVAL)] };

/// The schema of `snapshot`.
pub(super) static SNAPSHOT: BlockSchema = BlockSchema {
    keys: &[
        KeySchema::new("min_interval", INTERVAL),
        KeySchema::new("max_interval", INTERVAL),
        KeySchema::new("max_diff_bytes", SettingKind::Size { min: 1, max: i64::MAX as u64 }),
        KeySchema::new("max_diff_fraction", ABOVE_ZERO),
        KeySchema::new("max_churn_records", AT_LEAST_ONE),
        KeySchema::new("max_churn_fraction", ABOVE_ZERO),
        KeySchema::new("max_diffs", AT_LEAST_ONE),
    ],
};

/// The schema of `retention`.
pub(super) static RETENTION: BlockSchema =
    BlockSchema { keys: &[KeySchema::new("keep_epochs", EPOCHS), KeySchema::new("manifest_epochs", EPOCHS)] };

const EPOCHS: SettingKind = SettingKind::Count { min: 1, max: u32::MAX as u64 };

/// An interval. The minimum catches numbers without a unit, which would be milliseconds.
const INTERVAL: SettingKind =
    SettingKind::Time { min: Duration::from_millis(100), max: Duration::from_secs(3650 * 86_400) };

/// Reads `snapshot`.
pub(super) fn read_thresholds(fields: &BlockFields, problems: &mut Vec<ConfigProblem>) -> RebaseThresholds {
    let thresholds = RebaseThresholds {
        min_interval: fields.time("min_interval"),
        max_interval: fields.time("max_interval"),
        max_diff_bytes: fields.size("max_diff_bytes"),
        max_diff_fraction: fields.ratio("max_diff_fraction"),
        max_churn_records: fields.count("max_churn_records"),
        max_churn_fraction: fields.ratio("max_churn_fraction"),
        max_diffs: fields.count("max_diffs"),
    };
    if let (Some(least), Some(most)) = (thresholds.min_interval, thresholds.max_interval)
        && least > most
    {
        let message = format!("min_interval, {}, is longer than max_interval, {}", show_time(least), show_time(most));
        problems.push(ConfigProblem::new(fields.place_of("max_interval"), &fields.path.key("max_interval"), message));
    }
    thresholds
}

/// Writes `snapshot`.
pub(super) fn write_thresholds(thresholds: &RebaseThresholds, out: &mut write::HoconBlock) {
    out.put_if("min_interval", thresholds.min_interval.map(show_time));
    out.put_if("max_interval", thresholds.max_interval.map(show_time));
    out.put_if("max_diff_bytes", thresholds.max_diff_bytes.map(show_size));
    out.put_if("max_diff_fraction", thresholds.max_diff_fraction);
    out.put_if("max_churn_records", thresholds.max_churn_records);
    out.put_if("max_churn_fraction", thresholds.max_churn_fraction);
    out.put_if("max_diffs", thresholds.max_diffs);
}
