//! The options of a source.

use std::sync::Arc;
use std::time::Duration;

use laredo_engine::spool::SpoolOptions;

use crate::ddl::DdlWatch;
use crate::options::ConnectionOptions;
use crate::publication::PublicationOptions;
use crate::slot::SlotMode;
use crate::stream::ReconnectOptions;

/// The options for following a database.
#[derive(Clone, Debug)]
pub struct PostgresOptions {
    /// The connection to the database.
    pub connection: ConnectionOptions,
    /// The replication slot.
    pub slot: SlotMode,
    /// The publication.
    pub publication: PublicationOptions,
    /// The way in which changes of definitions are noticed.
    pub ddl: DdlWatch,
    /// The retries after a broken connection.
    pub reconnect: ReconnectOptions,
    /// The maximum number of copies that run at the same time. Each takes a connection.
    pub copies_max: usize,
    /// The longest time that a copy may hold its lock and its snapshot.
    pub copy_timeout: Duration,
    /// The storage of transactions until they commit.
    pub spool: Arc<SpoolOptions>,
    /// The seed for the jitter of reconnects.
    pub seed: u64,
}

/// The default of [`PostgresOptions::copy_timeout`].
pub const COPY_TIMEOUT: Duration = Duration::from_secs(24 * 3600);
