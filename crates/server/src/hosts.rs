//! The names by which clients may call this server.
//!
//! A page in a browser can point a name of its own at the address of a server. The browser then
//! takes the server for the page's own, and lets the page read its answers. The name is in each
//! request, so a request for a name that such a page can have is refused.
//!
//! No page can have an IP address, a name without a dot, or a name under a domain that is not
//! public. With TLS the browser compares the name with the certificate, and no browser reaches a
//! Unix socket.

use std::net::IpAddr;
use std::sync::Arc;

use http::header::{CONTENT_TYPE, HOST};
use http::uri::Authority;
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::Full;
use tonic::Status;
use tonic::body::Body;

use crate::peer::{PeerAddress, PeerInfo};

/// The domains under which no name is public.
const PRIVATE_DOMAINS: [&str; 5] = ["localhost", "local", "internal", "test", "home.arpa"];
/// The word for every name.
const ALL: &str = "*";
/// The prefix for all names under a domain.
const UNDER: &str = "*.";

/// The names of hosts that requests in plain text may name, in addition to those that no web page
/// can have.
#[derive(Clone, Debug, Default)]
pub struct AllowedHosts(Arc<[String]>);

/// A request for a host that is not allowed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "this server is not known as `{0}`; call it by its IP address, use TLS, or add the name to `allowed_hosts` in its \
     configuration"
)]
pub(crate) struct HostRefusal(String);

impl AllowedHosts {
    /// Allows these names. `*.example.com` allows all names under `example.com`, and `*` every
    /// name.
    #[must_use]
    pub fn new(names: impl IntoIterator<Item = String>) -> AllowedHosts {
        AllowedHosts(names.into_iter().map(|name| normalized(&name)).collect())
    }

    /// Checks the host that a request names. A request that names none is not a browser's.
    ///
    /// # Errors
    /// Returns an error if the host is not allowed.
    pub(crate) fn check<B>(&self, request: &Request<B>) -> Result<(), HostRefusal> {
        let is_safe = |peer: &PeerInfo| peer.has_tls || peer.address == PeerAddress::Unix;
        if request.extensions().get::<PeerInfo>().is_some_and(is_safe) {
            return Ok(());
        }
        let named = request.uri().authority().map(|authority| authority.as_str().as_bytes());
        let headers = request.headers().get_all(HOST).iter().map(HeaderValue::as_bytes);
        for host in named.into_iter().chain(headers) {
            let name = Authority::try_from(host).map(|authority| normalized(authority.host()));
            if !name.is_ok_and(|name| self.allows(&name)) {
                return Err(HostRefusal(String::from_utf8_lossy(host).into_owned()));
            }
        }
        Ok(())
    }

    fn allows(&self, name: &str) -> bool {
        let is_under = |domain: &str| name.strip_suffix(domain).is_some_and(|rest| rest.ends_with('.'));
        let bare = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
        let is_private = !name.contains('.') || PRIVATE_DOMAINS.into_iter().any(is_under);
        bare.parse::<IpAddr>().is_ok()
            || is_private
            || self.0.iter().any(|allowed| match allowed.strip_prefix(UNDER) {
                Some(domain) => is_under(domain),
                None => allowed == ALL || allowed == name,
            })
    }
}

/// Returns a name as it is compared: in small letters, and without the dot of the root.
fn normalized(name: &str) -> String {
    name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase()
}

/// Returns the answer to a request for a host that is not allowed. A client in gRPC finds its
/// status in the headers.
pub(crate) fn misdirected(refused: &HostRefusal) -> Response<Body> {
    let mut response = Response::new(Body::new(Full::from(format!("{refused}\n"))));
    *response.status_mut() = StatusCode::MISDIRECTED_REQUEST;
    let headers = response.headers_mut();
    // The message is text, which every header can have after its encoding.
    let _ = Status::permission_denied(refused.to_string()).add_header(headers);
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(uri: &str, hosts: &[&str], peer: Option<PeerInfo>) -> Request<()> {
        let mut request = Request::builder().uri(uri);
        for host in hosts {
            request = request.header(HOST, *host);
        }
        let mut request = request.body(()).unwrap();
        peer.map(|peer| request.extensions_mut().insert(peer));
        request
    }

    fn is_allowed(hosts: &[&str]) -> bool {
        let allowed = AllowedHosts::new(["Laredo.Example.COM", "*.corp.example"].map(str::to_owned));
        allowed.check(&request("/", hosts, None)).is_ok()
    }

    #[test]
    fn only_names_that_no_page_can_have_are_allowed_and_those_that_are_listed() {
        for host in [
            "127.0.0.1:4001",
            "10.0.0.1",
            "[::1]:4001",
            "[fd00::2]",
            "localhost",
            "LOCALHOST:80",
            "a.localhost",
            "laredo:4002",
            "laredo.default.svc.cluster.local:4002",
            "laredo.internal.",
            "laredo.example.com:9",
            "LAREDO.example.com.",
            "a.b.corp.example",
        ] {
            assert!(is_allowed(&[host]), "{host}");
        }
        for host in [
            "evil.example",
            "laredo.example.com.evil.example",
            "evil-laredo.example.com",
            "corp.example",
            "xcorp.example",
            "127.0.0.1.evil.example",
            "notlocalhost.com",
            "evil.example:4001",
            "user@evil.example",
            "",
            "a b",
        ] {
            assert!(!is_allowed(&[host]), "{host}");
        }
        assert!(is_allowed(&[]), "not a browser");
        assert!(!is_allowed(&["localhost", "evil.example"]), "each of two is checked");
    }

    #[test]
    fn the_authority_of_http_2_is_checked_and_tls_checks_for_itself() {
        let none = AllowedHosts::default();
        none.check(&request("http://evil.example/", &[], None)).unwrap_err();
        none.check(&request("http://evil.example/", &["localhost"], None)).unwrap_err();
        none.check(&request("http://10.0.0.1/", &[], None)).unwrap();
        let peer = |address, has_tls| Some(PeerInfo { address, has_tls, certificates: Arc::new([]) });
        let tcp = PeerAddress::Tcp("10.0.0.1:1".parse().unwrap());
        none.check(&request("https://evil.example/", &[], peer(tcp, true))).unwrap();
        none.check(&request("http://evil.example/", &[], peer(PeerAddress::Unix, false))).unwrap();
        none.check(&request("http://evil.example/", &[], peer(tcp, false))).unwrap_err();
        AllowedHosts::new(["*".to_owned()]).check(&request("http://evil.example/", &[], None)).unwrap();
    }
}
