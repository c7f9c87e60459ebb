use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};

use crate::{HarnessError, Result};

/// TLS for a private cluster, with a certificate of a test authority.
#[derive(Debug, Clone)]
pub struct ClusterTls {
    /// The names and addresses that the certificate is valid for.
    pub hosts: Vec<String>,
}

impl Default for ClusterTls {
    fn default() -> Self {
        Self { hosts: vec!["localhost".to_owned(), "127.0.0.1".to_owned()] }
    }
}

impl ClusterTls {
    /// Writes `ca.crt`, `server.crt` and `server.key` (PEM) into `dir`.
    pub(crate) fn write(&self, dir: &Path) -> Result<()> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let name = &mut params.distinguished_name;
        name.push(DnType::CommonName, "laredo test authority");
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;

        let key = KeyPair::generate()?;
        let server = CertificateParams::new(self.hosts.clone())?.signed_by(&key, &authority)?;
        let files = [("ca.crt", authority.pem()), ("server.crt", server.pem()), ("server.key", key.serialize_pem())];
        for (file, pem) in files {
            let path = dir.join(file);
            // PostgreSQL refuses a key that others can read.
            let mode = if file == "server.key" { 0o600 } else { 0o644 };
            fs::write(&path, pem)
                .and_then(|()| fs::set_permissions(&path, Permissions::from_mode(mode)))
                .map_err(HarnessError::io(format!("write {}", path.display())))?;
        }
        Ok(())
    }
}
