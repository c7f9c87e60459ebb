//! The JWTs that prove an identity.

use std::path::PathBuf;
use std::time::Duration;

use http::Uri;
use laredo_server::JwtAlgorithm;

use super::super::declaration::{config_block, key, optional, required, texts};
use super::super::fields::BlockFields;
use super::super::reader::ConfigReader;
use super::super::schema::{SettingKind, TEXT};
use super::access::claims;

config_block! {
    /// The JWTs that prove an identity, and the keys that they are signed with. Without `jwks_file`
    /// and `jwks_url`, the issuer's address has the keys' address, as in OpenID Connect
    /// (`/.well-known/openid-configuration`).
    pub struct JwtConfig [JwtConfig::check] {
        /// The issuer, exactly as the claim `iss` has it.
        pub issuer: String = required("issuer", TEXT),
        /// The audiences. The claim `aud` must have one of them.
        pub audiences: Vec<String> = texts("audiences", SettingKind::List(&TEXT), "").must_be_given(),
        /// The file of the issuer's keys, a JSON Web Key Set. It is read again when it changes, and
        /// on SIGHUP.
        pub jwks_file: Option<PathBuf> = optional("jwks_file", TEXT, "none"),
        /// The address of the issuer's keys. They are read at the start, then as often as the
        /// answer's `Cache-Control` says (1 minute to 1 hour), and for a key that is not known.
        pub jwks_url: Option<String> = optional("jwks_url", KEY_URL, "the one that the issuer names"),
        /// The authorities (PEM) that the address of the keys is checked against.
        pub ca_file: Option<PathBuf> = optional("ca_file", TEXT, "the system's"),
        /// A file with the bearer token for the address of the keys, which a Kubernetes API server
        /// may require. It is read for each request.
        pub token_file: Option<PathBuf> = optional("token_file", TEXT, "none"),
        /// The algorithms of signatures that are accepted.
        pub algorithms: Vec<String> = texts("algorithms", SettingKind::List(&ALGORITHM), "`RS256`, `ES256`, `EdDSA`"),
        /// The subjects (`sub`) that are accepted. A `*` matches a part between colons, as in
        /// `system:serviceaccount:shop:*`.
        pub subjects: Vec<String> = texts("subjects", SettingKind::List(&TEXT), "all"),
        /// The claims that a JWT must have, all of them. A name with dots is a path into objects,
        /// and a list must have the value.
        pub required_claims: Vec<(String, String)> = claims("required_claims", "none"),
        /// The tolerated difference between the clocks of the issuer and the server.
        pub leeway: Duration = key("leeway", LEEWAY, || Duration::from_secs(60)),
    }
}

const KEY_URL: SettingKind = SettingKind::Text {
    accepts: is_key_url,
    expected: "an address such as https://issuer.example/jwks.json (http:// only for this machine)",
};

const ALGORITHM: SettingKind = SettingKind::Text {
    accepts: |text| JwtAlgorithm::from_name(text).is_some(),
    expected: "RS256, RS384, RS512, PS256, PS384, PS512, ES256, ES384 or EdDSA",
};

const LEEWAY: SettingKind = SettingKind::Time { min: Duration::ZERO, max: Duration::from_secs(600) };

/// Returns true if keys may be read from an address: by TLS, or from this machine.
pub(crate) fn is_key_url(text: &str) -> bool {
    let Ok(uri) = text.parse::<Uri>() else { return false };
    let (Some(host), Some(authority)) = (uri.host(), uri.authority()) else { return false };
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<std::net::IpAddr>();
    let is_local = host == "localhost" || address.is_ok_and(|address| address.is_loopback());
    let has_scheme = uri.scheme_str() == Some("https") || uri.scheme_str() == Some("http") && is_local;
    // A password in an address would be in logs and metrics.
    has_scheme && !host.is_empty() && !authority.as_str().contains('@')
}

impl JwtConfig {
    fn check(&mut self, fields: &BlockFields, reader: &mut ConfigReader) {
        for list in ["audiences", "algorithms", "subjects"] {
            if fields.has(list) && fields.item_count(list) == 0 {
                reader.report(fields, list, "is empty, so no JWT would be accepted; name at least one");
            }
        }
        match (&self.jwks_file, &self.jwks_url) {
            (Some(_), Some(_)) => reader.report(fields, "jwks_url", "is given as well as jwks_file; keep one of them"),
            (Some(_), None) => {
                for unused in ["ca_file", "token_file"].into_iter().filter(|key| fields.has(key)) {
                    reader.report(fields, unused, "has a meaning only without jwks_file");
                }
            }
            (None, None) if !fields.has("jwks_url") && fields.has("issuer") && !is_key_url(&self.issuer) => {
                let message =
                    "is not an https:// address, so its keys cannot be found there; set jwks_url or jwks_file";
                reader.report(fields, "issuer", message);
            }
            (None, _) => {}
        }
    }

    /// Returns the algorithms that are accepted.
    pub(crate) fn accepted_algorithms(&self) -> Vec<JwtAlgorithm> {
        match self.algorithms.is_empty() {
            true => JwtAlgorithm::DEFAULT.to_vec(),
            // The configuration accepts only valid names.
            false => self.algorithms.iter().filter_map(|name| JwtAlgorithm::from_name(name)).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_come_by_tls_or_from_this_machine() {
        for right in [
            "https://issuer.example",
            "https://issuer.example:8443/realms/a/protocol/openid-connect/certs?x=y",
            "https://10.0.0.1/jwks",
            "http://localhost:1/jwks",
            "http://127.0.0.1/",
            "http://[::1]:8080/jwks",
        ] {
            assert!(is_key_url(right), "{right}");
        }
        for wrong in [
            "",
            "issuer.example",
            "/jwks.json",
            "http://issuer.example/jwks",
            "http://10.0.0.1/jwks",
            "http://localhost.example/jwks",
            "http://127.0.0.1.example/jwks",
            "https://user:password@issuer.example/jwks",
            "https://",
            "ftp://localhost/jwks",
            "file:///etc/jwks.json",
            "https://a b/",
        ] {
            assert!(!is_key_url(wrong), "{wrong}");
        }
    }
}
