//! The schedule of snapshots and diffs, and the retention of epochs.

use std::time::Duration;

use laredo_archive::{MANIFEST_EPOCHS, RebaseThresholds};

use super::super::declaration::{config_block, key, optional};
use super::super::fields::BlockFields;
use super::super::leaf::show_time;
use super::super::reader::ConfigReader;
use super::super::schema::{ABOVE_ZERO, AT_LEAST_ONE, SettingKind};

config_block! {
    /// The schedule of diffs.
    pub struct DiffScheduleConfig {
        /// The interval between two diffs, if there is anything to write.
        pub interval: Duration = key("interval", INTERVAL, || Duration::from_secs(30)),
    }
}

config_block! {
    foreign RebaseThresholds [check_rebase_intervals] {
        /// The minimum time between two bases. Until then, a diff is written instead of a base.
        min_interval: Option<Duration> = optional("min_interval", INTERVAL, "off"),
        /// The maximum time between two bases.
        max_interval: Option<Duration> = optional("max_interval", INTERVAL, "off"),
        /// The size of the diffs since the last base at which a base is written.
        max_diff_bytes: Option<u64> =
            optional("max_diff_bytes", SettingKind::Size { min: 1, max: i64::MAX as u64 }, "off"),
        /// The size of the diffs since the last base, as a fraction of its size, at which a base is
        /// written.
        max_diff_fraction: Option<f64> = optional("max_diff_fraction", ABOVE_ZERO, "off"),
        /// The number of changed rows since the last base at which a base is written.
        max_churn_records: Option<u64> = optional("max_churn_records", AT_LEAST_ONE, "off"),
        /// The number of changed rows since the last base, as a fraction of its rows, at which a
        /// base is written.
        max_churn_fraction: Option<f64> = optional("max_churn_fraction", ABOVE_ZERO, "off"),
        /// The number of diffs since the last base at which a base is written. Each diff writes the
        /// names of all diffs before it again. By default, a base is written when it is cheaper
        /// than that: after 128 diffs for a base of 1 MiB, 373 for 10 MiB, at most 1,000.
        /// `min_interval` has precedence. Ours.
        max_diffs: Option<u64> = optional("max_diffs", AT_LEAST_ONE, "depends on the size of the base"),
    }
}

config_block! {
    /// The number of epochs that are kept.
    pub struct EpochRetentionConfig {
        /// The number of epochs (a base and its diffs) to keep.
        pub keep_epochs: Option<u32> = optional("keep_epochs", EPOCHS, "all"),
        /// The maximum number of epochs that `manifest.json` names. Older epochs are in
        /// [sealed manifests](archive-format.md#sealed-manifests). Ours.
        pub manifest_epochs: u32 = key("manifest_epochs", EPOCHS, || MANIFEST_EPOCHS),
    }
}

const EPOCHS: SettingKind = SettingKind::Count { min: 1, max: u32::MAX as u64 };

/// An interval. The minimum catches numbers without a unit, which would be milliseconds.
const INTERVAL: SettingKind =
    SettingKind::Time { min: Duration::from_millis(100), max: Duration::from_secs(3650 * 86_400) };

fn check_rebase_intervals(thresholds: &mut RebaseThresholds, fields: &BlockFields, reader: &mut ConfigReader) {
    if let (Some(least), Some(most)) = (thresholds.min_interval, thresholds.max_interval)
        && least > most
    {
        let message = format!("min_interval, {}, is longer than max_interval, {}", show_time(least), show_time(most));
        reader.report(fields, "max_interval", message);
    }
}
