//! The rule for orders: only this machine gives them, and no web page does.

use http::header::ORIGIN;
use http::{Extensions, HeaderMap, HeaderName};

use crate::peer::{PeerAddress, PeerInfo};

/// The header by which browsers say where a request comes from. No page can leave it out.
const FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// The reason why an order is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OrderRefusal {
    /// The order comes from another machine.
    #[error(
        "this is an order, because it changes something, and it came from {0}; orders are accepted only from the same \
         machine, over loopback (127.0.0.1) or a Unix socket: give it there"
    )]
    Remote(PeerAddress),
    /// The order comes from a page in a browser.
    #[error(
        "this is an order, because it changes something, and it came from a web page; pages may only read: give it by the \
         laredo command or by curl"
    )]
    WebPage,
    /// The address of the peer is not known. That is a fault of the server.
    #[error("this is an order, because it changes something, and the server does not know where it comes from")]
    Unknown,
}

/// Checks that an order may be given. The body of the request is not needed.
///
/// # Errors
/// Returns the reason for a refusal, which says what to do.
pub fn check_order(extensions: &Extensions, headers: &HeaderMap) -> Result<(), OrderRefusal> {
    check_page(headers)?;
    match extensions.get::<PeerInfo>() {
        Some(peer) if peer.address.is_local() => Ok(()),
        Some(peer) => Err(OrderRefusal::Remote(peer.address)),
        None => Err(OrderRefusal::Unknown),
    }
}

/// Checks that an order does not come from a web page.
///
/// # Errors
/// Returns [`OrderRefusal::WebPage`] if it does.
pub(crate) fn check_page(headers: &HeaderMap) -> Result<(), OrderRefusal> {
    match headers.contains_key(ORIGIN) || headers.contains_key(FETCH_SITE) {
        true => Err(OrderRefusal::WebPage),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use http::HeaderValue;

    use super::*;

    fn checked(peer: Option<PeerAddress>, headers: &[(&'static str, &'static str)]) -> Result<(), OrderRefusal> {
        let mut extensions = Extensions::new();
        if let Some(address) = peer {
            extensions.insert(PeerInfo { address, has_tls: false, certificates: Arc::new([]) });
        }
        let headers = headers.iter().map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_static(v)));
        check_order(&extensions, &headers.collect())
    }

    #[test]
    fn orders_come_from_this_machine_and_from_no_page() {
        let here = PeerAddress::Tcp("127.0.0.1:5".parse().unwrap());
        let there = PeerAddress::Tcp("10.0.0.9:5".parse().unwrap());
        assert_eq!(checked(Some(here), &[]), Ok(()));
        assert_eq!(checked(Some(PeerAddress::Unix), &[]), Ok(()));
        assert_eq!(checked(Some(there), &[]), Err(OrderRefusal::Remote(there)));
        assert_eq!(checked(None, &[]), Err(OrderRefusal::Unknown));
        for header in [("origin", "http://localhost"), ("origin", "null"), ("sec-fetch-site", "same-origin")] {
            assert_eq!(checked(Some(here), &[header]), Err(OrderRefusal::WebPage), "{header:?}");
        }
    }
}
