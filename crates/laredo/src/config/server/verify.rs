//! The verification of tables in the background.

use std::time::Duration;

use super::super::declaration::{config_block, key};
use super::super::schema::SettingKind;

config_block! {
    /// [The comparison of a table with the database](operations.md#verification) in the background.
    pub struct VerifyConfig {
        /// True if the table is verified in the background.
        pub enabled: bool = key("enabled", SettingKind::Flag, || true),
        /// The time from one pass to the next. The first pass begins a tenth of it after the start.
        pub interval: Duration = key("interval", INTERVAL, || Duration::from_secs(24 * 3600)),
        /// The maximum speed at which rows are read from the database. The tables of a source take
        /// turns.
        pub bytes_per_second: u64 = key("rate", RATE, || 20 << 20),
        /// True if the table is copied again when rows differ.
        pub heal: bool = key("heal", SettingKind::Flag, || true),
    }
}

const INTERVAL: SettingKind = SettingKind::Time { min: Duration::from_secs(1), max: Duration::from_secs(366 * 86_400) };
const RATE: SettingKind = SettingKind::Rate { min: 64 << 10, max: i64::MAX as u64 };
