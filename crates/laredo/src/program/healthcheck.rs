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

use super::arguments::HealthcheckArguments;
use super::print_error;
use crate::config::{CertificateDemand, PortTlsConfig};
use crate::printable::printable;

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
pub(crate) fn healthcheck(program: &str, port: HealthPort<'_>, path: &str, probe: &HealthcheckArguments) -> ExitCode {
    let token = match probe.token() {
        Ok(token) => token,
        Err(problem) => {
            print_error(&problem);
            return ExitCode::FAILURE;
        }
    };
    let (asked, answer) = port.request_readiness(&request_text(path, token.as_deref()));
    match answer {
        Ok(answer) if answer.starts_with("HTTP/1.1 200") => ExitCode::SUCCESS,
        Ok(answer) => {
            let first = printable(answer.lines().next().unwrap_or("no answer"));
            let is_refused = ["HTTP/1.1 401", "HTTP/1.1 403"].iter().any(|refused| first.starts_with(refused));
            let advice =
                if is_refused { "; give the token of an observer by LAREDO_TOKEN or --token-file" } else { "" };
            eprintln!("not ready: {first}{advice}");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("no answer from {asked}: {error}; is {program} running?");
            ExitCode::FAILURE
        }
    }
}

impl HealthcheckArguments {
    /// Returns the token, if there is one: that of the file, or of the variable.
    ///
    /// # Errors
    /// Returns a sentence if the file cannot be read, or no header can have the token.
    fn token(&self) -> Result<Option<String>, String> {
        let (place, text) = match &self.token_file {
            Some(file) => {
                let place = format!("--token-file {}", file.display());
                let text =
                    std::fs::read_to_string(file).map_err(|error| format!("{place}: cannot be read: {error}"))?;
                if text.trim().is_empty() {
                    return Err(format!("{place}: the file is empty; write the token into it"));
                }
                (place, text)
            }
            None => {
                let text = std::env::var_os("LAREDO_TOKEN").unwrap_or_default();
                ("LAREDO_TOKEN".to_owned(), text.to_string_lossy().into_owned())
            }
        };
        match text.trim() {
            "" => Ok(None),
            token if token.chars().all(|c| c.is_ascii_graphic()) => Ok(Some(token.to_owned())),
            _ => Err(format!("{place}: it is not one token without spaces, which `laredo token new` prints")),
        }
    }
}

impl HealthPort<'_> {
    /// Returns the address that was asked, and its answer.
    fn request_readiness(&self, request: &str) -> (String, io::Result<String>) {
        let ip = match self.address {
            ListenAddress::Unix(socket) => return (self.address.to_string(), request_by_unix(socket, request)),
            ListenAddress::All => IpAddr::V4(Ipv4Addr::LOCALHOST),
            ListenAddress::Ip(IpAddr::V4(ip)) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
            ListenAddress::Ip(IpAddr::V6(ip)) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
            ListenAddress::Ip(ip) => *ip,
        };
        let address = SocketAddr::from((ip, self.port));
        (address.to_string(), self.request_by_tcp(address, request))
    }

    fn request_by_tcp(&self, address: SocketAddr, request: &str) -> io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let Some(tls) = self.tls else { return exchange(&mut stream, request) };
        let config = probe_config(tls)?;
        let connection = ClientConnection::new(Arc::new(config), ServerName::IpAddress(address.ip().into()));
        exchange(&mut StreamOwned::new(connection.map_err(io::Error::other)?, stream), request)
    }
}

fn request_by_unix(socket: &Path, request: &str) -> io::Result<String> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    exchange(&mut stream, request)
}

fn request_text(path: &str, token: Option<&str>) -> String {
    let authorization = token.map_or_else(String::new, |token| format!("Authorization: Bearer {token}\r\n"));
    format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n{authorization}Connection: close\r\n\r\n")
}

fn exchange(stream: &mut (impl Read + Write), request: &str) -> io::Result<String> {
    stream.write_all(request.as_bytes())?;
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
    if tls.client_ca_path.is_none() || tls.client_certificates == CertificateDemand::Optional {
        return Ok(builder.with_no_client_auth());
    }
    let chain: Result<Vec<_>, _> = CertificateDer::pem_file_iter(&tls.cert_path).and_then(Iterator::collect);
    let chain = chain.map_err(unreadable(&tls.cert_path))?;
    let key = PrivateKeyDer::from_pem_file(&tls.key_path).map_err(unreadable(&tls.key_path))?;
    builder.with_client_auth_cert(chain, key).map_err(io::Error::other)
}

/// A verifier that accepts every certificate. The certificate names other hosts than this address.
/// The connection does not leave the machine, and the answer decides only if its own program is
/// ready. The token of a probe need not permit more than that.
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
