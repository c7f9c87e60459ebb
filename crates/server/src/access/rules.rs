//! The access rules of a running server. They can be replaced while streams are open.

use std::sync::Arc;

use http::HeaderMap;
use laredo_engine::Clock;
use tokio::sync::watch;
use tonic::Status;

use super::caller::Caller;
use super::control::{AccessControl, AccessOptions, RequiredRight, required_right};
use super::credential::{CallerCredential, UnknownIdentity};
use super::jwt::JwtKeys;
use crate::peer::{PeerAddress, PeerInfo};
use crate::refusal;

/// The access rules of a server. Clones share the same rules.
#[derive(Clone)]
pub struct AccessRules(Arc<watch::Sender<Arc<AccessControl>>>);

/// The rules that a call was admitted by, and the ones that have replaced them.
#[derive(Clone)]
pub(super) struct RulesReceiver {
    control: Arc<AccessControl>,
    newest: watch::Receiver<Arc<AccessControl>>,
}

impl AccessRules {
    /// Makes the rules of a server. The clock decides when tokens expire.
    #[must_use]
    pub fn new(options: AccessOptions, clock: Clock) -> AccessRules {
        AccessRules(Arc::new(watch::Sender::new(Arc::new(AccessControl::new(options, clock)))))
    }

    /// Replaces the rules. When this returns, calls are admitted by the new rules alone.
    ///
    /// An open stream sends no further message if the new rules refuse its caller or grant another
    /// part of its table. It ends with the status of the refusal, or with UNAVAILABLE if the client
    /// only has to begin again. Other streams continue. The usage of identities is kept.
    pub fn replace(&self, options: AccessOptions) {
        self.0.send_modify(|control| *control = Arc::new(control.with_options(options)));
    }

    /// Publishes the same rules again if the keys of an issuer were replaced since, so that open
    /// calls are judged by the new keys.
    pub(crate) fn publish_new_keys(&self) {
        self.0.send_if_modified(|control| {
            let has_new_keys = control.has_new_keys();
            if has_new_keys {
                *control = Arc::new(control.with_options(control.options().clone()));
            }
            has_new_keys
        });
    }

    /// Checks that a caller may call the rpc at a path.
    ///
    /// # Errors
    /// UNAUTHENTICATED if the caller's identity is unknown, UNAVAILABLE if the keys of its JWT were
    /// never read, PERMISSION_DENIED if no grant covers the call, and UNIMPLEMENTED if there is no
    /// such rpc.
    pub(crate) fn admit(
        &self,
        path: &str,
        headers: &HeaderMap,
        peer: Option<&PeerInfo>,
    ) -> Result<Caller, CallRefusal> {
        let (right, rules) = (required_right(path), self.receiver());
        if right == Some(RequiredRight::Health) && rules.control.health_is_open() {
            // A known caller may ask for tables, too.
            let known = identify(headers, peer, rules.clone());
            return Ok(known.unwrap_or_else(|_| Caller::anonymous(peer, rules)));
        }
        let unknown = |unknown: UnknownIdentity| CallRefusal::new(None, peer, unknown.into());
        let caller = identify(headers, peer, rules).map_err(unknown)?;
        let Some(right) = right else {
            return Err(CallRefusal::of(&caller, refusal::no_method(path)));
        };
        caller.check_right(right).map_err(|denied| CallRefusal::of(&caller, denied))?;
        Ok(caller)
    }

    /// Checks that a caller may read states, or metrics if `is_metrics`. Returns a caller without
    /// rights for one who is not known and may have the answer without details.
    ///
    /// # Errors
    /// As [`AccessRules::admit`].
    pub(crate) fn admit_http(
        &self,
        is_metrics: bool,
        headers: &HeaderMap,
        peer: Option<&PeerInfo>,
    ) -> Result<Caller, CallRefusal> {
        let rules = self.receiver();
        let is_open = if is_metrics { rules.control.metrics_are_open() } else { rules.control.health_is_open() };
        let caller = match identify(headers, peer, rules.clone()) {
            Ok(caller) => caller,
            Err(UnknownIdentity::Missing) if is_open => return Ok(Caller::anonymous(peer, rules)),
            Err(unknown) => return Err(CallRefusal::new(None, peer, unknown.into())),
        };
        if !is_open {
            caller.check_right(RequiredRight::State).map_err(|denied| CallRefusal::of(&caller, denied))?;
        }
        Ok(caller)
    }

    /// Waits for the key of the caller's JWT, within a bound, if the key is not known yet.
    pub(crate) async fn await_key(&self, headers: &HeaderMap) {
        if let Ok(CallerCredential::Jwt(token)) = CallerCredential::read(headers, None) {
            self.receiver().control.await_key(&token).await;
        }
    }

    /// Returns the keys of all issuers of JWTs, each once.
    pub(crate) fn jwt_keys(&self) -> Vec<JwtKeys> {
        self.receiver().control.jwt_keys()
    }

    fn receiver(&self) -> RulesReceiver {
        let mut newest = self.0.subscribe();
        let control = newest.borrow_and_update().clone();
        RulesReceiver { control, newest }
    }
}

fn identify(headers: &HeaderMap, peer: Option<&PeerInfo>, rules: RulesReceiver) -> Result<Caller, UnknownIdentity> {
    let credential = CallerCredential::read(headers, peer)?;
    let identity = rules.control.identify(&credential)?;
    Ok(Caller::identified(peer, credential, identity, rules))
}

impl RulesReceiver {
    /// Returns the rules that the call was last judged by.
    pub(super) fn control(&self) -> &Arc<AccessControl> {
        &self.control
    }

    /// Returns the rules of the server at this moment.
    pub(super) fn newest(&self) -> Arc<AccessControl> {
        self.newest.borrow().clone()
    }

    /// Waits until the rules have been replaced, and takes the new ones. The call is cancel-safe.
    pub(super) async fn replaced(&mut self) {
        if self.newest.changed().await.is_err() {
            // The server has ended, and nothing replaces its rules any more.
            return std::future::pending().await;
        }
        self.control = self.newest.borrow_and_update().clone();
    }
}

/// A call that was refused before it reached a service.
#[derive(Debug)]
pub(crate) struct CallRefusal {
    /// The caller's name, if it is known.
    pub(crate) identity: Option<String>,
    pub(crate) peer: Option<PeerAddress>,
    pub(crate) status: Status,
}

impl CallRefusal {
    pub(super) fn new(identity: Option<String>, peer: Option<&PeerInfo>, status: Status) -> CallRefusal {
        CallRefusal { identity, peer: peer.map(|peer| peer.address), status }
    }

    pub(super) fn of(caller: &Caller, status: Status) -> CallRefusal {
        CallRefusal { identity: Some(caller.identity_name().to_owned()), peer: caller.peer(), status }
    }
}
