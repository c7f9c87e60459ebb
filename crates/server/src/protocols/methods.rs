//! The methods of the services, by their paths.

use std::collections::HashMap;

use prost_reflect::{DescriptorError, DescriptorPool, MessageDescriptor, MethodDescriptor};

use super::protocol_choice::MethodShape;

/// All methods that take a single message. Other protocols than gRPC can call these over any HTTP
/// version.
pub(crate) struct MethodTable(HashMap<String, RpcMethod>);

/// The properties of a method.
#[derive(Clone, Debug)]
pub(super) struct RpcMethod {
    pub(super) shape: MethodShape,
    pub(super) input: MessageDescriptor,
    pub(super) output: MessageDescriptor,
    /// True if the client may leave its request open and send more. The service reads and bounds
    /// it.
    pub(super) stays_open: bool,
}

/// The method to which clients of version 0.4 send acknowledgements.
const OPEN_METHOD: &str = "laredo.replication.v1.LaredoReplicationService.Sync";

impl MethodTable {
    /// Returns the methods of all services in sets of compiled `.proto` files.
    ///
    /// # Errors
    /// Returns an error if a set is damaged or incomplete.
    pub(crate) fn new(sets: &[&[u8]]) -> Result<MethodTable, DescriptorError> {
        let mut pool = DescriptorPool::new();
        for set in sets {
            pool.decode_file_descriptor_set(*set)?;
        }
        let methods = pool.services().flat_map(|service| service.methods().collect::<Vec<_>>());
        let methods = methods.filter(|method| !method.is_client_streaming());
        Ok(MethodTable(methods.map(|method| (path(&method), RpcMethod::new(&method))).collect()))
    }

    pub(super) fn find(&self, path: &str) -> Option<RpcMethod> {
        self.0.get(path).cloned()
    }
}

fn path(method: &MethodDescriptor) -> String {
    format!("/{}/{}", method.parent_service().full_name(), method.name())
}

impl RpcMethod {
    fn new(method: &MethodDescriptor) -> RpcMethod {
        let shape = if method.is_server_streaming() { MethodShape::Stream } else { MethodShape::Unary };
        let stays_open = method.full_name() == OPEN_METHOD;
        RpcMethod { shape, input: method.input(), output: method.output(), stays_open }
    }
}
