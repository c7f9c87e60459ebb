//! The value of `require_auth`: the ways to log in that the connection allows.

use super::ConnectionStringError;

/// A way to log in, as `require_auth` names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AuthMethod {
    /// The server asks for nothing (`trust`, `peer`, `cert`).
    None,
    /// The password in clear text.
    Password,
    /// A hash of the password.
    Md5,
    /// A proof that both sides know the password.
    ScramSha256,
    /// Kerberos, which laredo does not support.
    Gss,
    /// Windows authentication, which laredo does not support.
    Sspi,
    /// OAuth, which laredo does not support.
    Oauth,
}

const METHODS: &[(&str, AuthMethod)] = &[
    ("none", AuthMethod::None),
    ("password", AuthMethod::Password),
    ("md5", AuthMethod::Md5),
    ("scram-sha-256", AuthMethod::ScramSha256),
    ("gss", AuthMethod::Gss),
    ("sspi", AuthMethod::Sspi),
    ("oauth", AuthMethod::Oauth),
];

/// The ways to log in that a connection allows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequiredAuth {
    allowed: Vec<AuthMethod>,
    text: String,
}

impl Default for RequiredAuth {
    /// Allows every way.
    fn default() -> RequiredAuth {
        RequiredAuth { allowed: METHODS.iter().map(|(_, method)| *method).collect(), text: String::new() }
    }
}

impl RequiredAuth {
    /// Parses a list of methods with commas between them. Either all or none of them have a `!`
    /// before their name, which means all methods but these.
    pub(super) fn parse(text: &str) -> Result<RequiredAuth, ConnectionStringError> {
        let wrong = |problem: String| ConnectionStringError::Value { key: "require_auth", problem };
        let is_negative = text.starts_with('!');
        let mut named = Vec::new();
        for item in text.split(',') {
            let name = item.strip_prefix('!').unwrap_or(item);
            let Some((_, method)) = METHODS.iter().find(|(known, _)| *known == name) else {
                let names: Vec<&str> = METHODS.iter().map(|(name, _)| *name).collect();
                return Err(wrong(format!(
                    "`{item}` is not one of {}, or one of them with ! before it",
                    names.join(", ")
                )));
            };
            if item.starts_with('!') != is_negative {
                return Err(wrong("methods with ! cannot be mixed with methods without".to_owned()));
            }
            if named.contains(method) {
                return Err(wrong(format!("`{item}` is named twice")));
            }
            named.push(*method);
        }
        let all = METHODS.iter().map(|(_, method)| *method);
        let allowed = all.filter(|method| named.contains(method) != is_negative).collect();
        Ok(RequiredAuth { allowed, text: text.to_owned() })
    }

    /// Checks that a way to log in is allowed.
    ///
    /// # Errors
    /// A sentence for the operator.
    pub(crate) fn check(&self, method: AuthMethod) -> Result<(), String> {
        if self.allowed.contains(&method) {
            return Ok(());
        }
        let asked = match method {
            AuthMethod::None => "the server did not ask for a password",
            AuthMethod::Password => "the server asked for the password in clear text",
            AuthMethod::Md5 => "the server asked for an MD5 hash of the password",
            AuthMethod::ScramSha256 => "the server asked for SCRAM",
            AuthMethod::Gss | AuthMethod::Sspi | AuthMethod::Oauth => "the server asked for another method",
        };
        Err(format!(
            "{asked}, which require_auth={} does not allow; check that this is the right server, and then its \
             pg_hba.conf or require_auth",
            self.text
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn methods_are_allowed_or_excluded() {
        use AuthMethod::{Gss, Md5, None, Password, ScramSha256};
        for (text, allowed, refused) in [
            ("scram-sha-256", vec![ScramSha256], vec![None, Password, Md5, Gss]),
            ("md5,scram-sha-256", vec![Md5, ScramSha256], vec![None, Password]),
            ("none", vec![None], vec![Password, Md5, ScramSha256]),
            ("none,md5", vec![None, Md5], vec![Password, ScramSha256]),
            ("!password", vec![None, Md5, ScramSha256, Gss], vec![Password]),
            ("!password,!md5,!none", vec![ScramSha256, Gss], vec![None, Password, Md5]),
        ] {
            let parsed = RequiredAuth::parse(text).unwrap();
            for method in allowed {
                parsed.check(method).unwrap();
            }
            for method in refused {
                assert!(parsed.check(method).unwrap_err().contains(text), "{text}: {method:?}");
            }
        }
        METHODS.iter().for_each(|(_, method)| RequiredAuth::default().check(*method).unwrap());
    }

    #[test]
    fn malformed_lists_are_refused() {
        for (text, problem) in [
            ("scram", "`scram` is not one of none, password, md5, scram-sha-256"),
            ("md5,", "`` is not one of"),
            ("md5, none", "` none` is not one of"),
            ("!!md5", "`!!md5` is not one of"),
            ("!md5,none", "cannot be mixed"),
            ("none,!md5", "cannot be mixed"),
            ("md5,md5", "`md5` is named twice"),
            ("!md5,!md5", "`!md5` is named twice"),
        ] {
            let error = RequiredAuth::parse(text).unwrap_err().to_string();
            assert!(error.contains("`require_auth`") && error.contains(problem), "{text}: {error}");
        }
    }
}
