//! The verification of tables in the background.

use std::time::Duration;

use super::super::fields::BlockFields;
use super::super::leaf::{show_rate, show_time};
use super::super::schema::{BlockSchema, KeySchema, SettingKind};
use super::super::write;

/// The schedule and speed of a table's verification.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifyConfig {
    /// True if the table is verified in the background. Default true.
    pub enabled: bool,
    /// The time between two passes. Default 24 h.
    pub interval: Duration,
    /// The maximum number of bytes of rows that are read per second. Default 20 MiB/s.
    pub bytes_per_second: u64,
    /// True if the table is copied again when rows differ. Default true.
    pub heal: bool,
}

/// The schema of `verify`.
pub(super) static VERIFY: BlockSchema = BlockSchema {
    keys: &[
        KeySchema::new("enabled", SettingKind::Flag),
        KeySchema::new("interval", INTERVAL),
        KeySchema::new("rate", SettingKind::Rate { min: 64 << 10, max: i64::MAX as u64 }),
        KeySchema::new("heal", SettingKind::Flag),
    ],
};

const INTERVAL: SettingKind = SettingKind::Time { min: Duration::from_secs(1), max: Duration::from_secs(366 * 86_400) };

impl Default for VerifyConfig {
    fn default() -> Self {
        VerifyConfig { enabled: true, interval: Duration::from_secs(24 * 3600), bytes_per_second: 20 << 20, heal: true }
    }
}

impl VerifyConfig {
    pub(super) fn read(fields: &BlockFields) -> Self {
        let default = VerifyConfig::default();
        VerifyConfig {
            enabled: fields.flag("enabled").unwrap_or(default.enabled),
            interval: fields.time("interval").unwrap_or(default.interval),
            bytes_per_second: fields.size("rate").unwrap_or(default.bytes_per_second),
            heal: fields.flag("heal").unwrap_or(default.heal),
        }
    }

    pub(super) fn write(&self, out: &mut write::HoconBlock) {
        out.put("enabled", self.enabled);
        out.put("interval", show_time(self.interval));
        out.put("rate", show_rate(self.bytes_per_second));
        out.put("heal", self.heal);
    }
}
