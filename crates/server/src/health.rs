//! gRPC health. With access rules, a table is unknown to callers who may not know its state.

use laredo_core::TableName;
use tonic::{Request, Response, Status};
use tonic_health::pb::health_server::{Health, HealthServer};
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};
use tonic_health::server::{HealthReporter, HealthService};

use crate::access::admitted;

/// The start of the names of tables in gRPC health. It is the name of no service itself.
const TABLE_PREFIX: &str = "laredo.table.";

/// Returns the name of a table in gRPC health: `laredo.table.SCHEMA.TABLE`.
pub(crate) fn table_service(name: &TableName) -> String {
    format!("{TABLE_PREFIX}{name}")
}

/// Returns the service of gRPC health, which reports what the reporter was given.
pub(crate) fn health_service(reporter: HealthReporter) -> HealthServer<impl Health> {
    HealthServer::new(RuledHealth(HealthService::from_health_reporter(reporter)))
}

/// gRPC health under access rules.
struct RuledHealth(HealthService);

#[tonic::async_trait]
impl Health for RuledHealth {
    type WatchStream = <HealthService as Health>::WatchStream;

    async fn check(&self, request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        self.0.check(without_unknown(request)?).await
    }

    async fn watch(&self, request: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        self.0.watch(without_unknown(request)?).await
    }
}

/// Replaces the name of a table that the caller may not know by one that no service has, so that
/// the answer is the same as for a table that does not exist.
fn without_unknown(mut request: Request<HealthCheckRequest>) -> Result<Request<HealthCheckRequest>, Status> {
    let caller = admitted(request.extensions())?;
    if let Some(name) = request.get_ref().service.strip_prefix(TABLE_PREFIX)
        && caller.is_ruled()
        && !name.parse().is_ok_and(|table| caller.may_know(&table))
    {
        TABLE_PREFIX.clone_into(&mut request.get_mut().service);
    }
    Ok(request)
}
