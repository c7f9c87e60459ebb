//! The files of the TLS of ports: they are read at the start, when they change, and on SIGHUP.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use laredo_server::{ClientCertificates, ServerTls, ServerTlsOptions, TlsFile, TlsFileProblem};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::config::{CertificateDemand, PortTlsConfig};

/// The interval at which files that may be replaced are read again.
pub(crate) const READ_INTERVAL: Duration = Duration::from_secs(10);
/// The time before the end of a certificate from which the program warns, and the interval of the
/// warnings.
const EXPIRY_NOTICE: Duration = Duration::from_secs(14 * 24 * 60 * 60);
const WARN_INTERVAL: Duration = Duration::from_secs(24 * 60 * 60);

/// The TLS of a program's ports, and the files that it comes from.
#[derive(Default)]
pub(crate) struct PortCertificates(Vec<LoadedFiles>);

/// The files of one `tls` block, as they were last read.
struct LoadedFiles {
    /// The path of the block: `grpc.tls`.
    key: &'static str,
    config: PortTlsConfig,
    tls: ServerTls,
    /// The result of the last reading, so that the same problem is logged once.
    last: Result<ServerTlsOptions, Vec<String>>,
    warned_at: Option<Instant>,
}

impl PortCertificates {
    /// Reads and checks the files of a `tls` block, whose path is `key`. Adds every problem.
    pub(crate) fn load(
        &mut self,
        key: &'static str,
        config: Option<&PortTlsConfig>,
        problems: &mut Vec<String>,
    ) -> Option<ServerTls> {
        let config = config?;
        let opened = read(key, config).and_then(|options| {
            let tls = ServerTls::new(config.cert_path.display().to_string(), &options);
            Ok((tls.map_err(|problems| problem_texts(key, config, problems))?, options))
        });
        match opened {
            Ok((tls, options)) => {
                let last = Ok(options);
                self.0.push(LoadedFiles { key, config: config.clone(), tls: tls.clone(), last, warned_at: None });
                Some(tls)
            }
            Err(found) => {
                problems.extend(found);
                None
            }
        }
    }

    /// Returns the certificates, in the order of their ports.
    pub(crate) fn certificates(&self) -> Vec<ServerTls> {
        self.0.iter().map(|files| files.tls.clone()).collect()
    }

    /// Reads the files again when they change and on SIGHUP. It never returns without an error.
    ///
    /// # Errors
    /// Returns an error if the signal cannot be waited for.
    pub(crate) async fn keep_current(mut self) -> anyhow::Result<()> {
        let mut hangups = signal(SignalKind::hangup()).context("waiting for SIGHUP")?;
        let mut ticks = interval(READ_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                _ = hangups.recv() => {}
            }
            // Files may be on a slow or a remote disk.
            self = tokio::task::spawn_blocking(move || {
                self.0.iter_mut().for_each(LoadedFiles::update);
                self
            })
            .await
            .context("reading the files of TLS")?;
        }
    }
}

impl LoadedFiles {
    /// Reads the files, and replaces the certificate if they have changed.
    fn update(&mut self) {
        let new = read(self.key, &self.config);
        if new != self.last {
            let replaced = new.as_ref().map_err(Clone::clone).and_then(|options| {
                self.tls.replace(options).map_err(|problems| problem_texts(self.key, &self.config, problems))
            });
            match replaced {
                Ok(()) => tracing::info!(
                    event = "certificate_replaced",
                    key = self.key,
                    file = self.tls.name(),
                    "the certificate was replaced"
                ),
                Err(problems) => problems.iter().for_each(|problem| {
                    tracing::error!(
                        event = "certificate_not_replaced",
                        "{problem}; the previous certificate remains until the file is right"
                    );
                }),
            }
            self.last = new;
        }
        self.warn_of_expiry();
    }

    /// Warns once a day if the certificate expires soon.
    fn warn_of_expiry(&mut self) {
        let left = self.tls.not_after().saturating_sub(unix_seconds());
        let is_soon = left < EXPIRY_NOTICE.as_secs().cast_signed();
        if is_soon && self.warned_at.is_none_or(|at| at.elapsed() >= WARN_INTERVAL) {
            self.warned_at = Some(Instant::now());
            let (key, file, days) = (self.key, self.tls.name(), left / (24 * 60 * 60));
            tracing::warn!(
                event = "certificate_expires",
                key,
                file,
                days,
                "the certificate expires soon, or has expired; renew it"
            );
        }
    }
}

fn read(block: &str, config: &PortTlsConfig) -> Result<ServerTlsOptions, Vec<String>> {
    let mut problems = Vec::new();
    let mut read = |key: &str, path: &Path| {
        std::fs::read(path).unwrap_or_else(|error| {
            problems.push(format!("{block}.{key}: cannot read {}: {error}", path.display()));
            Vec::new()
        })
    };
    let certificate = read("cert_path", &config.cert_path);
    let key = read("key_path", &config.key_path);
    let client_ca = config.client_ca_path.as_ref().map(|path| read("client_ca_path", path));
    let client_certificates = match config.client_certificates {
        CertificateDemand::Required => ClientCertificates::Required,
        CertificateDemand::Optional => ClientCertificates::Optional,
    };
    let options = ServerTlsOptions { certificate, key, client_ca, client_certificates };
    if problems.is_empty() { Ok(options) } else { Err(problems) }
}

fn problem_texts(block: &str, config: &PortTlsConfig, problems: Vec<TlsFileProblem>) -> Vec<String> {
    let text = |(file, problem): TlsFileProblem| {
        let (key, path) = match file {
            TlsFile::Certificate => ("cert_path", Some(&config.cert_path)),
            TlsFile::Key => ("key_path", Some(&config.key_path)),
            TlsFile::ClientCa => ("client_ca_path", config.client_ca_path.as_ref()),
        };
        let path = path.map(|path: &PathBuf| path.display().to_string()).unwrap_or_default();
        format!("{block}.{key}: {path}: {problem}; name a valid PEM file")
    };
    problems.into_iter().map(text).collect()
}

#[expect(clippy::disallowed_methods, reason = "the program's edge: certificates have calendar times")]
fn unix_seconds() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}
