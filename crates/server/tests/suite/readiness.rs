//! The readiness that a load balancer asks for: of the server, of a source, or of one table.

use laredo_proto::oam::DrainReplicationRequest;
use laredo_proto::oam::laredo_oam_service_client::LaredoOamServiceClient;
use laredo_server::{AccessGrants, AccessOptions, AccessRules, ServerOptions};
use laredo_testkit::{SimDatabase, eventually};
use tonic::{Code, Request, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::support::access::{asked_by, grant, identities, subjects};
use crate::support::http::http1;
use crate::support::{LONG, SimServer, clock, serve_with};

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

/// Returns the code and body of the readiness that an identity, or a caller without one, asks for.
async fn readiness(server: &SimServer, token: Option<&str>, query: &str) -> (u16, String) {
    let authorization = token.map(|token| format!("Bearer {token}"));
    let headers: Vec<_> = authorization.iter().map(|value| ("Authorization", value.as_str())).collect();
    let mut reply = http1(server.http, "GET", &format!("/health/ready{query}"), &headers, b"").await;
    (reply.status, reply.json().await.to_string())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_cannot_find_out_which_tables_and_sources_exist() {
    let grants = AccessGrants {
        readers: vec![grant(&["reader"], "public.t0")],
        observers: vec![subjects(&["observer"])],
        ..AccessGrants::default()
    };
    let identities = identities(&["reader", "observer"]);
    let rules = AccessOptions { identities, grants, health_is_open: true, ..AccessOptions::default() };
    let server = two_tables(|options| options.access = Some(AccessRules::new(rules, clock()))).await;
    eventually(LONG, async || health(&server, "").await == Some(true)).await.unwrap();

    let client = HealthClient::new(server.channel().await);
    let reason = |status: Status| (status.code(), status.message().to_owned());
    let of_table = async |token: Option<&str>, table: &str| {
        let ask = HealthCheckRequest { service: format!("laredo.table.public.{table}") };
        let ask = || token.map_or_else(|| Request::new(ask.clone()), |token| asked_by(token, ask.clone()));
        let watched = client.clone().watch(ask()).await.map(drop).map_err(reason);
        let checked = client.clone().check(ask()).await.map(drop).map_err(reason);
        assert_eq!(watched, checked);
        checked
    };
    let unknown = of_table(None, "t2").await;
    assert!(unknown.is_err());
    for (token, known) in [(None, 0), (Some("wrong"), 0), (Some("reader"), 1), (Some("observer"), 2)] {
        for (index, table) in ["t0", "t1", "t2"].into_iter().enumerate() {
            let expected = if index < known { Ok(()) } else { unknown.clone() };
            assert_eq!(of_table(token, table).await, expected, "{token:?} {table}");
        }
    }

    let bare = (503, r#"{"ready":false}"#.to_owned());
    for query in ["?table=public.t0", "?table=public.t1", "?table=public.t2", "?source=sim", "?source=other"] {
        assert_eq!(readiness(&server, None, query).await, bare, "{query}");
        if query != "?table=public.t0" {
            assert_eq!(readiness(&server, Some("reader"), query).await, bare, "{query}");
        }
    }
    assert_eq!(readiness(&server, None, "").await.0, 200);
    assert_eq!(readiness(&server, Some("reader"), "?table=public.t0").await.0, 200);
    for (query, code) in [("?table=public.t1", 200), ("?table=public.t2", 404), ("?source=other", 404)] {
        assert_eq!(readiness(&server, Some("observer"), query).await.0, code, "{query}");
    }
}
