use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use super::{
    ChannelBinding, ConnectionOptions, ConnectionStringError, Host, PasswordSource, PostgresTlsOptions, RequiredAuth,
    RootCertificates, SecretText, SslMode,
};

const SUPPORTED: &[&str] = &[
    "host",
    "hostaddr",
    "port",
    "user",
    "password",
    "passfile",
    "require_auth",
    "dbname",
    "sslmode",
    "sslrootcert",
    "sslcert",
    "sslkey",
    "connect_timeout",
    "application_name",
    "options",
    "channel_binding",
    "tcp_user_timeout",
];

/// Keys that are ignored. Ignoring them does not weaken what the user asked for.
const IGNORED: &[&str] = &[
    "client_encoding",
    "fallback_application_name",
    "gssencmode",
    "keepalives",
    "keepalives_count",
    "keepalives_idle",
    "keepalives_interval",
    "sslcompression",
    "sslsni",
];

/// Keys that are refused, because ignoring them would break what they promise.
const UNSUPPORTED: &[&str] = &[
    "gssdelegation",
    "gsslib",
    "krbsrvname",
    "load_balance_hosts",
    "max_protocol_version",
    "min_protocol_version",
    "replication",
    "requirepeer",
    "requiressl",
    "service",
    "ssl_max_protocol_version",
    "ssl_min_protocol_version",
    "sslcertmode",
    "sslcrl",
    "sslcrldir",
    "sslkeylogfile",
    "sslnegotiation",
    "sslpassword",
    "target_session_attrs",
];

/// The time after which unacknowledged bytes count as lost, unless the connection string sets one.
const TCP_USER_TIMEOUT: Duration = Duration::from_secs(60);

/// The folder where libpq looks for a socket on Debian.
pub(super) const DEFAULT_SOCKET_FOLDER: &str = "/var/run/postgresql";

const PASSWORD: &str = "password";

type OptionPairs = BTreeMap<&'static str, String>;

pub(super) fn connection_string(text: &str) -> Result<ConnectionOptions, ConnectionStringError> {
    let text = text.trim();
    let pairs = match url_without_scheme(text)? {
        Some(rest) => url(rest)?.0,
        None => dsn(text)?,
    };
    options(&pairs)
}

/// Replaces the passwords in a connection string, as the parser finds them.
pub(super) fn masked(text: &str, mask: &str) -> Result<String, ConnectionStringError> {
    let text = text.trim();
    let Some(rest) = url_without_scheme(text)? else {
        dsn(text)?;
        let mut masked = String::new();
        let mut end = 0;
        for pair in dsn_pairs(text)?.iter().filter(|pair| pair.key == PASSWORD) {
            masked.extend([&text[end..pair.value_begin], mask]);
            end = pair.value_end;
        }
        return Ok(masked + &text[end..]);
    };
    let scheme = &text[..text.len() - rest.len()];
    let (user, rest) = url(rest)?.1.map_or(("", rest), |at| rest.split_at(at));
    let user = user.split_once(':').map_or(user.to_owned(), |(user, _)| format!("{user}:{mask}"));
    let Some((rest, query)) = rest.split_once('?') else { return Ok(format!("{scheme}{user}{rest}")) };
    let parameters = query.split('&').map(|pair| match pair.split_once('=') {
        Some((key, _)) if percent_decoded(key).as_deref() == Ok(PASSWORD) => format!("{key}={mask}"),
        Some(_) | None => pair.to_owned(),
    });
    Ok(format!("{scheme}{user}{rest}?{}", parameters.collect::<Vec<_>>().join("&")))
}

/// Returns what follows the scheme of a URL, or `None` for text of the other form.
fn url_without_scheme(text: &str) -> Result<Option<&str>, ConnectionStringError> {
    match text.strip_prefix("postgresql://").or_else(|| text.strip_prefix("postgres://")) {
        None if begins_with_scheme(text) => Err(syntax("a connection URL begins with postgresql:// or postgres://")),
        rest => Ok(rest),
    }
}

/// Returns true if the text is a URL. A password in the other form may contain `://`, too, but only
/// after its key.
fn begins_with_scheme(text: &str) -> bool {
    text.split_once("://").is_some_and(|(scheme, _)| !scheme.contains('='))
}

fn syntax(problem: &str) -> ConnectionStringError {
    ConnectionStringError::Syntax(problem.to_owned())
}

fn put(pairs: &mut OptionPairs, key: &str, value: String) -> Result<(), ConnectionStringError> {
    if let Some(known) = SUPPORTED.iter().find(|known| **known == key) {
        pairs.insert(known, value);
        return Ok(());
    }
    if IGNORED.contains(&key) {
        return Ok(());
    }
    if UNSUPPORTED.contains(&key) {
        return Err(ConnectionStringError::Unsupported(key.to_owned()));
    }
    let distance = |known: &&&str| strsim::damerau_levenshtein(known, key);
    let nearest = SUPPORTED.iter().min_by_key(distance).filter(|known| distance(known) <= 3);
    Err(ConnectionStringError::UnknownKey { key: key.to_owned(), nearest: nearest.copied() })
}

/// Parses `[user[:password]@][host][:port][/database][?key=value&…]`, every part percent-encoded.
///
/// A password may contain any character unencoded if that leaves one way to read the whole URL.
/// libpq's reading is tried first. Returns the pairs, and the index of the @ after the password.
fn url(rest: &str) -> Result<(OptionPairs, Option<usize>), ConnectionStringError> {
    // libpq ends the user's part at the first @ that no / precedes.
    let usual = rest.find(['@', '/']).filter(|at| rest[*at..].starts_with('@'));
    let error = match url_with_user_until(rest, usual) {
        Err(error) => error,
        Ok(pairs) => return Ok((pairs, usual)),
    };
    let others: Vec<usize> = rest.match_indices('@').map(|(at, _)| at).filter(|at| Some(*at) != usual).collect();
    let mut readings = others.iter().filter_map(|at| Some((url_with_user_until(rest, Some(*at)).ok()?, Some(*at))));
    match (readings.next(), readings.next()) {
        (Some(reading), None) => Ok(reading),
        // The error itself could show a part of the password.
        _ if !others.is_empty() => Err(syntax(
            "the URL is invalid or ambiguous; in user names and passwords write / ? # @ % as %2F %3F %23 %40 %25",
        )),
        _ => Err(error),
    }
}

/// Parses a URL whose user and password end at the @ at this index. `None` for a URL without them.
fn url_with_user_until(text: &str, at: Option<usize>) -> Result<OptionPairs, ConnectionStringError> {
    let mut pairs = OptionPairs::new();
    let (user, rest) = at.map_or(("", text), |at| (&text[..at], &text[at + 1..]));
    let (user, password) = user.split_once(':').unwrap_or((user, ""));
    let (rest, query) = rest.split_once('?').map_or((rest, None), |(a, b)| (a, Some(b)));
    let (authority, database) = rest.split_once('/').unwrap_or((rest, ""));
    let (host, port) = host_and_port(authority)?;
    if database.contains('@') {
        return Err(syntax("write an @ in the name of a database as %40"));
    }
    for (key, value) in [("user", user), ("host", host), ("port", port), ("dbname", database)] {
        if !value.is_empty() {
            put(&mut pairs, key, percent_decoded(value)?)?;
        }
    }
    if !password.is_empty() {
        put(&mut pairs, PASSWORD, decoded_where_encoded(password)?)?;
    }
    let mut has_password = false;
    for pair in query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').ok_or_else(|| syntax("a parameter after ? is written key=value"))?;
        let (key, value) = (percent_decoded(key)?, percent_decoded(value)?);
        let put = match (key.as_str(), value.as_str()) {
            // JDBC's spelling, which libpq also accepts.
            ("ssl", "true") => put(&mut pairs, "sslmode", "require".to_owned()),
            _ => put(&mut pairs, &key, value),
        };
        put.map_err(|error| without_password(error, has_password))?;
        has_password |= key == PASSWORD;
    }
    Ok(pairs)
}

/// Hides an unknown key that follows a password, since it may be the rest of the password.
fn without_password(error: ConnectionStringError, has_password: bool) -> ConnectionStringError {
    match error {
        ConnectionStringError::UnknownKey { .. } | ConnectionStringError::Unsupported(_) if has_password => syntax(
            "an unknown parameter follows the password; write & in a URL as %26, and a value with blanks in quotes",
        ),
        error => error,
    }
}

fn host_and_port(text: &str) -> Result<(&str, &str), ConnectionStringError> {
    let (host, port) = match text.strip_prefix('[') {
        None => {
            let (host, port) = text.split_once(':').unwrap_or((text, ""));
            if host.contains(|c: char| c.is_whitespace() || "@#[]&=".contains(c)) {
                return Err(syntax("a host name contains no blanks and none of @ # [ ] & ="));
            }
            (host, port)
        }
        Some(bracketed) => {
            let (address, rest) = bracketed.split_once(']').ok_or_else(|| syntax("an IPv6 address ends with ]"))?;
            match rest.strip_prefix(':') {
                Some(port) => (address, port),
                None if rest.is_empty() => (address, ""),
                None => return Err(syntax("after [IPv6 address] comes :PORT, / or ?")),
            }
        }
    };
    // The port is not shown, since it may be a part of a password.
    if !port.is_empty() && port.parse::<u16>().map_or(true, |port| port == 0) {
        let problem = "a port is a number from 1 to 65535; write : in a user name or password as %3A".to_owned();
        return Err(ConnectionStringError::Value { key: "port", problem });
    }
    Ok((host, port))
}

/// Decodes a password. A % that two hexadecimal digits do not follow is a literal %.
fn decoded_where_encoded(text: &str) -> Result<String, ConnectionStringError> {
    let is_code = |at: usize| {
        let digits = text.as_bytes().get(at + 1..at + 3);
        digits.is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit) && digits != b"00")
    };
    let parts = text.char_indices().map(|(at, c)| match c {
        '%' if !is_code(at) => "%25".to_owned(),
        other => other.to_string(),
    });
    percent_decoded(&parts.collect::<String>())
}

fn percent_decoded(text: &str) -> Result<String, ConnectionStringError> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let digit = |byte: &u8| char::from(*byte).to_digit(16);
        match tail {
            [high, low, tail @ ..] => match (digit(high), digit(low)) {
                (Some(high), Some(low)) if high + low > 0 => {
                    bytes.push(u8::try_from(high * 16 + low).expect("two hexadecimal digits are a byte"));
                    rest = tail;
                }
                _ => {
                    return Err(syntax("after % come two hexadecimal digits (and not 00); write % itself as %25"));
                }
            },
            _ => return Err(syntax("after % come two hexadecimal digits; write % itself as %25")),
        }
    }
    String::from_utf8(bytes).map_err(|_| syntax("percent-encoded bytes are not UTF-8"))
}

/// A `key = value` pair of a connection string, and the place of the value with its quotes.
struct DsnPair<'a> {
    key: &'a str,
    value: String,
    value_begin: usize,
    value_end: usize,
}

fn dsn(text: &str) -> Result<OptionPairs, ConnectionStringError> {
    let mut pairs = OptionPairs::new();
    for DsnPair { key, value, .. } in dsn_pairs(text)? {
        let has_password = pairs.contains_key(PASSWORD);
        put(&mut pairs, key, value).map_err(|error| without_password(error, has_password))?;
    }
    Ok(pairs)
}

/// Parses `key = value` pairs. A value with blanks is quoted with `'`, and `\` escapes the next
/// character.
fn dsn_pairs(text: &str) -> Result<Vec<DsnPair<'_>>, ConnectionStringError> {
    let mut pairs = Vec::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let (key, value) = rest
            .split_once('=')
            .ok_or_else(|| syntax("write key=value pairs with blanks between them, or a postgresql:// URL"))?;
        let key = key.trim();
        if key.is_empty() || key.contains(char::is_whitespace) {
            return Err(syntax("each key is followed by = and its value"));
        }
        let value = value.trim_start();
        let value_begin = text.len() - value.len();
        let (value, after) = dsn_value(value)?;
        pairs.push(DsnPair { key, value, value_begin, value_end: text.len() - after.len() });
        rest = after.trim_start();
    }
    Ok(pairs)
}

fn dsn_value(text: &str) -> Result<(String, &str), ConnectionStringError> {
    let quoted = text.starts_with('\'');
    let mut value = String::new();
    let mut chars = text.char_indices().skip(usize::from(quoted));
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some((_, escaped)) => value.push(escaped),
                None if quoted => break,
                None => return Ok((value, "")),
            },
            '\'' if quoted => return Ok((value, &text[at + 1..])),
            _ if !quoted && c.is_whitespace() => return Ok((value, &text[at..])),
            _ => value.push(c),
        }
    }
    match quoted {
        true => Err(syntax("a value that begins with ' must end with '")),
        false => Ok((value, "")),
    }
}

fn options(pairs: &OptionPairs) -> Result<ConnectionOptions, ConnectionStringError> {
    let get = |key: &str| pairs.get(key).map(String::as_str).filter(|value| !value.is_empty());
    let user = get("user").ok_or_else(|| ConnectionStringError::Value {
        key: "user",
        problem: "is missing; add the role to connect as".to_owned(),
    })?;
    let host_address: Option<IpAddr> =
        get("hostaddr").map(|text| number("hostaddr", text, "an IP address")).transpose()?;
    let host = match (get("host"), host_address) {
        (Some(host), _) if host.contains(',') => {
            return Err(ConnectionStringError::Value {
                key: "host",
                problem: "several hosts are not supported; name the primary".to_owned(),
            });
        }
        (Some(host), _) if host.starts_with('/') => Host::Unix(PathBuf::from(host)),
        (Some(host), _) => Host::Tcp(host.to_owned()),
        (None, Some(address)) => Host::Tcp(address.to_string()),
        (None, None) => Host::Unix(PathBuf::from(DEFAULT_SOCKET_FOLDER)),
    };
    Ok(ConnectionOptions {
        host,
        host_address,
        port: get("port").map_or(Ok(5432), |text| number("port", text, "a port from 1 to 65535"))?,
        user: user.to_owned(),
        password: match get(PASSWORD) {
            Some(password) => PasswordSource::Text(SecretText::new(password)),
            None => PasswordSource::Environment { passfile: get("passfile").map(PathBuf::from) },
        },
        require_auth: get("require_auth").map(RequiredAuth::parse).transpose()?.unwrap_or_default(),
        database: get("dbname").unwrap_or(user).to_owned(),
        tls: tls_options(&get)?,
        channel_binding: match get("channel_binding") {
            Some("disable") => ChannelBinding::Disable,
            Some("prefer") | None => ChannelBinding::Prefer,
            Some("require") => ChannelBinding::Require,
            Some(other) => return Err(choice("channel_binding", other, "disable, prefer or require")),
        },
        connect_timeout: match get("connect_timeout") {
            None => Some(Duration::from_secs(10)),
            Some(text) => match number("connect_timeout", text, "a number of seconds")? {
                0_u32 => None,
                seconds => Some(Duration::from_secs(seconds.into())),
            },
        },
        tcp_user_timeout: match get("tcp_user_timeout") {
            None => Some(TCP_USER_TIMEOUT),
            Some(text) => match number("tcp_user_timeout", text, "a number of milliseconds")? {
                0_u32 => None,
                milliseconds => Some(Duration::from_millis(milliseconds.into())),
            },
        },
        application_name: get("application_name").unwrap_or("laredo").to_owned(),
        server_options: get("options").map(str::to_owned),
    })
}

fn tls_options<'a>(get: &impl Fn(&str) -> Option<&'a str>) -> Result<PostgresTlsOptions, ConnectionStringError> {
    let roots = get("sslrootcert").map(|text| match text {
        "system" => RootCertificates::System,
        path => RootCertificates::File(PathBuf::from(path)),
    });
    let system = roots == Some(RootCertificates::System);
    let mode = match get("sslmode") {
        Some("disable") => SslMode::Disable,
        Some("allow") => SslMode::Allow,
        Some("prefer") => SslMode::Prefer,
        Some("require") => SslMode::Require,
        Some("verify-ca") => SslMode::VerifyCa,
        Some("verify-full") => SslMode::VerifyFull,
        None if system => SslMode::VerifyFull,
        None => SslMode::Prefer,
        Some(other) => {
            let possible = "disable, allow, prefer, require, verify-ca or verify-full";
            return Err(choice("sslmode", other, possible));
        }
    };
    // A public authority issues certificates to any applicant, so the host name is all that such a
    // certificate proves.
    if system && mode != SslMode::VerifyFull {
        return Err(ConnectionStringError::Value {
            key: "sslmode",
            problem: "must be verify-full with sslrootcert=system".to_owned(),
        });
    }
    let (certificate, key) = (get("sslcert").map(PathBuf::from), get("sslkey").map(PathBuf::from));
    if certificate.is_some() != key.is_some() {
        return Err(ConnectionStringError::Value {
            key: "sslcert",
            problem: "sslcert and sslkey go together".to_owned(),
        });
    }
    Ok(PostgresTlsOptions { mode, roots, certificate, key })
}

fn number<T: FromStr>(key: &'static str, text: &str, expected: &str) -> Result<T, ConnectionStringError> {
    text.trim()
        .parse()
        .map_err(|_| ConnectionStringError::Value { key, problem: format!("`{text}` is not {expected}") })
}

fn choice(key: &'static str, found: &str, possible: &str) -> ConnectionStringError {
    ConnectionStringError::Value { key, problem: format!("`{found}` is not one of {possible}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(text: &str) -> ConnectionOptions {
        ConnectionOptions::parse(text).unwrap()
    }

    fn password(text: &str) -> PasswordSource {
        PasswordSource::Text(SecretText::new(text))
    }

    fn error(text: &str) -> String {
        ConnectionOptions::parse(text).unwrap_err().to_string()
    }

    #[test]
    fn a_url_and_a_dsn_say_the_same() {
        let url = parse(
            "postgres://al%40ice:p%3A%2F%27@db.example:6432/my%20db?sslmode=verify-full&sslrootcert=/ca.pem\
             &application_name=x&connect_timeout=3&options=-c%20geqo%3Doff",
        );
        let dsn = parse(
            r"host=db.example port = 6432 user='al@ice' password='p:/\'' dbname='my db' sslmode=verify-full
              sslrootcert=/ca.pem application_name=x connect_timeout=3 options='-c geqo=off'",
        );
        assert_eq!(url, dsn);
        assert_eq!(url.password, password("p:/'"));
        assert_eq!(url.database, "my db");
        assert_eq!(url.connect_timeout, Some(Duration::from_secs(3)));
        assert_eq!(url.server_options.as_deref(), Some("-c geqo=off"));
    }

    #[test]
    fn hosts() {
        let host = |text| parse(text).host;
        assert_eq!(host("postgresql://u@[::1]:7/d"), Host::Tcp("::1".into()));
        assert_eq!(host("postgresql://u@%2Ftmp%2Fpg/d"), Host::Unix("/tmp/pg".into()));
        assert_eq!(host("postgresql://u@/d?host=/tmp/pg"), Host::Unix("/tmp/pg".into()));
        assert_eq!(host("user=u hostaddr=10.0.0.1"), Host::Tcp("10.0.0.1".into()));
        assert_eq!(host("user=u"), Host::Unix(DEFAULT_SOCKET_FOLDER.into()));
        assert_eq!(parse("host=/tmp user=u port=77").address(), "/tmp/.s.PGSQL.77");
        assert_eq!(parse("host=::1 user=u").address(), "[::1]:5432");
        assert_eq!(parse("user=u").database, "u", "the database is the user's own unless named");
    }

    #[test]
    fn passwords_are_never_printed() {
        let options = parse("postgresql://u:hunter2@h/d");
        assert!(!format!("{options:?}").contains("hunter2"));
        for text in [
            "postgresql://u:hunter2/d",
            "postgresql://u:hunter2@h:port/d",
            "postgresql://u:x@hunter2@h/d?sslmode",
            "postgresql://h/d?user=u&password=x&hunter2=y",
            "postgresql://h/d?user=u&password=x&hunter2",
            "user=u password=x hunter2=y",
            "user=u password='hunter2",
        ] {
            assert!(!error(text).contains("hunter2"), "{text}: {}", error(text));
        }
    }

    #[test]
    fn passwords_are_masked_where_the_parser_finds_them() {
        for (text, expected) in [
            ("postgresql://u:hunter2@h/d?sslmode=require", "postgresql://u:*@h/d?sslmode=require"),
            ("postgresql://u:hunter2\nx@h/d", "postgresql://u:*@h/d"),
            ("postgres://u:x@hunter2@h", "postgres://u:*@h"),
            ("postgres://u:hunter2/x@h/d", "postgres://u:*@h/d"),
            ("postgresql://h/d?user=u&password=hunter2", "postgresql://h/d?user=u&password=*"),
            ("postgresql://h/d?user=u&p%61ssword=hunter2&port=1", "postgresql://h/d?user=u&p%61ssword=*&port=1"),
            ("postgresql://u:hunter2@h?password=hunter2", "postgresql://u:*@h?password=*"),
            ("postgresql://u@h/d", "postgresql://u@h/d"),
            ("host=h user=u password=hunter2 dbname=d", "host=h user=u password=* dbname=d"),
            ("password = 'hunter2 \\'x' user=u", "password = * user=u"),
            ("password=x password='hunter2'", "password=* password=*"),
            ("user=u password=hunter2\\ x\n", "user=u password=*"),
            ("user=u passfile=/x", "user=u passfile=/x"),
        ] {
            assert_eq!(ConnectionOptions::masked(text, "*").as_deref(), Some(expected));
        }
        for text in ["hunter2", "postgresql://u:hunter2@h/d?x", "user=u password='hunter2", "user=u passwd=hunter2"] {
            assert_eq!(ConnectionOptions::masked(text, "*"), None, "{text}");
        }
    }

    #[test]
    fn a_password_stands_as_it_is_where_that_is_unambiguous() {
        let texts = [
            "pa?ss",
            "x?hunter2=",
            "pa#ss",
            "p&q=r",
            "x?hunter2=y&z",
            "a@b:c",
            "pct%zz",
            "100%",
            "%0",
            "sp ace",
            "x/hunter2",
            "5432/x",
            "@",
            "@@",
            "://",
            "/",
            "?",
            "#",
            "a/b?c#d@e%f",
            "[x]",
            "x@y/z@",
            "ü:ö",
            "'\"\\",
        ];
        for text in texts {
            for rest in ["127.0.0.1:6000/app", "db.example/app?sslmode=disable", "[::1]:6000", "h"] {
                let options = parse(&format!("postgresql://u:{text}@{rest}"));
                assert_eq!(options.password, password(text), "{rest}");
                let without = parse(&format!("postgresql://u:x@{rest}"));
                assert_eq!(ConnectionOptions { password: without.password.clone(), ..options }, without, "{text}");
            }
        }
        // An encoded character is decoded, as libpq does.
        assert_eq!(parse("postgresql://u:a%2Fb%zz@h").password, password("a/b%zz"));
        // libpq's reading comes first.
        let options = parse("postgresql://u:p@h?application_name=x@y");
        assert_eq!((options.password, options.application_name.as_str()), (password("p"), "x@y"));
        assert!(error("postgresql://u:a/b@c?application_name=x@y").contains("ambiguous"));
    }

    #[test]
    fn what_cannot_be_used_is_refused_with_a_hint() {
        let cases = [
            ("user=u sslmod=require", "unknown connection parameter `sslmod`; did you mean `sslmode`?"),
            ("user=u zzzzzzzzzzzz=1", "unknown connection parameter `zzzzzzzzzzzz`"),
            ("user=u sslcrl=/x", "connection parameter `sslcrl` is not supported by laredo: remove it"),
            ("host=h", "connection parameter `user`: is missing; add the role to connect as"),
            ("user=u port=0x1", "connection parameter `port`: `0x1` is not a port from 1 to 65535"),
            (
                "user=u sslmode=on",
                "connection parameter `sslmode`: `on` is not one of disable, allow, prefer, require, verify-ca or verify-full",
            ),
            (
                "user=u sslrootcert=system sslmode=require",
                "connection parameter `sslmode`: must be verify-full with sslrootcert=system",
            ),
            (
                "mysql://u@h",
                "the connection string is malformed: a connection URL begins with postgresql:// or postgres://",
            ),
            ("user=u host=a,b", "connection parameter `host`: several hosts are not supported; name the primary"),
        ];
        for (text, expected) in cases {
            assert_eq!(error(text), expected, "{text}");
        }
    }

    #[test]
    fn a_password_that_looks_like_a_url_can_be_written() {
        for text in ["://", "a://b", "postgres://u@h"] {
            assert_eq!(parse(&format!("user=u password={text}")).password, password(text));
            assert_eq!(parse(&format!("password='{text}' user=u")).password, password(text));
        }
        for url in ["mysql://u@h", "://h", "jdbc:postgresql://h"] {
            assert!(error(url).contains("a connection URL begins with"), "{url}");
        }
    }

    #[test]
    fn what_changes_nothing_is_left_aside() {
        parse("user=u keepalives=1 keepalives_idle=30 gssencmode=disable client_encoding=UTF8");
        assert_eq!(parse("user=u sslrootcert=system").tls.mode, SslMode::VerifyFull);
        assert_eq!(parse("postgres://u@h/d?ssl=true").tls.mode, SslMode::Require);
    }

    proptest! {
        #[test]
        fn any_text_parses_or_is_refused(text: String) {
            let _ = ConnectionOptions::parse(&text);
            let _ = ConnectionOptions::parse(&format!("postgresql://{text}"));
        }

        #[test]
        fn any_encoded_password_can_be_written(text in "[^\0]{1,20}") {
            let encoded: String = text.bytes().map(|byte| format!("%{byte:02X}")).collect();
            let url = format!("postgresql://u:{encoded}@h:1/d");
            prop_assert_eq!(parse(&url).password, password(&text));
            prop_assert_eq!(masked(&url, "*").unwrap(), "postgresql://u:*@h:1/d");
        }

        #[test]
        fn any_password_can_be_written(text in "[^\0]{1,20}") {
            let quoted = text.replace('\\', "\\\\").replace('\'', "\\'");
            let dsn = format!("user=u password='{quoted}' port=1");
            prop_assert_eq!(parse(&dsn).password, password(&text));
            prop_assert_eq!(masked(&dsn, "*").unwrap(), "user=u password=* port=1");
        }
    }
}
