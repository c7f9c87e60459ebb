//! The fan-out target: the data that is kept for clients, and the limits of serving them.

use std::time::Duration;

use laredo_server::{CLIENTS_MAX, ListenAddress};

use super::super::declaration::{
    ConfigKey, block, config_block, config_choice, key, list, optional, optional_block, required, texts,
};
use super::super::fields::BlockFields;
use super::super::port;
use super::super::reader::ConfigReader;
use super::super::schema::{AT_LEAST_ONE, PORT, SettingKind, TEXT};
use super::filters::FilterConfig;
use super::journal::{JournalConfig, JournalStoreConfig};
use super::snapshot_and_archive::{ArchiveConfig, SnapshotConfig};
use super::transforms::{TransformConfig, check_replaced_once};

config_block! {
    /// A `replication-fanout` target.
    pub struct FanoutConfig("target type" ["replication-fanout"]) [FanoutConfig::check] {
        /// The changes that are kept for clients to resume from.
        pub journal: JournalConfig = block("journal"),
        /// The snapshots of the table, for downloads, and for a restart without a durable journal
        /// ([how](guarantees.md#copies-and-restarts)).
        pub snapshot: Option<SnapshotConfig> = optional_block("snapshot"),
        /// The port where clients connect, and their maximum number.
        pub grpc: FanoutGrpcConfig = block("grpc"),
        /// The limit on how far a live client may be behind.
        pub client_buffer: ClientBufferConfig = block("client_buffer"),
        /// The interval of heartbeats to an idle client.
        pub heartbeat_interval: Duration = key("heartbeat_interval", HEARTBEAT, || Duration::from_secs(5)),
        /// Answers to [queries](protocols.md#queries). The rows are then in memory once more. Ours.
        pub query: bool = key("query", SettingKind::Flag, || false),
        /// The secondary indexes for queries, [as below](#indexes). Ours.
        pub indexes: Vec<QueryIndexConfig> = list("indexes"),
        /// The archive that `laredo-snapshotter` writes, for the server to read. Accepted and
        /// checked; takes effect in a later version.
        pub archive: Option<ArchiveConfig> = optional_block("archive"),
        /// The filters, [as below](#filters-and-transforms). Clients see the rows that pass all of
        /// them.
        pub filters: Vec<FilterConfig> = list("filters"),
        /// The transforms of rows, [as below](#filters-and-transforms), applied in order.
        pub transforms: Vec<TransformConfig> = list("transforms"),
    }
    also [config_field!(TARGET_MAX_CLIENTS)]
}

config_block! {
    /// A secondary index for queries.
    pub struct QueryIndexConfig [QueryIndexConfig::check] {
        /// The name by which queries use the index.
        pub name: String = required("name", TEXT),
        /// The columns, in the order in which queries give their values.
        pub fields: Vec<String> = texts("fields", SettingKind::List(&TEXT), "").must_be_given(),
        /// True if no two rows have the same values, so that `Lookup` may use the index.
        pub unique: bool = key("unique", SettingKind::Flag, || false),
    }
}

impl QueryIndexConfig {
    fn check(&mut self, fields: &BlockFields, reader: &mut ConfigReader) {
        reader.check_repeated(fields, "fields", &self.fields);
        if fields.has("fields") && self.fields.is_empty() {
            reader.report(fields, "fields", "an index has at least one column");
        }
    }
}

config_block! {
    /// The port where the clients of a table connect, and their maximum number.
    pub struct FanoutGrpcConfig {
        /// The port where clients connect. Tables and the OAM service may share a port.
        pub port: u16 = key("port", PORT, || FANOUT_PORT.default_value()).defaults_to("`fanout.grpc.port`"),
        /// The address of this port. Ours.
        pub address: ListenAddress = port::address().defaults_to("`fanout.grpc.address`"),
        /// The maximum number of clients at once. The default is half of the connections that a
        /// port accepts, so that the clients of one table do not keep others out.
        pub max_clients: u32 = key("max_clients", MAX_CLIENTS, || CLIENTS_MAX),
    }
}

/// The port for clients, unless a table sets another one.
pub(super) const FANOUT_PORT: ConfigKey<u16> =
    key("port", PORT, || 4002).doc("The port where clients connect, for targets without a port of their own.");

/// The address of the port for clients, unless a table sets another one.
pub(super) const FANOUT_ADDRESS: ConfigKey<ListenAddress> =
    port::address().doc("The address of that port, for targets without an address of their own. Ours.");

/// The limit of `grpc.max_clients`, in the target itself.
const TARGET_MAX_CLIENTS: ConfigKey<Option<u32>> =
    optional("max_clients", MAX_CLIENTS, "`grpc.max_clients`").doc("The same as `grpc.max_clients`.");

const MAX_CLIENTS: SettingKind = SettingKind::Count { min: 1, max: u32::MAX as u64 };

config_block! {
    /// The limit on how far a live client may be behind.
    pub struct ClientBufferConfig {
        /// The maximum number of entries that a live client may be behind. Catching up from a
        /// snapshot does not count, and neither does a single transaction with more entries.
        pub max_entries: u64 = key("max_size", AT_LEAST_ONE, || 50_000),
        /// The consequence of exceeding the limit. `drop_disconnect` disconnects the client, which
        /// resumes. `slow_down` reads the source no faster than the slowest client for up to 30 s,
        /// and then disconnects that client. It does so for a quarter of the time at most.
        pub policy: BufferPolicyConfig = key("policy", BufferPolicyConfig::KIND, || BufferPolicyConfig::DropDisconnect),
    }
}

config_choice! {
    /// The consequence for a client that is too far behind.
    pub enum BufferPolicyConfig {
        /// A disconnect, after which the client resumes.
        DropDisconnect = "drop_disconnect",
        /// A slowdown of the source: for a while it is read no faster than the slowest client. Then
        /// that client is disconnected.
        SlowDown = "slow_down",
    }
}

const HEARTBEAT: SettingKind = SettingKind::Time { min: Duration::from_millis(100), max: Duration::from_secs(3600) };

impl FanoutConfig {
    fn check(&mut self, fields: &BlockFields, reader: &mut ConfigReader) {
        self.check_folders(fields, reader);
        check_replaced_once(&self.transforms, fields, reader);
        self.merge_max_clients(fields, reader);
        self.check_indexes(fields, reader);
    }

    /// Checks that the table answers queries if it has indexes for them, and that no two indexes
    /// have the same name.
    fn check_indexes(&self, fields: &BlockFields, reader: &mut ConfigReader) {
        if !self.query && !self.indexes.is_empty() {
            reader.report(fields, "indexes", "the table answers no queries; set query = true, or remove the indexes");
        }
        for (i, (index, item)) in self.indexes.iter().zip(fields.items("indexes")).enumerate() {
            if !index.name.is_empty() && self.indexes[..i].iter().any(|other| other.name == index.name) {
                reader.report(&item, "name", format!("another index is called {} already", index.name));
            }
        }
    }

    /// Checks that the journal and the snapshots of a table have different folders.
    fn check_folders(&self, fields: &BlockFields, reader: &mut ConfigReader) {
        let Some(snapshot) = &self.snapshot else { return };
        let shared = JournalStoreConfig::Durable(snapshot.store.clone()) == self.journal.store;
        if shared && fields.block("snapshot").has("store_config") {
            let store = fields.block("snapshot").block("store_config");
            let message = "is the journal's folder too (journal.store_config.path); give each its own";
            reader.report(&store, "path", message);
        }
    }

    /// Merges the limit in the target with that in its `grpc` block. If both are given, they must
    /// be equal.
    fn merge_max_clients(&mut self, fields: &BlockFields, reader: &mut ConfigReader) {
        let outer = TARGET_MAX_CLIENTS.read(fields, reader);
        let (Some(outer), inner) = (outer, self.grpc.max_clients) else { return };
        if fields.block("grpc").has("max_clients") && outer != inner {
            let message = format!("is {outer}, but grpc.max_clients is {inner}; write one of them");
            reader.report(fields, TARGET_MAX_CLIENTS.name(), message);
        }
        self.grpc.max_clients = outer;
    }
}
