//! The settings of a connection to a server, common to replicas and subscriptions.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::{Duration, Instant};

use laredo_core::TableName;
use laredo_proto::replication::FieldPredicate;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity};

use crate::health::{MonotonicClock, SessionHealth};
use crate::session::{ClientSession, ClientSessionOptions};
use crate::status::deepest;
use crate::sync_receiver::{SessionFeedback, SessionInput};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const PING_INTERVAL: Duration = Duration::from_secs(20);
const STREAM_WINDOW_BYTES: u32 = 8 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;
/// The largest HTTP/2 frame that the server may send. With the default of 16 KiB, 100 clients at
/// full rate received half as many bytes per second (`./dev bench fanout`).
const FRAME_BYTES_MAX: u32 = 1 << 20;
/// A value in PostgreSQL is smaller than 1 GiB, and a row is hardly larger. The memory is not
/// reserved in advance.
const MESSAGE_BYTES_MAX: usize = (1 << 30) + (64 << 20);
const PENDING_BYTES_MAX: u32 = 64 << 20;

/// The settings that every builder has.
pub(crate) struct ConnectSettings {
    pub(crate) server: String,
    pub(crate) table: TableName,
    pub(crate) client_id: String,
    pub(crate) ca_pem: Option<Vec<u8>>,
    pub(crate) identity: Option<Identity>,
    pub(crate) token: Option<String>,
    pub(crate) message_bytes_max: usize,
    pub(crate) pending_bytes_max: u32,
    pub(crate) now: MonotonicClock,
    pub(crate) seed: Option<u64>,
}

/// A session that does not run yet, and the other ends of its channels.
pub(crate) struct PreparedSession {
    pub(crate) runtime: Handle,
    pub(crate) session: ClientSession,
    pub(crate) health: Arc<SessionHealth>,
    pub(crate) inputs: mpsc::UnboundedReceiver<SessionInput>,
    pub(crate) feedback: mpsc::UnboundedSender<SessionFeedback>,
    /// A weak sender for canaries, so that it does not keep the replica's thread alive.
    #[cfg(debug_assertions)]
    pub(crate) plants: mpsc::WeakUnboundedSender<SessionInput>,
}

/// An error that prevents a replica or a subscription from starting.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The server address is invalid.
    #[error("`{server}` is no server address ({reason}); write one like http://127.0.0.1:4002 or https://laredo:4002")]
    Address {
        /// The address as given.
        server: String,
        /// The reason.
        reason: String,
    },
    /// The token cannot be sent in a header.
    #[error("the token has characters that no header takes; it must be ASCII without spaces")]
    Token,
    /// The caller is not inside a tokio runtime.
    #[error("a client needs a tokio runtime; call start() inside one")]
    NoRuntime,
    /// Two indexes have the same name.
    #[error("there are two indexes `{0}`; give one another name")]
    SameName(String),
    /// The replica's thread could not be started.
    #[error("cannot start the replica's thread: {0}")]
    Thread(#[from] std::io::Error),
}

impl ConnectSettings {
    pub(crate) fn new(server: String, table: TableName) -> ConnectSettings {
        ConnectSettings {
            server,
            table,
            client_id: String::new(),
            ca_pem: None,
            identity: None,
            token: None,
            message_bytes_max: MESSAGE_BYTES_MAX,
            pending_bytes_max: PENDING_BYTES_MAX,
            now: Box::new(Instant::now),
            seed: None,
        }
    }

    /// Prepares a session, without running it.
    ///
    /// # Errors
    /// When the server address or the token is invalid, or when the caller is not inside a tokio
    /// runtime.
    pub(crate) fn prepare_session(self, filters: Vec<FieldPredicate>) -> Result<PreparedSession, StartError> {
        let runtime = Handle::try_current().map_err(|_| StartError::NoRuntime)?;
        let endpoint = self.endpoint()?;
        let authorization = self.token.as_ref().map(|token| format!("Bearer {token}").parse());
        let authorization = authorization.transpose().map_err(|_| StartError::Token)?;
        let health = Arc::new(SessionHealth::new(self.table.clone(), self.now));
        let (inputs, waiting) = mpsc::unbounded_channel();
        let (feedback, heard) = mpsc::unbounded_channel();
        let options = ClientSessionOptions {
            server: self.server,
            endpoint,
            authorization,
            table: self.table,
            client_id: self.client_id,
            filters,
            message_bytes_max: self.message_bytes_max,
            pending_bytes_max: self.pending_bytes_max,
            seed: self.seed.unwrap_or_else(|| RandomState::new().hash_one(0)),
        };
        #[cfg(debug_assertions)]
        let plants = inputs.downgrade();
        let session = ClientSession::new(options, health.clone(), inputs, heard);
        Ok(PreparedSession {
            runtime,
            session,
            health,
            inputs: waiting,
            feedback,
            #[cfg(debug_assertions)]
            plants,
        })
    }

    fn endpoint(&self) -> Result<Endpoint, StartError> {
        let wrong = |reason: String| StartError::Address { server: self.server.clone(), reason };
        let endpoint = Endpoint::from_shared(self.server.clone()).map_err(|e| wrong(e.to_string()))?;
        let endpoint = match endpoint.uri().scheme_str() {
            Some("http") => endpoint,
            Some("https") => {
                let tls = match &self.ca_pem {
                    Some(pem) => ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem)),
                    None => ClientTlsConfig::new().with_native_roots(),
                };
                let tls = self.identity.iter().fold(tls, |tls, identity| tls.identity(identity.clone()));
                // The innermost error says which of the certificates is invalid.
                endpoint.tls_config(tls).map_err(|e| wrong(deepest(&e)))?
            }
            _ => return Err(wrong("it must begin with http:// or https://".to_owned())),
        };
        Ok(endpoint
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .tcp_keepalive(Some(PING_INTERVAL))
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_frame_size(FRAME_BYTES_MAX)
            .http2_keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_INTERVAL / 2)
            .keep_alive_while_idle(true))
    }
}
