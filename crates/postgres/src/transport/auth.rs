use bytes::BytesMut;
use fallible_iterator::FallibleIterator;
use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{self, SCRAM_SHA_256, SCRAM_SHA_256_PLUS, ScramSha256};
use postgres_protocol::message::backend::{AuthenticationSaslBody, Message};
use postgres_protocol::message::frontend;
use tokio::io::AsyncWriteExt;

use super::error::TransportError;
use super::frame::BackendFrameReader;
use super::open::BoxedSocket;
use crate::options::{AuthMethod, ChannelBinding, ConnectionOptions, Host, SecretText};

const NO_PASSWORD: &str = "the server requires a password, and there is none; give it by password_file or \
                           password_command of the source, by the variable PGPASSWORD or in a passfile (~/.pgpass)";

const CLEAR_TEXT: &str = "the server asked for the password in clear text, and the connection is not encrypted; set \
                          sslmode=verify-full, or use scram-sha-256 in the server's pg_hba.conf";

/// The channel that a password exchange can be bound to.
pub(super) enum BindableChannel {
    /// A connection without TLS.
    Plain,
    /// The hash of the server's certificate, if it has one.
    Tls(Option<Vec<u8>>),
}

/// Answers the server's authentication requests until the login is accepted or refused.
pub(super) async fn authenticate(
    options: &ConnectionOptions,
    password: Option<&SecretText>,
    frames: &mut BackendFrameReader<BoxedSocket>,
    binding: &BindableChannel,
) -> Result<(), TransportError> {
    let refuse = |problem: &str| TransportError::Login { address: options.address(), problem: problem.to_owned() };
    let password = || match password {
        Some(secret) => Ok(secret.expose().as_bytes()),
        None => Err(refuse(NO_PASSWORD)),
    };
    let allow = |method| options.require_auth.check(method).map_err(|problem| refuse(&problem));
    let unbound = || match options.channel_binding {
        ChannelBinding::Require => {
            Err(refuse("channel_binding=require, and the server did not ask for SCRAM over TLS"))
        }
        ChannelBinding::Prefer | ChannelBinding::Disable => Ok(()),
    };
    let mut has_answered = false;
    loop {
        match authentication_message(frames).await? {
            Message::AuthenticationOk => {
                if !has_answered {
                    allow(AuthMethod::None)?;
                }
                return unbound();
            }
            Message::AuthenticationCleartextPassword => {
                allow(AuthMethod::Password)?;
                unbound()?;
                if matches!((binding, &options.host), (BindableChannel::Plain, Host::Tcp(_))) {
                    return Err(refuse(CLEAR_TEXT));
                }
                has_answered = true;
                send(frames, |out| frontend::password_message(password()?, out).map_err(Into::into)).await?;
            }
            Message::AuthenticationMd5Password(body) => {
                allow(AuthMethod::Md5)?;
                unbound()?;
                has_answered = true;
                let hash = md5_hash(options.user.as_bytes(), password()?, body.salt());
                send(frames, |out| frontend::password_message(hash.as_bytes(), out).map_err(Into::into)).await?;
            }
            Message::AuthenticationSasl(body) => {
                allow(AuthMethod::ScramSha256)?;
                let (mechanism, channel) = mechanism(options, &body, binding).map_err(&refuse)?;
                let scram = ScramSha256::new(password()?, channel);
                return exchange(frames, mechanism, scram).await.map_err(|error| match error {
                    // A protocol error here concerns the exchange itself, never a lost connection.
                    TransportError::Protocol(problem) => refuse(&problem),
                    other => other,
                });
            }
            _ => {
                let asked = "the server requires an authentication method that laredo does not support; \
                             use scram-sha-256 in pg_hba.conf";
                return Err(refuse(asked));
            }
        }
    }
}

/// Chooses SCRAM with or without a binding, by what both sides support.
fn mechanism(
    options: &ConnectionOptions,
    offered: &AuthenticationSaslBody,
    binding: &BindableChannel,
) -> Result<(&'static str, sasl::ChannelBinding), &'static str> {
    let (mut plain, mut plus) = (false, false);
    let mut mechanisms = offered.mechanisms();
    while let Ok(Some(name)) = mechanisms.next() {
        plain |= name == SCRAM_SHA_256;
        plus |= name == SCRAM_SHA_256_PLUS;
    }
    match (binding, options.channel_binding) {
        (BindableChannel::Tls(Some(hash)), ChannelBinding::Prefer | ChannelBinding::Require) if plus => {
            return Ok((SCRAM_SHA_256_PLUS, sasl::ChannelBinding::tls_server_end_point(hash.clone())));
        }
        (_, ChannelBinding::Require) => {
            return Err("channel_binding=require needs TLS and SCRAM-SHA-256-PLUS, which one side does not support");
        }
        _ if !plain => return Err("the server offers no SASL mechanism that laredo supports (SCRAM-SHA-256)"),
        _ => {}
    }
    // "Unrequested" says that this client supports binding. The server then notices if an attacker
    // on the way has removed its offer.
    let channel = match (binding, options.channel_binding) {
        (BindableChannel::Tls(Some(_)), ChannelBinding::Prefer) => sasl::ChannelBinding::unrequested(),
        (BindableChannel::Tls(Some(_)), ChannelBinding::Disable | ChannelBinding::Require)
        | (BindableChannel::Tls(None) | BindableChannel::Plain, _) => sasl::ChannelBinding::unsupported(),
    };
    Ok((SCRAM_SHA_256, channel))
}

async fn exchange(
    frames: &mut BackendFrameReader<BoxedSocket>,
    mechanism: &str,
    mut scram: ScramSha256,
) -> Result<(), TransportError> {
    let broken = |error: std::io::Error| TransportError::Protocol(error.to_string());
    send(frames, |out| frontend::sasl_initial_response(mechanism, scram.message(), out).map_err(broken)).await?;
    let Message::AuthenticationSaslContinue(body) = authentication_message(frames).await? else {
        return Err(TransportError::Protocol("the server did not continue the SCRAM exchange".to_owned()));
    };
    scram.update(body.data()).map_err(broken)?;
    send(frames, |out| frontend::sasl_response(scram.message(), out).map_err(broken)).await?;
    let Message::AuthenticationSaslFinal(body) = authentication_message(frames).await? else {
        return Err(TransportError::Protocol("the server did not complete the SCRAM exchange".to_owned()));
    };
    // In this step the server proves that it knows the password, too.
    scram.finish(body.data()).map_err(broken)?;
    match authentication_message(frames).await? {
        Message::AuthenticationOk => Ok(()),
        _ => Err(TransportError::Protocol(
            "the server neither accepted nor refused the login after the SCRAM exchange".to_owned(),
        )),
    }
}

async fn authentication_message(frames: &mut BackendFrameReader<BoxedSocket>) -> Result<Message, TransportError> {
    loop {
        let frame = frames.next().await?;
        match frame.tag() {
            b'E' => return Err(frame.error().into()),
            b'R' => return frame.message(),
            b'N' => {}
            _ => return Err(frame.unexpected("the login")),
        }
    }
}

async fn send(
    frames: &mut BackendFrameReader<BoxedSocket>,
    write: impl FnOnce(&mut BytesMut) -> Result<(), TransportError>,
) -> Result<(), TransportError> {
    let mut out = BytesMut::new();
    write(&mut out)?;
    frames.get_mut().write_all(&out).await?;
    Ok(frames.get_mut().flush().await?)
}
