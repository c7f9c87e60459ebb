//! Listening ports.

use laredo_server::{AllowedHosts, ListenAddress, PortListener, ServerTls};

/// Listens on a port at an address. The error is a sentence that names the port and `what` it is
/// for.
pub(crate) async fn bind(
    address: &ListenAddress,
    port: u16,
    what: &str,
    tls: Option<ServerTls>,
) -> Result<PortListener, String> {
    let bound = PortListener::bind(address, port).await.map(|listener| listener.with_tls(tls));
    bound.map_err(|error| match address {
        ListenAddress::Unix(path) => {
            format!(
                "cannot listen on {} ({what}): {error}; choose another path in a folder that this user may write to, or stop \
                 the program that uses it",
                path.display()
            )
        }
        ListenAddress::All => {
            format!(
                "cannot listen on port {port} ({what}): {error}; choose another port, or stop the program that uses it"
            )
        }
        ListenAddress::Ip(ip) => {
            format!(
                "cannot listen on port {port} of {ip} ({what}): {error}; choose another port or an address of this machine, \
                 or stop the program that uses it"
            )
        }
    })
}

/// Returns the text for a port of the configuration.
pub(crate) fn configured_port(key: &str, address: &ListenAddress, port: u16) -> String {
    format!("{key} {}", address.with_port(port))
}

/// Logs a port, and who may do what there.
pub(crate) fn log_port(listener: &PortListener, key: &str, is_local: bool, reads: &str) {
    let from = if is_local { "this machine" } else { "every host that reaches the port" };
    let tls = listener.tls().is_some();
    tracing::info!(
        event = "listening",
        key,
        address = listener.address(),
        tls,
        reads = format!("{reads}, by {from}"),
        "listening"
    );
}

/// Returns the configured names, and that of this machine.
pub(crate) fn allowed_hosts(names: &[String]) -> AllowedHosts {
    let own = rustix::system::uname().nodename().to_string_lossy().into_owned();
    AllowedHosts::new(names.iter().cloned().chain([own]))
}
