//! The effect of each rpc: it reads rows, changes something, or reports a state. The rules of
//! access depend on the effect alone, so a new rpc has to be entered here before it can be called.

/// The effect of an rpc on the server and on its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum RpcEffect {
    /// The rpc returns rows, or belongs to the service of a client that is sent rows.
    Reads,
    /// The rpc changes something, or makes the server or PostgreSQL work on a whole table.
    Orders,
    /// The rpc reports a state. It returns no rows.
    Observes,
}

pub(crate) const REPLICATION: &str = "laredo.replication.v1.LaredoReplicationService";
const OAM: &str = "laredo.v1.LaredoOAMService";
const QUERY: &str = "laredo.v1.LaredoQueryService";
pub(crate) const HEALTH: &str = "grpc.health.v1.Health";
pub(crate) const REFLECTION: &str = "grpc.reflection.v1.ServerReflection";

/// All rpcs of all services, by service and effect.
const RULES: [(&str, RpcEffect, &[&str]); 8] = [
    (REPLICATION, RpcEffect::Reads, &["Sync", "FetchSnapshot", "ReportChecksum"]),
    (REPLICATION, RpcEffect::Observes, &["ListSnapshots", "GetReplicationStatus"]),
    (
        OAM,
        RpcEffect::Orders,
        &[
            "ReloadTable",
            "ReloadAll",
            "PauseSync",
            "ResumeSync",
            "ResetSource",
            "DrainReplication",
            "CreateSnapshot",
            "RestoreSnapshot",
            "DeleteSnapshot",
            "PruneSnapshots",
            "ReplayDeadLetters",
            "PurgeDeadLetters",
            "StartReplay",
            "StopReplay",
            "VerifyTable",
            // The answer has values of the configuration.
            "DiffConfig",
            "ReloadConfig",
        ],
    ),
    (
        OAM,
        RpcEffect::Observes,
        &[
            "GetStatus",
            "GetTableStatus",
            "GetPipelineStatus",
            // Row changes are reported by their action and position, without the row.
            "WatchStatus",
            "CheckReady",
            "GetSourceInfo",
            "ListTables",
            "GetTableSchema",
            "ListSnapshots",
            "InspectSnapshot",
            "GetReplayStatus",
        ],
    ),
    (OAM, RpcEffect::Reads, &["ListDeadLetters"]),
    (QUERY, RpcEffect::Reads, &["Lookup", "LookupAll", "GetRow", "ListRows", "CountRows", "Subscribe"]),
    (HEALTH, RpcEffect::Observes, &["Check", "Watch"]),
    (REFLECTION, RpcEffect::Observes, &["ServerReflectionInfo"]),
];

/// Splits the path of an rpc, `/package.Service/Method`, into the service and the method.
pub(crate) fn split_path(path: &str) -> Option<(&str, &str)> {
    path.strip_prefix('/')?.split_once('/')
}

/// Returns the effect of the rpc at a path, `/package.Service/Method`. Returns `None` for any other
/// path. A caller must then refuse what it would refuse to an order.
pub(crate) fn find_effect(path: &str) -> Option<RpcEffect> {
    let (service, method) = split_path(path)?;
    let rule = RULES.iter().find(|(of, _, methods)| *of == service && methods.contains(&method));
    rule.map(|(_, effect, _)| *effect)
}

/// Returns true if an rpc at this path is one of the health service.
pub(crate) fn is_health(path: &str) -> bool {
    split_path(path).is_some_and(|(service, _)| service == HEALTH)
}

/// Returns the names of all orders, such as `ReloadTable`.
pub fn order_names() -> impl Iterator<Item = &'static str> {
    let orders = RULES.iter().filter(|(_, effect, _)| *effect == RpcEffect::Orders);
    orders.flat_map(|(_, _, methods)| methods.iter().copied())
}

/// Returns the paths of all rpcs of all services that a server may offer.
#[cfg(test)]
pub(crate) fn described_paths() -> std::collections::BTreeSet<String> {
    let mut pool = prost_reflect::DescriptorPool::new();
    for set in [
        laredo_proto::FILE_DESCRIPTOR_SET,
        tonic_health::pb::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
    ] {
        pool.decode_file_descriptor_set(set).unwrap();
    }
    let methods = pool.services().flat_map(|service| service.methods().collect::<Vec<_>>());
    methods.map(|method| format!("/{}/{}", method.parent_service().full_name(), method.name())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rpc_has_exactly_one_effect() {
        let ruled =
            RULES.iter().flat_map(|(service, _, methods)| methods.iter().map(move |m| format!("/{service}/{m}")));
        let ruled: Vec<String> = ruled.collect();
        let described = described_paths();
        let missing: Vec<_> = described.iter().filter(|rpc| !ruled.contains(rpc)).collect();
        assert!(missing.is_empty(), "enter these rpcs in RULES: {missing:?}");
        let unknown: Vec<_> = ruled.iter().filter(|rpc| !described.contains(*rpc)).collect();
        assert!(unknown.is_empty(), "no service has these rpcs of RULES: {unknown:?}");
        assert_eq!(ruled.len(), described.len(), "an rpc is in RULES twice");
    }

    #[test]
    fn only_the_exact_path_of_an_rpc_has_an_effect() {
        assert_eq!(find_effect("/laredo.v1.LaredoOAMService/ResetSource"), Some(RpcEffect::Orders));
        assert_eq!(find_effect("/laredo.v1.LaredoOAMService/GetStatus"), Some(RpcEffect::Observes));
        assert_eq!(find_effect("/laredo.replication.v1.LaredoReplicationService/Sync"), Some(RpcEffect::Reads));
        for path in [
            "",
            "/",
            "laredo.v1.LaredoOAMService/GetStatus",
            "//laredo.v1.LaredoOAMService/GetStatus",
            "/laredo.v1.LaredoOAMService/GetStatus/",
            "/laredo.v1.LaredoOAMService/x/GetStatus",
            "/laredo.v1.LaredoOAMService/getstatus",
            "/laredo.v1.LaredoOAMService/Get%53tatus",
            "/laredo.v1.LaredoQueryService/GetStatus",
        ] {
            assert_eq!(find_effect(path), None, "{path}");
        }
    }
}
