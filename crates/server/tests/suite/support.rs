//! A simulated database, an engine over it, a server over that, and clients of both encodings.

use std::net::SocketAddr;
use std::time::Duration;

use laredo_core::{CommitTime, Sequence};
use laredo_engine::journal::InstanceId;
use laredo_engine::source::Source;
use laredo_engine::{Clock, Engine, EngineHandle};
use laredo_proto::replication::laredo_replication_service_client::LaredoReplicationServiceClient;
use laredo_proto::replication::sync_response::Message;
use laredo_proto::replication::{FieldPredicate, RowEncoding, SyncRequest, SyncResponse, field_predicate};
use laredo_server::{
    HttpOptions, PortListener, ServedSource, ServedTableOptions, Server, ServerListeners, ServerOptions,
    ServerTimeLimits, ServerTls,
};
use laredo_testkit::{RunningEngine, SimDatabase, sim_table, stopped_clock};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tonic::transport::{Channel, Endpoint};
use tonic::{Status, Streaming};

pub(crate) mod access;
pub(crate) mod http;
mod replica;

pub(crate) use replica::{SimpleReplica, parse};

/// The longest time that a test waits for an expected event.
pub(crate) const LONG: Duration = Duration::from_secs(60);

pub(crate) type GrpcTestClient = LaredoReplicationServiceClient<Channel>;

/// A server over a simulated database.
pub(crate) struct SimServer {
    pub(crate) engine: EngineHandle,
    pub(crate) grpc: SocketAddr,
    pub(crate) fanout: SocketAddr,
    pub(crate) http: SocketAddr,
    stop_server: Option<oneshot::Sender<()>>,
    _engine: RunningEngine,
    server: JoinHandle<()>,
}

/// Serves `public.t0`, `public.t1`, … with journals that have this name.
pub(crate) async fn serve(database: &SimDatabase, instance: &str) -> SimServer {
    serve_with(database, instance, 1, |_| {}).await
}

pub(crate) async fn serve_with(
    database: &SimDatabase,
    instance: &str,
    tables: usize,
    change: impl FnOnce(&mut ServerOptions),
) -> SimServer {
    let options = (0..tables).map(|i| {
        let mut table = sim_table(&format!("t{i}"));
        table.instance = InstanceId(format!("{instance}-{i}"));
        // Each journal begins at another sequence, like the random first sequence of a real
        // journal.
        table.first_sequence = Sequence(instance.bytes().fold(1000, |n, b| n * 31 + u64::from(b)) + 7);
        table
    });
    start(database.clone(), options.collect(), change).await
}

/// Serves `public.t0` with TLS on its gRPC ports.
pub(crate) async fn serve_with_tls(database: &SimDatabase, tls: ServerTls) -> SimServer {
    serve_with_tls_and(database, tls, |_| {}).await
}

pub(crate) async fn serve_with_tls_and(
    database: &SimDatabase,
    tls: ServerTls,
    change: impl FnOnce(&mut ServerOptions),
) -> SimServer {
    let engine = Engine::prepare(database.clone(), vec![sim_table("t0")], clock()).await.unwrap();
    start_engine_with(engine, Some(tls), change).await
}

pub(crate) async fn start(
    source: impl Source,
    tables: Vec<laredo_engine::TableOptions>,
    change: impl FnOnce(&mut ServerOptions),
) -> SimServer {
    start_engine(Engine::prepare(source, tables, clock()).await.unwrap(), change).await
}

/// Returns a clock that stands still.
pub(crate) fn clock() -> Clock {
    stopped_clock(CommitTime(1_000_000_000))
}

/// Runs an engine, and serves its tables.
pub(crate) async fn start_engine(engine: Engine<impl Source>, change: impl FnOnce(&mut ServerOptions)) -> SimServer {
    start_engine_with(engine, None, change).await
}

async fn start_engine_with(
    engine: Engine<impl Source>,
    tls: Option<ServerTls>,
    change: impl FnOnce(&mut ServerOptions),
) -> SimServer {
    let engine = RunningEngine::run(engine);
    let handle = engine.handle().clone();
    let served = handle.tables();
    let tables = served.iter().map(|table| {
        let options = ServedTableOptions::new(table.clone());
        ServedTableOptions { source_id: "sim".to_owned(), ..options }
    });
    let tables = tables.collect();
    let (http, waits) = (HttpOptions::default(), ServerTimeLimits::default());
    let source =
        ServedSource { id: "sim".to_owned(), kind: "simulated".to_owned(), resumes: false, engine: handle.clone() };
    let (sources, allowed_origins, connections_max) = (vec![source], Vec::new(), laredo_server::CONNECTIONS_MAX);
    let (access, allowed_hosts) = (None, laredo_server::AllowedHosts::default());
    let mut options = ServerOptions {
        sources,
        tables,
        connections_max,
        allowed_origins,
        allowed_hosts,
        access,
        http,
        waits,
        clock: clock(),
        config_orders: None,
        dropped_log_lines: || 7,
    };
    change(&mut options);
    let (grpc, fanout, http) = (listen().await, listen().await, listen().await);
    let (grpc_address, http_address) = (grpc.local_addr().unwrap(), http.local_addr().unwrap());
    let fanout_address = fanout.local_addr().unwrap();
    let [grpc, fanout] = [grpc, fanout].map(|listener| vec![PortListener::from(listener).with_tls(tls.clone())]);
    let listeners = ServerListeners { grpc, fanout, health: Some(http.into()), metrics: None };
    let (stop_server, stopped) = oneshot::channel::<()>();
    let server = tokio::spawn(async move {
        let stop = async move {
            let _ = stopped.await;
        };
        Server::new(options).serve(listeners, stop).await.unwrap();
    });
    SimServer {
        engine: handle,
        grpc: grpc_address,
        fanout: fanout_address,
        http: http_address,
        stop_server: Some(stop_server),
        _engine: engine,
        server,
    }
}

async fn listen() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").await.unwrap()
}

/// Returns the next message of a stream, or the status that ended it.
pub(crate) async fn next(stream: &mut Streaming<SyncResponse>) -> Result<Message, Status> {
    let message = within(stream.message(), "a message").await?;
    Ok(message.expect("a Sync never just ends").message.expect("no message is empty"))
}

/// Waits for a future, and panics after [`LONG`].
pub(crate) async fn within<T>(wait: impl Future<Output = T>, what: &str) -> T {
    tokio::time::timeout(LONG, wait).await.unwrap_or_else(|_| panic!("waited too long for {what}"))
}

impl SimServer {
    /// Waits until every table has been copied.
    pub(crate) async fn ready(&self) -> &SimServer {
        for table in self.engine.tables().iter() {
            within(table.wait_journal(), "a copy").await.unwrap();
        }
        self
    }

    pub(crate) async fn channel(&self) -> Channel {
        self.endpoint().connect().await.unwrap()
    }

    pub(crate) fn endpoint(&self) -> Endpoint {
        Endpoint::from_shared(format!("http://{}", self.grpc)).unwrap()
    }

    pub(crate) async fn client(&self) -> GrpcTestClient {
        GrpcTestClient::new(self.channel().await).max_decoding_message_size(64 << 20)
    }

    pub(crate) async fn sync(&self, request: SyncRequest) -> Streaming<SyncResponse> {
        within(self.client().await.sync(request), "a stream").await.unwrap().into_inner()
    }

    /// Asks the server to stop; [`SimServer::stopped`] waits for it.
    pub(crate) fn stop(&mut self) {
        let _ = self.stop_server.take().unwrap().send(());
    }

    pub(crate) async fn stopped(self) {
        within(self.server, "the server to stop").await.unwrap();
    }

    /// Sends a GET. Returns the status code and the body.
    pub(crate) async fn get(&self, path: &str) -> (u16, String) {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let mut stream = tokio::net::TcpStream::connect(self.http).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut response = String::new();
        within(stream.read_to_string(&mut response), "an HTTP answer").await.unwrap();
        let code = response.split(' ').nth(1).unwrap().parse().unwrap();
        let body = response.split_once("\r\n\r\n").unwrap().1;
        (code, body.to_owned())
    }

    /// Returns the value of a metric. The name includes the labels as Prometheus writes them.
    pub(crate) async fn metric(&self, name: &str) -> f64 {
        let (_, text) = self.get("/metrics").await;
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {name} in {text}")).parse().unwrap()
    }
}

pub(crate) fn request(encoding: RowEncoding) -> SyncRequest {
    let accept = match encoding {
        RowEncoding::Struct => vec![],
        RowEncoding::PostgresBinary => vec![encoding.into()],
    };
    SyncRequest {
        schema: "public".to_owned(),
        table: "t0".to_owned(),
        client_id: "test".to_owned(),
        accept,
        ..SyncRequest::default()
    }
}

/// Returns a filter for rows whose body begins with `text`.
pub(crate) fn prefix(text: &str) -> FieldPredicate {
    FieldPredicate { field: "body".to_owned(), r#match: Some(field_predicate::Match::Prefix(text.to_owned())) }
}
