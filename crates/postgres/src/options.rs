//! Connection strings, as libpq reads them.

mod identity_check;
mod parse;
mod password;
mod require_auth;

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

pub use password::{PasswordCommand, PasswordSource};
pub(crate) use require_auth::AuthMethod;
pub use require_auth::RequiredAuth;

/// The options of a connection, from a connection URL (`postgresql://…`) or a `key=value` string.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectionOptions {
    /// The address or the socket folder where the server listens.
    pub host: Host,
    /// The IP address of the host, used instead of looking up its name. The name is then only used
    /// to check certificates.
    pub host_address: Option<IpAddr>,
    /// The port, which is also a part of a Unix socket's name.
    pub port: u16,
    /// The role to connect as.
    pub user: String,
    /// The place that the role's password comes from.
    pub password: PasswordSource,
    /// The ways to log in that are allowed.
    pub require_auth: RequiredAuth,
    /// The name of the database.
    pub database: String,
    /// The encryption of the connection and the checks of the server's certificate.
    pub tls: PostgresTlsOptions,
    /// The binding of the password exchange to the server's certificate.
    pub channel_binding: ChannelBinding,
    /// The longest time that one attempt to connect may take, from the first packet until the
    /// server accepts queries. `None` is no limit.
    pub connect_timeout: Option<Duration>,
    /// The longest time that sent data may stay unacknowledged by TCP before the connection counts
    /// as lost. `None` is the operating system's limit. Only used on Linux.
    pub tcp_user_timeout: Option<Duration>,
    /// The name that `pg_stat_activity` shows, before the suffix for the session's work.
    pub application_name: String,
    /// Command-line options for the server process.
    pub server_options: Option<String>,
}

/// The work that a session does, which is a part of the name that `pg_stat_activity` shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SessionWork {
    /// Receiving the replication stream.
    Stream,
    /// Copying a table.
    Copy,
    /// Comparing a table's rows in the database with those that laredo has.
    Verify,
    /// Watching the tables' definitions.
    Watch,
    /// Watching the replication slot.
    Slot,
    /// Checking and preparing the source, or answering a question about it. These sessions are
    /// short.
    Check,
}

impl SessionWork {
    fn name(self) -> &'static str {
        match self {
            SessionWork::Stream => "stream",
            SessionWork::Copy => "copy",
            SessionWork::Verify => "verify",
            SessionWork::Watch => "watch",
            SessionWork::Slot => "slot",
            SessionWork::Check => "check",
        }
    }
}

/// The address where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Host {
    /// A host name or an IP address.
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

/// The value of `sslmode` and the certificate files. A Unix socket is never encrypted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PostgresTlsOptions {
    /// The value of `sslmode`.
    pub mode: SslMode,
    /// The value of `sslrootcert`. The default is the file `~/.postgresql/root.crt`, if it exists.
    pub roots: Option<RootCertificates>,
    /// The value of `sslcert`: this client's certificate chain (PEM).
    pub certificate: Option<PathBuf>,
    /// The value of `sslkey`: this client's private key (PEM, not encrypted).
    pub key: Option<PathBuf>,
}

/// The authorities that are trusted to sign a server's certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RootCertificates {
    /// The authorities that the operating system trusts.
    System,
    /// The authorities in a PEM file.
    File(PathBuf),
}

/// The rule for encrypting a connection and for checking the server's certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SslMode {
    /// Never encrypted.
    Disable,
    /// Encrypted only if the server insists.
    Allow,
    /// Encrypted if the server supports it.
    Prefer,
    /// Encrypted. The certificate is checked if root certificates are available.
    Require,
    /// Encrypted. The certificate has to come from a trusted authority.
    VerifyCa,
    /// Encrypted. The certificate has to come from a trusted authority and to name the host.
    VerifyFull,
}

/// The rule for binding SCRAM to the TLS connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChannelBinding {
    /// Binding is not used.
    Disable,
    /// Binding is used if both sides support it.
    Prefer,
    /// Binding is required; any other exchange is refused.
    Require,
}

/// A text that is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretText(String);

impl SecretText {
    /// Wraps a text that must not be printed.
    pub fn new(text: impl Into<String>) -> SecretText {
        SecretText(text.into())
    }

    /// Returns the text itself.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for SecretText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// An error in a connection string. The message never contains a password.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConnectionStringError {
    /// Text that is neither form of a connection string.
    #[error("the connection string is malformed: {0}")]
    Syntax(String),
    /// A key that libpq does not have either.
    #[error("unknown connection parameter `{key}`{}", .nearest.map(|n| format!("; did you mean `{n}`?")).unwrap_or_default())]
    UnknownKey {
        /// The key as written.
        key: String,
        /// The known key with the most similar name.
        nearest: Option<&'static str>,
    },
    /// A key of libpq that laredo does not support.
    #[error("connection parameter `{0}` is not supported by laredo: remove it")]
    Unsupported(String),
    /// A value that is invalid or out of range.
    #[error("connection parameter `{key}`: {problem}")]
    Value {
        /// The key.
        key: &'static str,
        /// The problem and the values that are possible.
        problem: String,
    },
}

impl ConnectionOptions {
    /// Parses a connection URL or a `key=value` string.
    ///
    /// # Errors
    /// Fails if the text is malformed, has an unknown or unsupported key or an invalid value, or
    /// names no user.
    pub fn parse(text: &str) -> Result<ConnectionOptions, ConnectionStringError> {
        parse::connection_string(text)
    }

    /// Returns a connection string whose passwords are replaced by `mask`. `None` if the text
    /// cannot be read as a connection string, so that a password in it cannot be found.
    #[must_use]
    pub fn masked(text: &str, mask: &str) -> Option<String> {
        parse::masked(text, mask).ok()
    }

    /// Returns the options for a session that does this work, with its name in `application_name`.
    pub(crate) fn for_work(&self, work: SessionWork) -> ConnectionOptions {
        let application_name = format!("{} {}", self.application_name, work.name());
        ConnectionOptions { application_name, ..self.clone() }
    }

    /// Returns the server's address for people, without user and password.
    #[must_use]
    pub fn address(&self) -> String {
        match &self.host {
            Host::Tcp(name) if name.contains(':') => format!("[{name}]:{}", self.port),
            Host::Tcp(name) => format!("{name}:{}", self.port),
            Host::Unix(folder) => folder.join(format!(".s.PGSQL.{}", self.port)).display().to_string(),
        }
    }
}
