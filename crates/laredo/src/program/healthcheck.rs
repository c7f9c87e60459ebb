//! The command `healthcheck`, for container platforms that run a command to find out if a program
//! is ready.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use laredo_server::ListenAddress;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme, StreamOwned};

use crate::config::PortTlsConfig;

/// The time limit for the connection, and for each read of the answer. A healthy program answers
/// far sooner.
const PATIENCE: Duration = Duration::from_secs(3);

/// The port of the readiness endpoint.
pub(crate) struct HealthPort<'a> {
    pub(crate) address: &'a ListenAddress,
    pub(crate) port: u16,
    pub(crate) tls: Option<&'a PortTlsConfig>,
}

/// Requests the readiness path of the program on this machine. Returns exit code 0 if the program
/// is ready.
pub(crate) fn healthcheck(program: &str, port: HealthPort<'_>, path: &str) -> ExitCode {
    let (asked, answer) = port.request_readiness(path);
    match answer {
        Ok(answer) if answer.starts_with("HTTP/1.1 200") => ExitCode::SUCCESS,
        Ok(answer) => {
            eprintln!("not ready: {}", answer.lines().next().unwrap_or("no answer"));
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("no answer from {asked}: {error}; is {program} running?");
            ExitCode::FAILURE
        }
    }
}

impl HealthPort<'_> {
    /// Returns the address that was asked, and its answer.
    fn request_readiness(&self, path: &str) -> (String, io::Result<String>) {
        let ip = match self.address {
            ListenAddress::Unix(socket) => return (self.address.to_string(), request_by_unix(socket, path)),
            ListenAddress::All => IpAddr::V4(Ipv4Addr::LOCALHOST),
            ListenAddress::Ip(IpAddr::V4(ip)) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
            ListenAddress::Ip(IpAddr::V6(ip)) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
            ListenAddress::Ip(ip) => *ip,
        };
        let address = SocketAddr::from((ip, self.port));
        (address.to_string(), self.request_by_tcp(address, path))
    }

    fn request_by_tcp(&self, address: SocketAddr, path: &str) -> io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let Some(tls) = self.tls else { return request(&mut stream, path) };
        let config = probe_config(tls)?;
        let connection = ClientConnection::new(Arc::new(config), ServerName::IpAddress(address.ip().into()));
        request(&mut StreamOwned::new(connection.map_err(io::Error::other)?, stream), path)
    }
}

fn request_by_unix(socket: &Path, path: &str) -> io::Result<String> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    request(&mut stream, path)
}

fn request(stream: &mut (impl Read + Write), path: &str) -> io::Result<String> {
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    stream.flush()?;
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        // A server may end TLS without saying so, after its whole answer.
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof && !answer.is_empty() => {}
        read => drop(read?),
    }
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// Returns the TLS of a probe. It shows the port's own certificate, for a port that requires one.
fn probe_config(tls: &PortTlsConfig) -> io::Result<ClientConfig> {
    let unreadable = |path: &Path| {
        let path = path.display().to_string();
        move |error: rustls::pki_types::pem::Error| io::Error::other(format!("{path}: {error}"))
    };
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let builder = builder.with_safe_default_protocol_versions().map_err(io::Error::other)?;
    let builder = builder.dangerous().with_custom_certificate_verifier(Arc::new(AnyCertificate));
    if tls.client_ca_path.is_none() {
        return Ok(builder.with_no_client_auth());
    }
    let chain: Result<Vec<_>, _> = CertificateDer::pem_file_iter(&tls.cert_path).and_then(Iterator::collect);
    let chain = chain.map_err(unreadable(&tls.cert_path))?;
    let key = PrivateKeyDer::from_pem_file(&tls.key_path).map_err(unreadable(&tls.key_path))?;
    builder.with_client_auth_cert(chain, key).map_err(io::Error::other)
}

/// A verifier that accepts every certificate. A probe sends no secret, and its answer decides only
/// if this machine's own program is ready. The certificate names other hosts than this address.
#[derive(Debug)]
struct AnyCertificate;

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        ring::default_provider().signature_verification_algorithms.supported_schemes()
    }
}
