use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::BytesMut;
use postgres_protocol::message::frontend;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;

use super::auth::{self, Binding};
use super::error::TransportError;
use super::frame::FrameReader;
use super::query::Connection;
use crate::options::{ConnectionOptions, Host, SslMode};
use crate::tls;

/// A peer that is gone without a word is noticed after this and ten seconds more.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);

/// What a socket, encrypted or not, can do.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// A socket, encrypted or not.
pub(super) type BoxStream = Box<dyn Stream>;

/// What a session is for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    Sql,
    Replication,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Encryption {
    Never,
    IfOffered,
    Always,
}

/// Connects and logs in, within `connect_timeout`, as `sslmode` says.
pub(super) async fn open(options: &ConnectionOptions, purpose: Purpose) -> Result<Connection, TransportError> {
    let attempts: &[Encryption] = match (&options.host, options.tls.mode) {
        (Host::Unix(_), _) | (_, SslMode::Disable) => &[Encryption::Never],
        (_, SslMode::Allow) => &[Encryption::Never, Encryption::Always],
        (_, SslMode::Prefer) => &[Encryption::IfOffered, Encryption::Never],
        (_, SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull) => &[Encryption::Always],
    };
    let (last, earlier) = attempts.split_last().expect("every mode has an attempt");
    for encryption in earlier {
        match attempt(options, *encryption, purpose).await {
            Err(error) if may_depend_on_encryption(&error) => {}
            result => return result,
        }
    }
    attempt(options, *last, purpose).await
}

/// `pg_hba.conf` may refuse one kind of connection and take the other.
fn may_depend_on_encryption(error: &TransportError) -> bool {
    matches!(error, TransportError::Tls { .. }) || error.server().is_some_and(|server| server.code == "28000")
}

async fn attempt(
    options: &ConnectionOptions,
    encryption: Encryption,
    purpose: Purpose,
) -> Result<Connection, TransportError> {
    let work = async {
        let (stream, binding) = encrypted(options, socket(options).await?, encryption).await?;
        log_in(options, FrameReader::new(stream), &binding, purpose).await
    };
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

async fn socket(options: &ConnectionOptions) -> Result<BoxStream, TransportError> {
    let stream: io::Result<BoxStream> = match (&options.host, options.host_address) {
        (Host::Unix(folder), _) => {
            let path = folder.join(format!(".s.PGSQL.{}", options.port));
            UnixStream::connect(path).await.map(|stream| Box::new(stream) as BoxStream)
        }
        (Host::Tcp(_), Some(address)) => tcp(TcpStream::connect(SocketAddr::new(address, options.port)).await),
        (Host::Tcp(name), None) => tcp(TcpStream::connect((name.as_str(), options.port)).await),
    };
    stream.map_err(|error| connect_error(options, error))
}

fn tcp(stream: io::Result<TcpStream>) -> io::Result<BoxStream> {
    let stream = stream?;
    stream.set_nodelay(true)?;
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE_IDLE).with_interval(Duration::from_secs(2)).with_retries(5);
    SockRef::from(&stream).set_tcp_keepalive(&keepalive)?;
    Ok(Box::new(stream))
}

async fn encrypted(
    options: &ConnectionOptions,
    mut stream: BoxStream,
    encryption: Encryption,
) -> Result<(BoxStream, Binding), TransportError> {
    if encryption == Encryption::Never {
        return Ok((stream, Binding::Plain));
    }
    let tls_error = |problem: String| TransportError::Tls { address: options.address(), problem };
    let mut request = BytesMut::new();
    frontend::ssl_request(&mut request);
    stream.write_all(&request).await?;
    // Exactly one byte is read before the handshake, so that nothing can be smuggled in ahead of it.
    match stream.read_u8().await? {
        b'S' => {}
        b'N' if encryption == Encryption::IfOffered => return Ok((stream, Binding::Plain)),
        b'N' => {
            let advice = "the server does not offer TLS; set ssl = on there, or use sslmode=prefer";
            return Err(tls_error(advice.to_owned()));
        }
        // It could not even make a process for us. What more it says came unprotected, and is not repeated.
        b'E' => {
            let error = io::Error::other("the server answered the request for TLS with an error");
            return Err(connect_error(options, error));
        }
        other => {
            return Err(TransportError::Protocol(format!("byte {other} in answer to SSLRequest")));
        }
    }
    let config = tls::client_config(&options.tls).map_err(tls_error)?;
    let name = tls::server_name(&options.host.to_string()).map_err(tls_error)?;
    let stream = TlsConnector::from(config).connect(name, stream).await.map_err(|error| {
        // Only what TLS itself says is definite. A server that restarts just closes the connection.
        match error.get_ref().is_some_and(|inner| inner.is::<rustls::Error>()) {
            true => tls_error(error.to_string()),
            false => connect_error(options, error),
        }
    })?;
    let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let hash = certificate.and_then(|certificate| tls::end_point_hash(certificate));
    Ok((Box::new(stream), Binding::Tls(hash)))
}

async fn log_in(
    options: &ConnectionOptions,
    mut frames: FrameReader<BoxStream>,
    binding: &Binding,
    purpose: Purpose,
) -> Result<Connection, TransportError> {
    let mut startup = BytesMut::new();
    // Cells that come as text must be the same from a copy and from the stream, whatever the role's own settings are.
    let mut parameters = vec![
        ("user", options.user.as_str()),
        ("database", options.database.as_str()),
        ("application_name", options.application_name.as_str()),
        ("client_encoding", "UTF8"),
        ("DateStyle", "ISO"),
        ("IntervalStyle", "postgres"),
        ("TimeZone", "UTC"),
        ("extra_float_digits", "3"),
        ("bytea_output", "hex"),
        ("search_path", "pg_catalog"),
        ("statement_timeout", "0"),
        ("idle_in_transaction_session_timeout", "0"),
        // Compiling a query of the catalogue takes a hundred times as long as running it.
        ("jit", "off"),
    ];
    if let Some(text) = &options.server_options {
        parameters.push(("options", text));
    }
    if purpose == Purpose::Replication {
        parameters.push(("replication", "database"));
    }
    frontend::startup_message(parameters, &mut startup)?;
    frames.get_mut().write_all(&startup).await?;
    frames.get_mut().flush().await?;
    auth::authenticate(options, &mut frames, binding).await?;
    Connection::ready(frames).await
}
