use std::io;

use bytes::BytesMut;
use postgres_protocol::message::frontend;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_rustls::TlsConnector;

use super::address::HostAddresses;
use super::auth::{self, BindableChannel};
use super::error::TransportError;
use super::frame::BackendFrameReader;
use super::query::{CancelKey, SqlConnection};
use super::settings;
use crate::options::{ConnectionOptions, Host, SecretText, SslMode};
use crate::tls;

/// The operations of a socket, encrypted or not.
pub(super) trait AsyncSocket: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> AsyncSocket for S {}

/// A socket, encrypted or not.
pub(super) type BoxedSocket = Box<dyn AsyncSocket>;

/// The purpose of a session.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum SessionPurpose {
    Sql,
    Replication,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum SocketEncryption {
    Never,
    IfOffered,
    Always,
}

/// The login of a session.
#[derive(Clone, Copy)]
struct SessionLogin<'a> {
    options: &'a ConnectionOptions,
    password: Option<&'a SecretText>,
    purpose: SessionPurpose,
}

/// Obtains the password, connects and logs in. An outdated password, which was kept from an earlier
/// attempt, is obtained again at once.
pub(super) async fn open(
    options: &ConnectionOptions,
    purpose: SessionPurpose,
) -> Result<SqlConnection, TransportError> {
    loop {
        let obtained = options.obtain_password().await;
        let obtained = obtained.map_err(|problem| TransportError::Login { address: options.address(), problem })?;
        let password = obtained.as_ref().map(|obtained| &obtained.text);
        let result = open_with(SessionLogin { options, password, purpose }).await;
        let (Err(error), Some(refused)) = (&result, &obtained) else { return result };
        if !refuses_password(error) || !options.forget_password(refused).await {
            return result;
        }
        tracing::info!(
            event = "password_renewed",
            address = options.address(),
            "the password is outdated and is obtained again"
        );
    }
}

/// Returns true if another password may be accepted. Some methods report a wrong password as any
/// other refusal of a role.
fn refuses_password(error: &TransportError) -> bool {
    error.server().is_some_and(|server| server.code.starts_with("28"))
}

/// Connects and logs in as `sslmode` requires, within `connect_timeout` for each address.
async fn open_with(login: SessionLogin<'_>) -> Result<SqlConnection, TransportError> {
    let options = login.options;
    let attempts: &[SocketEncryption] = match (&options.host, options.tls.mode) {
        (Host::Unix(_), _) | (_, SslMode::Disable) => &[SocketEncryption::Never],
        (_, SslMode::Allow) => &[SocketEncryption::Never, SocketEncryption::Always],
        (_, SslMode::Prefer) => &[SocketEncryption::IfOffered, SocketEncryption::Never],
        (_, SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull) => &[SocketEncryption::Always],
    };
    let (last, earlier) = attempts.split_last().expect("every mode has an attempt");
    for encryption in earlier {
        match attempt(login, *encryption).await {
            Err(error) if may_depend_on_encryption(&error, *encryption) => {}
            result => return result,
        }
    }
    attempt(login, *last).await
}

/// Asks the server to cancel the statement of another session.
pub(super) async fn cancel(options: &ConnectionOptions, key: CancelKey) -> Result<(), TransportError> {
    let encryption = match (&options.host, options.tls.mode) {
        (Host::Unix(_), _) | (_, SslMode::Disable | SslMode::Allow) => SocketEncryption::Never,
        (_, SslMode::Prefer) => SocketEncryption::IfOffered,
        (_, SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull) => SocketEncryption::Always,
    };
    let failed = |error| connect_error(options, error);
    let mut addresses = HostAddresses::of(options).await.map_err(failed)?;
    let mut request = BytesMut::new();
    frontend::cancel_request(key.process_id, key.secret, &mut request);
    loop {
        // Any of the addresses may be that of the session's server. The others do not know the
        // session and do nothing.
        let (mut stream, _) = encrypted(options, addresses.connect(options).await.map_err(failed)?, encryption).await?;
        stream.write_all(&request).await?;
        stream.flush().await?;
        // The server sends no reply, and closes the connection once it has sent the signal.
        let _ = stream.read_u8().await;
        if addresses.is_empty() {
            return Ok(());
        }
    }
}

/// Returns true if another kind of encryption may succeed. `pg_hba.conf` may accept only encrypted
/// or only unencrypted connections. A login that an unencrypted connection does not allow may be
/// allowed on an encrypted one.
fn may_depend_on_encryption(error: &TransportError, tried: SocketEncryption) -> bool {
    match error {
        TransportError::Tls { .. } => true,
        TransportError::Login { .. } => tried == SocketEncryption::Never,
        TransportError::Server(server) => server.code == "28000",
        TransportError::Connect { .. } | TransportError::Lost(_) | TransportError::Protocol(_) => false,
    }
}

/// Tries the addresses until a server accepts the login.
async fn attempt(login: SessionLogin<'_>, encryption: SocketEncryption) -> Result<SqlConnection, TransportError> {
    let options = login.options;
    let mut addresses =
        within(options, async { HostAddresses::of(options).await.map_err(|error| connect_error(options, error)) })
            .await?;
    loop {
        let work = async {
            let stream = addresses.connect(options).await.map_err(|error| connect_error(options, error))?;
            let (stream, binding) = encrypted(options, stream, encryption).await?;
            log_in(login, BackendFrameReader::new(stream), &binding).await
        };
        match within(options, work).await {
            Err(error) if concerns_address(&error) && !addresses.is_empty() => {
                tracing::debug!(event = "next_address_tried", %error, "trying the next address of the database");
            }
            result => return result,
        }
    }
}

/// Returns true if another address of the host may lead to a server that answers.
fn concerns_address(error: &TransportError) -> bool {
    match error {
        TransportError::Connect { .. } | TransportError::Lost(_) => true,
        // The server starts or shuts down.
        TransportError::Server(error) => error.code == "57P03",
        TransportError::Tls { .. } | TransportError::Login { .. } | TransportError::Protocol(_) => false,
    }
}

async fn within<T>(
    options: &ConnectionOptions,
    work: impl Future<Output = Result<T, TransportError>>,
) -> Result<T, TransportError> {
    match options.connect_timeout {
        None => work.await,
        Some(limit) => tokio::time::timeout(limit, work).await.unwrap_or_else(|_| {
            let what = format!("no answer for {} s", limit.as_secs());
            Err(connect_error(options, io::Error::new(io::ErrorKind::TimedOut, what)))
        }),
    }
}

fn connect_error(options: &ConnectionOptions, source: io::Error) -> TransportError {
    TransportError::Connect { address: options.address(), source }
}

async fn encrypted(
    options: &ConnectionOptions,
    mut stream: BoxedSocket,
    encryption: SocketEncryption,
) -> Result<(BoxedSocket, BindableChannel), TransportError> {
    if encryption == SocketEncryption::Never {
        return Ok((stream, BindableChannel::Plain));
    }
    let tls_error = |problem: String| TransportError::Tls { address: options.address(), problem };
    let mut request = BytesMut::new();
    frontend::ssl_request(&mut request);
    stream.write_all(&request).await?;
    // Exactly one byte is read before the handshake, so that an attacker cannot insert data ahead
    // of it.
    match stream.read_u8().await? {
        b'S' => {}
        b'N' if encryption == SocketEncryption::IfOffered => return Ok((stream, BindableChannel::Plain)),
        b'N' => {
            let advice = "the server does not offer TLS; set ssl = on there, or use sslmode=prefer";
            return Err(tls_error(advice.to_owned()));
        }
        // The server could not even start a process. The rest of its message is unprotected, and is
        // not repeated.
        b'E' => {
            let error = io::Error::other("the server answered the request for TLS with an error");
            return Err(connect_error(options, error));
        }
        other => {
            return Err(TransportError::Protocol(format!("the answer to SSLRequest is the unknown byte {other:#04x}")));
        }
    }
    let config = tls::client_config(&options.tls).map_err(tls_error)?;
    let name = tls::server_name(&options.host.to_string()).map_err(tls_error)?;
    let stream = TlsConnector::from(config).connect(name, stream).await.map_err(|error| {
        // Only errors of TLS itself are permanent. A server that restarts just closes the
        // connection.
        match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            Some(error) => tls_error(tls::problem(error)),
            None => connect_error(options, error),
        }
    })?;
    let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let hash = certificate.and_then(|certificate| tls::end_point_hash(certificate));
    Ok((Box::new(stream), BindableChannel::Tls(hash)))
}

async fn log_in(
    login: SessionLogin<'_>,
    mut frames: BackendFrameReader<BoxedSocket>,
    binding: &BindableChannel,
) -> Result<SqlConnection, TransportError> {
    let SessionLogin { options, password, purpose } = login;
    let mut startup = BytesMut::new();
    // Parameters that poolers accept, too. All other settings are set in the session.
    let mut parameters = vec![
        ("user", options.user.as_str()),
        ("database", options.database.as_str()),
        ("application_name", options.application_name.as_str()),
        ("client_encoding", "UTF8"),
    ];
    if let Some(text) = &options.server_options {
        parameters.push(("options", text));
    }
    if purpose == SessionPurpose::Replication {
        parameters.push(("replication", "database"));
    }
    frontend::startup_message(parameters, &mut startup)?;
    frames.get_mut().write_all(&startup).await?;
    frames.get_mut().flush().await?;
    let logged_in = async {
        auth::authenticate(options, password, &mut frames, binding).await?;
        SqlConnection::ready(frames).await
    };
    let mut connection = logged_in.await.map_err(|error| of_pooler(options, error))?;
    let process_id = settings::apply(&mut connection, purpose).await?;
    if connection.set_process_id(process_id) && purpose == SessionPurpose::Replication {
        tracing::warn!(
            event = "pooler_found",
            address = options.address(),
            "PostgreSQL answers through a proxy or a connection pooler; name PostgreSQL's own address in the connection \
             string unless each session is passed on to one session of the database"
        );
    }
    Ok(connection)
}

/// Explains the error of a pooler. A pooler refuses an unknown parameter with the code of a
/// protocol violation, which PostgreSQL itself does not use at such a login. RDS Proxy writes in
/// its message that it has no replication. Trying again would not help.
fn of_pooler(options: &ConnectionOptions, error: TransportError) -> TransportError {
    match error.server() {
        Some(server) if server.code == "08P01" || server.message.contains("RDS Proxy") => TransportError::Login {
            address: options.address(),
            problem: format!(
                "{}; a connection pooler such as PgBouncer sends this error, and most poolers do not support replication; use \
                 PostgreSQL's own host and port in the connection string",
                server.message
            ),
        },
        _ => error,
    }
}
