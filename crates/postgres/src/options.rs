//! Connection strings, as libpq reads them.

mod parse;

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

/// How to reach a database: what a connection URL (`postgresql://…`) or a `key=value` string says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectionOptions {
    /// Where the server listens.
    pub host: Host,
    /// The address of a host name, given so that it is not looked up; the name is then only what certificates are
    /// checked against.
    pub host_address: Option<IpAddr>,
    /// The port, also part of a Unix socket's name.
    pub port: u16,
    /// The role.
    pub user: String,
    /// Its password.
    pub password: Option<Secret>,
    /// The database.
    pub database: String,
    /// Whether the connection is encrypted and how the server proves who it is.
    pub tls: TlsOptions,
    /// Whether the password exchange is tied to the server's certificate.
    pub channel_binding: ChannelBinding,
    /// How long one attempt to connect may take, from the first packet until the server takes queries. `None`: forever.
    pub connect_timeout: Option<Duration>,
    /// How long what was sent may stay without an acknowledgement before the connection counts as lost. `None`: as long as
    /// the system says.
    pub tcp_user_timeout: Option<Duration>,
    /// What `pg_stat_activity` shows.
    pub application_name: String,
    /// Command-line options for the server process.
    pub server_options: Option<String>,
}

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Host {
    /// A name or an address.
    Tcp(String),
    /// The folder of a Unix socket.
    Unix(PathBuf),
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Host::Tcp(name) => f.write_str(name),
            Host::Unix(folder) => folder.display().fmt(f),
        }
    }
}

/// `sslmode` and the files beside it. A Unix socket is never encrypted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsOptions {
    /// `sslmode`.
    pub mode: SslMode,
    /// `sslrootcert`. Without it the file `~/.postgresql/root.crt`, where it exists.
    pub roots: Option<RootCertificates>,
    /// `sslcert`: this client's certificate chain (PEM).
    pub certificate: Option<PathBuf>,
    /// `sslkey`: its private key (PEM, not encrypted).
    pub key: Option<PathBuf>,
}

/// Whom to trust.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RootCertificates {
    /// The authorities that the operating system trusts.
    System,
    /// Those in a PEM file.
    File(PathBuf),
}

/// Whether a connection is encrypted and what is checked of the server's certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SslMode {
    /// Never encrypted.
    Disable,
    /// Encrypted only where the server insists.
    Allow,
    /// Encrypted where the server can.
    Prefer,
    /// Encrypted. The certificate is checked where root certificates are at hand.
    Require,
    /// Encrypted; the certificate comes from a trusted authority.
    VerifyCa,
    /// Encrypted; the certificate comes from a trusted authority and names the host.
    VerifyFull,
}

/// Whether SCRAM has to be bound to the TLS connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChannelBinding {
    /// Not used.
    Disable,
    /// Used where both sides can.
    Prefer,
    /// Anything else is refused.
    Require,
}

/// A text that is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Takes a text that is not to be printed.
    pub fn new(text: impl Into<String>) -> Secret {
        Secret(text.into())
    }

    /// The text itself.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// A connection string that cannot be used. Never says a password.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OptionsError {
    /// Neither form of a connection string.
    #[error("the connection string is malformed: {0}")]
    Syntax(String),
    /// A key that libpq does not have either.
    #[error("unknown connection parameter `{key}`{}", .nearest.map(|n| format!("; did you mean `{n}`?")).unwrap_or_default())]
    UnknownKey {
        /// As written.
        key: String,
        /// The nearest known one.
        nearest: Option<&'static str>,
    },
    /// A key of libpq that means something which laredo cannot do.
    #[error("connection parameter `{0}` is not supported by laredo: remove it")]
    Unsupported(String),
    /// A value out of its range.
    #[error("connection parameter `{key}`: {problem}")]
    Value {
        /// The key.
        key: &'static str,
        /// What is wrong and what is possible.
        problem: String,
    },
}

impl ConnectionOptions {
    /// Reads a connection URL or a `key=value` string.
    ///
    /// # Errors
    /// When it is malformed, has an unknown key, or lacks a user.
    pub fn parse(text: &str) -> Result<ConnectionOptions, OptionsError> {
        parse::connection_string(text)
    }

    /// Where it leads, for people: no user, no password.
    #[must_use]
    pub fn address(&self) -> String {
        match &self.host {
            Host::Tcp(name) if name.contains(':') => format!("[{name}]:{}", self.port),
            Host::Tcp(name) => format!("{name}:{}", self.port),
            Host::Unix(folder) => folder.join(format!(".s.PGSQL.{}", self.port)).display().to_string(),
        }
    }
}
