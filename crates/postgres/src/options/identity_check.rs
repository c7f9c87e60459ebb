//! The warning about a connection that may lead to another server than the right one.

use std::net::IpAddr;

use super::{ConnectionOptions, Host, SslMode};

impl ConnectionOptions {
    /// Returns a warning if the connection leaves this machine and does not check that the server
    /// is the right one. `None` for a socket, for a loopback address and for `verify-full`.
    #[must_use]
    pub fn identity_warning(&self) -> Option<String> {
        let (mode, danger) = match self.tls.mode {
            SslMode::VerifyFull => return None,
            SslMode::VerifyCa => {
                ("verify-ca", "accepts every server with a certificate of a trusted authority, whatever its name")
            }
            SslMode::Require => ("require", "does not check that the server is the right one"),
            SslMode::Prefer => ("prefer", "does not check that the server is the right one, nor that TLS is used"),
            SslMode::Allow => ("allow", "does not check that the server is the right one, nor that TLS is used"),
            SslMode::Disable => ("disable", "sends everything unencrypted"),
        };
        let advice = "set sslmode=verify-full and sslrootcert=FILE";
        let address = self.address();
        (!self.stays_on_machine()).then(|| {
            format!("sslmode={mode} to {address} {danger}, so others may get the password and the rows; {advice}")
        })
    }

    fn stays_on_machine(&self) -> bool {
        let is_loopback = |address: IpAddr| address.to_canonical().is_loopback();
        match (&self.host, self.host_address) {
            (Host::Unix(_), _) => true,
            (Host::Tcp(_), Some(address)) => is_loopback(address),
            (Host::Tcp(name), None) => {
                name.parse().map_or_else(|_| name.eq_ignore_ascii_case("localhost"), is_loopback)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_connection_that_leaves_the_machine_unchecked_is_named() {
        let warning = |text: &str| ConnectionOptions::parse(text).unwrap().identity_warning();
        for mode in ["disable", "allow", "prefer", "require", "verify-ca"] {
            for host in ["host=db.example", "host=10.0.0.1", "hostaddr=10.0.0.1", "host=localhost hostaddr=10.0.0.1"] {
                let text = format!("{host} user=u password=hunter2 sslmode={mode}");
                let said = warning(&text).expect(&text);
                assert!(said.contains(&format!("sslmode={mode}")) && said.contains("verify-full"), "{said}");
                assert!(!said.contains("hunter2"), "{said}");
            }
            for host in
                ["host=/tmp", "host=localhost", "host=127.0.0.9", "host=::1", "host=db.example hostaddr=127.0.0.1"]
            {
                assert_eq!(warning(&format!("{host} user=u sslmode={mode}")), None, "{host}");
            }
        }
        assert_eq!(warning("host=db.example user=u sslmode=verify-full"), None);
        assert_eq!(warning("host=db.example user=u sslrootcert=system"), None);
        assert!(warning("host=db.example user=u").is_some(), "the default is prefer");
    }
}
