//! The settings of a connection to a server, common to replicas and subscriptions.

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use laredo_core::TableName;
use laredo_proto::replication::FieldPredicate;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tonic::transport::{Endpoint, Uri};

use crate::health::{MonotonicClock, SessionHealth};
use crate::session::{ClientSession, ClientSessionOptions};
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
const ADDRESS_FORM: &str =
    "write an address like http://127.0.0.1:4002, https://laredo:4002 or unix:/run/laredo/laredo.sock";

/// The settings that every builder has.
pub(crate) struct ConnectSettings {
    pub(crate) server: String,
    pub(crate) table: TableName,
    pub(crate) client_id: String,
    #[cfg(feature = "tls")]
    pub(crate) tls: crate::tls::TlsCertificates,
    pub(crate) token: Option<String>,
    pub(crate) allows_plaintext_token: bool,
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
///
/// ```
/// use laredo_client::{Replica, StartError, TableName};
///
/// let runtime = tokio::runtime::Runtime::new()?;
/// let _inside = runtime.enter();
/// let started = Replica::builder("laredo:4002", TableName::new("public", "orders")).start();
/// assert!(matches!(started, Err(StartError::Address { .. })), "the address has no scheme");
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The server address is invalid, or a certificate for it is.
    #[error("cannot use the server address `{server}`: {reason}")]
    Address {
        /// The address as given.
        server: String,
        /// The reason.
        reason: String,
    },
    /// The token cannot be sent in a header.
    #[error("cannot send the token in a header: a character is not allowed; use ASCII without spaces")]
    Token,
    /// The token would cross a network without TLS.
    #[error(
        "would send the token in plain text to `{server}`, where everyone on the network path can read it; use an \
         https:// address, or allow_plaintext_token() if the path is protected in another way"
    )]
    PlaintextToken {
        /// The address as given.
        server: String,
    },
    /// The caller is not inside a tokio runtime.
    #[error("cannot start the client outside of a tokio runtime; call start() inside one")]
    NoRuntime,
    /// Two indexes have the same name.
    #[error("two indexes have the name `{0}`; rename one")]
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
            #[cfg(feature = "tls")]
            tls: Default::default(),
            token: None,
            allows_plaintext_token: false,
            message_bytes_max: MESSAGE_BYTES_MAX,
            pending_bytes_max: PENDING_BYTES_MAX,
            now: Box::new(Instant::now),
            seed: None,
        }
    }

    /// Prepares a session, without running it.
    ///
    /// # Errors
    /// When the server address or the token is invalid, when the token would cross a network in
    /// plain text, or when the caller is not inside a tokio runtime.
    pub(crate) fn prepare_session(self, filters: Vec<FieldPredicate>) -> Result<PreparedSession, StartError> {
        let runtime = Handle::try_current().map_err(|_| StartError::NoRuntime)?;
        let endpoint = self.endpoint()?;
        if self.token.is_some() && !self.allows_plaintext_token && is_plaintext_over_network(endpoint.uri()) {
            return Err(StartError::PlaintextToken { server: self.server });
        }
        let authorization = self.token.as_ref().map(|token| format!("Bearer {token}").parse());
        let authorization = authorization.transpose().map_err(|_| StartError::Token)?;
        let health = Arc::new(SessionHealth::new(self.table.clone(), self.now));
        let (inputs, waiting) = mpsc::unbounded_channel();
        let (feedback, heard) = mpsc::unbounded_channel();
        let options = ClientSessionOptions {
            server: self.server,
            endpoint,
            #[cfg(feature = "tls")]
            tls: self.tls,
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
        if let Some(path) = self.server.strip_prefix("unix:")
            && !Path::new(path.strip_prefix("//").unwrap_or(path)).is_absolute()
        {
            return Err(wrong(format!("the path of the Unix socket is not absolute; {ADDRESS_FORM}")));
        }
        let endpoint = Endpoint::from_shared(self.server.clone()).map_err(|e| wrong(format!("{e}; {ADDRESS_FORM}")))?;
        let endpoint = match endpoint.uri().scheme_str() {
            // The URI of a Unix socket has this scheme, too.
            Some("http") => endpoint,
            Some("https") => self.with_tls(endpoint).map_err(wrong)?,
            _ => return Err(wrong(ADDRESS_FORM.to_owned())),
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

    /// Returns the endpoint with TLS.
    ///
    /// # Errors
    /// The reason, when a certificate is invalid.
    #[cfg(feature = "tls")]
    fn with_tls(&self, endpoint: Endpoint) -> Result<Endpoint, String> {
        // The innermost error says which of the certificates is invalid.
        endpoint.tls_config(self.tls.config()?).map_err(|error| crate::status::deepest(&error))
    }

    #[cfg(not(feature = "tls"))]
    fn with_tls(&self, _endpoint: Endpoint) -> Result<Endpoint, String> {
        Err("this program was built without TLS; enable the feature `tls` of laredo-client".to_owned())
    }
}

/// Returns true if what is sent to this address can be read by other machines.
fn is_plaintext_over_network(server: &Uri) -> bool {
    let host = server.host().unwrap_or_default();
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    let is_loopback = address.map_or_else(|_| host.eq_ignore_ascii_case("localhost"), |address| address.is_loopback());
    server.scheme_str() == Some("http") && !is_loopback
}

/// Defines the setters of [`ConnectSettings`] on a builder that has them in its field `connect`.
macro_rules! connect_setters {
    ($builder:ty) => {
        impl $builder {
            /// Sets the name under which the server's operator sees this client.
            pub fn client_id(mut self, client_id: impl Into<String>) -> Self {
                self.connect.client_id = client_id.into();
                self
            }

            /// Sets the PEM certificates that an `https://` server's certificate is checked
            /// against, instead of those of the operating system.
            #[cfg(feature = "tls")]
            pub fn ca_pem(mut self, pem: impl Into<Vec<u8>>) -> Self {
                self.connect.tls.set_authorities(pem.into());
                self
            }

            /// Sets the file of the PEM certificates that an `https://` server's certificate is
            /// checked against. It is read again at each connection, so that it can be replaced.
            #[cfg(feature = "tls")]
            pub fn ca_file(mut self, path: impl Into<std::path::PathBuf>) -> Self {
                self.connect.tls.set_authorities_file(path.into());
                self
            }

            /// Sets the PEM files of the certificate that this client presents to an `https://`
            /// server, and of its key. They are read again at each connection, so that they can be
            /// replaced.
            #[cfg(feature = "tls")]
            pub fn identity_files(
                mut self,
                certificate: impl Into<std::path::PathBuf>,
                key: impl Into<std::path::PathBuf>,
            ) -> Self {
                self.connect.tls.set_identity_files(certificate.into(), key.into());
                self
            }

            /// Sets the certificate that this client presents to an `https://` server, and its key,
            /// as PEM. Servers that require client certificates need it.
            #[cfg(feature = "tls")]
            pub fn identity_pem(mut self, certificate: impl AsRef<[u8]>, key: impl AsRef<[u8]>) -> Self {
                self.connect.tls.set_identity(certificate.as_ref(), key.as_ref());
                self
            }

            /// Sets a token that is sent with each request as `authorization: Bearer …`, for
            /// servers or proxies that require one. With an `http://` address that is not loopback
            /// the client does not start, unless
            /// [`allow_plaintext_token`](Self::allow_plaintext_token) is called.
            pub fn token(mut self, token: impl Into<String>) -> Self {
                self.connect.token = Some(token.into());
                self
            }

            /// Allows the token to be sent without TLS. Everyone on the network path can read it,
            /// so the path must be protected in another way, for example by a service mesh.
            pub fn allow_plaintext_token(mut self) -> Self {
                self.connect.allows_plaintext_token = true;
                self
            }

            /// Sets the largest accepted message in bytes (1 GiB plus 64 MiB unless set). It must
            /// be large enough for the table's largest row.
            pub fn message_bytes_max(mut self, bytes: usize) -> Self {
                self.connect.message_bytes_max = bytes;
                self
            }

            /// Sets how many bytes of messages may wait (64 MiB unless set): for the replica to
            /// apply them, for example while a view is held, or for
            /// [`Subscription::next`](crate::Subscription::next).
            ///
            /// At this bound the client stops reading the stream, and falls behind. Transactions
            /// and snapshots that are still incomplete do not count; they are held until they are
            /// complete.
            pub fn pending_bytes_max(mut self, bytes: u32) -> Self {
                self.connect.pending_bytes_max = bytes.max(1);
                self
            }

            /// Sets the clock for [`View::age`](crate::View::age) and
            /// [`SubscriptionEvent::Current`](crate::SubscriptionEvent::Current). It must never go
            /// back.
            pub fn clock(mut self, now: impl Fn() -> std::time::Instant + Send + Sync + 'static) -> Self {
                self.connect.now = Box::new(now);
                self
            }

            /// Sets the seed of the random waits between attempts to connect, to make them
            /// repeatable.
            pub fn seed(mut self, seed: u64) -> Self {
                self.connect.seed = Some(seed);
                self
            }
        }
    };
}

pub(crate) use connect_setters;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_crosses_no_network_in_plain_text() {
        for (server, is_readable) in [
            ("http://127.0.0.1:4002", false),
            ("http://127.8.9.1:4002", false),
            ("http://[::1]:4002", false),
            ("http://LocalHost:4002", false),
            ("https://laredo.example.com", false),
            ("http://laredo:4002", true),
            ("http://10.0.0.5:4002", true),
            ("http://[fd00::1]:4002", true),
            ("http://localhost.example.com", true),
            ("http://0.0.0.0:4002", true),
        ] {
            assert_eq!(is_plaintext_over_network(&server.parse().unwrap()), is_readable, "{server}");
        }
    }
}
