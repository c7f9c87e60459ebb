//! The methods there are, by their paths.

use std::collections::HashMap;

use prost_reflect::{DescriptorError, DescriptorPool, MessageDescriptor, MethodDescriptor};

use super::choose::Shape;

/// Every method that takes one message, which is what the protocols other than gRPC can ask for over any HTTP.
pub(crate) struct Methods(HashMap<String, Method>);

/// What a method takes and gives.
#[derive(Clone, Debug)]
pub(super) struct Method {
    pub(super) shape: Shape,
    pub(super) input: MessageDescriptor,
    pub(super) output: MessageDescriptor,
    /// The client may leave its request open and send more. The service reads and bounds it.
    pub(super) stays_open: bool,
}

/// The method that clients of version 0.4 send acknowledgements to.
const OPEN_METHOD: &str = "laredo.replication.v1.LaredoReplicationService.Sync";

impl Methods {
    /// Those of all services in sets of compiled `.proto` files.
    ///
    /// # Errors
    /// When a set is damaged or incomplete.
    pub(crate) fn new(sets: &[&[u8]]) -> Result<Methods, DescriptorError> {
        let mut pool = DescriptorPool::new();
        for set in sets {
            pool.decode_file_descriptor_set(*set)?;
        }
        let methods = pool.services().flat_map(|service| service.methods().collect::<Vec<_>>());
        let methods = methods.filter(|method| !method.is_client_streaming());
        Ok(Methods(methods.map(|method| (path(&method), Method::new(&method))).collect()))
    }

    pub(super) fn find(&self, path: &str) -> Option<Method> {
        self.0.get(path).cloned()
    }
}

fn path(method: &MethodDescriptor) -> String {
    format!("/{}/{}", method.parent_service().full_name(), method.name())
}

impl Method {
    fn new(method: &MethodDescriptor) -> Method {
        let shape = if method.is_server_streaming() { Shape::Stream } else { Shape::Unary };
        let stays_open = method.full_name() == OPEN_METHOD;
        Method { shape, input: method.input(), output: method.output(), stays_open }
    }
}
