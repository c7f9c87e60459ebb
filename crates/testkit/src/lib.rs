//! The foundation of laredo's tests, demo and benchmarks. It has private PostgreSQL clusters, a
//! private AWS, a TCP proxy that produces faults, and child processes that cannot outlive the test.
//!
//! Everything here cleans up after itself: when it is dropped, when the test panics, and (by a
//! watchdog process) when the test is killed.

mod aws;
mod cluster;
pub mod conformance;
mod data_dir;
mod disk;
mod engine;
mod error;
mod installation;
pub mod oracle;
mod port;
mod process;
mod promtool;
mod proxy;
mod python;
mod sim;
mod test_size;
#[cfg(feature = "tls")]
mod tls;
pub mod types;
mod wait;
mod watchdog;
pub mod workload;

pub use aws::MotoServer;
pub use cluster::{Cluster, ClusterOptions, StopMode, StorageCopy};
pub use disk::{DiskFiller, SmallDisk};
pub use engine::{RunningEngine, stopped_clock, wait_until_reached};
pub use error::HarnessError;
pub use port::free_port;
pub use process::{ChildProcess, clean_command};
pub use promtool::promtool;
pub use proxy::{FaultProxy, ProxyDirection};
pub use python::programs;
pub use sim::{SimChange, SimDatabase, SimFault, SimRows, sim_table};
pub use test_size::is_full;
#[cfg(feature = "tls")]
pub use tls::ClusterTls;
pub use wait::eventually;

/// A result of this crate.
pub type Result<T, E = HarnessError> = std::result::Result<T, E>;
