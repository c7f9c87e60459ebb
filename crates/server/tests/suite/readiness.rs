//! The readiness that a load balancer asks for: of the server, of a source, or of one table.

use laredo_proto::oam::DrainReplicationRequest;
use laredo_proto::oam::laredo_oam_service_client::LaredoOamServiceClient;
use laredo_server::ServerOptions;
use laredo_testkit::{SimDatabase, eventually};
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::support::{LONG, SimServer, serve_with};

async fn two_tables(change: impl FnOnce(&mut ServerOptions)) -> SimServer {
    let server = serve_with(&SimDatabase::new(2), "a", 2, change).await;
    server.ready().await;
    server
}

async fn drain(server: &SimServer, table: &str) {
    let request =
        DrainReplicationRequest { schema: "public".to_owned(), table: table.to_owned(), drain_deadline_seconds: 600 };
    let mut client = LaredoOamServiceClient::new(server.channel().await);
    assert_eq!(client.drain_replication(request).await.unwrap().into_inner().drained_targets, 1);
}

/// Returns the gRPC health of a service, or `None` if the server does not know the name.
async fn health(server: &SimServer, service: &str) -> Option<bool> {
    let request = HealthCheckRequest { service: service.to_owned() };
    match HealthClient::new(server.channel().await).check(request).await {
        Ok(answer) => Some(answer.into_inner().status() == ServingStatus::Serving),
        Err(status) if status.code() == Code::NotFound => None,
        Err(status) => panic!("{service}: {status}"),
    }
}

async fn code(server: &SimServer, query: &str) -> u16 {
    server.get(&format!("/health/ready{query}")).await.0
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_drained_is_not_ready_and_its_neighbor_and_the_server_are() {
    let server = two_tables(|_| {}).await;
    for service in ["", "laredo.table.public.t0", "laredo.table.public.t1"] {
        eventually(LONG, async || health(&server, service).await == Some(true)).await.unwrap();
    }
    assert_eq!(health(&server, "laredo.table.public.t2").await, None);
    assert_eq!(code(&server, "?table=public.t2").await, 404);
    assert_eq!(code(&server, "?source=other").await, 404);

    drain(&server, "t0").await;
    eventually(LONG, async || health(&server, "laredo.table.public.t0").await == Some(false)).await.unwrap();
    assert_eq!(code(&server, "?table=public.t0").await, 503);
    for service in ["", "laredo.table.public.t1"] {
        assert_eq!(health(&server, service).await, Some(true), "{service}");
    }
    for query in ["", "?table=public.t1", "?source=sim"] {
        assert_eq!(code(&server, query).await, 200, "{query}");
    }

    drain(&server, "t1").await;
    for service in ["", "laredo.table.public.t1"] {
        eventually(LONG, async || health(&server, service).await == Some(false)).await.unwrap();
    }
    for query in ["", "?table=public.t1", "?source=sim"] {
        assert_eq!(code(&server, query).await, 503, "{query}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn with_strict_readiness_each_table_has_to_be_ready() {
    let server = two_tables(|options| options.http.strict_readiness = true).await;
    drain(&server, "t1").await;
    for query in ["", "?source=sim", "?table=public.t1"] {
        assert_eq!(code(&server, query).await, 503, "{query}");
    }
    assert_eq!(code(&server, "?table=public.t0").await, 200);
    eventually(LONG, async || health(&server, "").await == Some(false)).await.unwrap();
    assert_eq!(health(&server, "laredo.table.public.t0").await, Some(true));
}
