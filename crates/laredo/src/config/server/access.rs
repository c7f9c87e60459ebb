//! Access: the callers that the server knows, and their grants.

use std::collections::BTreeMap;
use std::path::PathBuf;

use laredo_core::CommitTime;
use laredo_server::{TablePattern, TokenHash};

use super::super::declaration::{
    ConfigKey, block, config_block, config_choice, custom, key, list, map, optional, optional_block, texts,
};
use super::super::fields::BlockFields;
use super::super::leaf::{LeafSetting, LeafValue};
use super::super::reader::ConfigReader;
use super::super::schema::{SettingKind, TEXT, TEXT_OR_EMPTY};
use super::super::write::text;
use super::filters::{FilterConfig, FilterValue};
use super::jwt::JwtConfig;
use super::transforms::{ColumnMaskConfig, check_masks};

config_block! {
    /// The callers and their grants. Without this block everyone may do everything. With it,
    /// everything that is not granted is denied ([who may do what](security.md#who-may-do-what)).
    pub struct AccessConfig [AccessConfig::check] {
        /// The callers that the server knows, by the names that grants use; at least one.
        pub identities: BTreeMap<String, AccessIdentityConfig> = map("identities").must_be_given(),
        /// The grants of rows. The first one that names the identity and the table decides.
        pub readers: Vec<ReaderConfig> = list("readers"),
        /// The grants of orders.
        pub operators: Vec<OperatorConfig> = list("operators"),
        /// The grants of states and metrics.
        pub observers: Vec<ObserverConfig> = list("observers"),
        /// The callers of the health endpoints and of gRPC health. Those who are no observers get
        /// an answer without details. Liveness is always open.
        pub health: EndpointAccess = key("health", EndpointAccess::KIND, || EndpointAccess::Anyone),
        /// The callers of the metrics endpoint.
        pub metrics: EndpointAccess = key("metrics", EndpointAccess::KIND, || EndpointAccess::Observers),
        /// The audit of orders and refusals.
        pub audit: AuditConfig = block("audit"),
    }
}

config_choice! {
    /// The callers of an endpoint.
    pub enum EndpointAccess {
        /// Everyone.
        Anyone = "anyone",
        /// The identities of `access.observers`.
        Observers = "observers",
    }
}

config_block! {
    /// The audit of orders and refusals.
    pub struct AuditConfig {
        /// The file to which the audit is appended, one JSON object a line.
        pub file: Option<PathBuf> = optional("file", TEXT_OR_EMPTY, "the log, with the target `audit`"),
    }
}

config_block! {
    /// A caller that the server knows. Each of its tokens, certificates and JWTs proves the
    /// identity.
    pub struct AccessIdentityConfig [AccessIdentityConfig::check] {
        /// The static tokens.
        pub tokens: Vec<TokenConfig> = list("tokens"),
        /// A file of more tokens, such as a mounted secret. Each line has the SHA-256 of a token,
        /// and after a space the time from which on it is no longer valid, if there is one. Empty
        /// lines and lines that begin with `#` do not count.
        pub token_hashes_file: Option<PathBuf> = optional("token_hashes_file", TEXT, "none"),
        /// The names in clients' certificates: URIs (with `://`), e-mail addresses (with `@`), or
        /// DNS names. A `*` matches a part of a name, as in `spiffe://prod/ns/*/sa/reader` or
        /// `*.example.com`. They need `grpc.tls.client_ca_path`.
        pub certificates: Vec<String> = texts("certificates", SettingKind::List(&TEXT), "none"),
        /// The JWTs of an identity provider ([JWTs](security.md#jwts)).
        pub jwt: Option<JwtConfig> = optional_block("jwt").defaults_to("none"),
        /// The claims of the identity, whose values grants may use. They replace claims of a JWT.
        pub claims: Vec<(String, String)> = claims("claims", "none"),
        /// The limits of each caller with this identity.
        pub limits: LimitsConfig = block("limits"),
    }
}

config_block! {
    /// The limits of a caller. All that use the same token are one caller. So is each name in a
    /// certificate, and each subject of JWTs.
    pub struct LimitsConfig {
        /// The maximum number of concurrent streams (`Sync`, `FetchSnapshot`).
        pub streams: Option<u32> = optional("streams", COUNT, "no limit"),
        /// The maximum number of streams that begin in one second.
        pub new_streams: Option<u32> = optional("new_streams", COUNT, "no limit"),
        /// The maximum rate at which snapshots are sent. Slow snapshots keep the journal longer.
        pub snapshot_rate: Option<u64> = optional("snapshot_rate", RATE, "no limit"),
    }
}

config_block! {
    /// A static token, which `laredo token new` makes.
    pub struct TokenConfig {
        /// The SHA-256 of the token.
        pub hash: TokenHash = key("sha256", HASH, || TokenHash::of("")).must_be_given(),
        /// The time from which on the token is no longer valid, as in `2030-01-31T00:00:00Z`.
        pub expires_at: Option<ExpiryTime> = optional("expires_at", TIME_OF_DAY, "never"),
    }
}

config_block! {
    /// A grant to read rows.
    pub struct ReaderConfig [ReaderConfig::check] {
        /// The identities that have the grant.
        pub identities: Vec<String> = identities(),
        /// The claims that the identity must have, all of them.
        pub claims: Vec<(String, String)> = claims("claims", "none"),
        /// The tables, as `SCHEMA.TABLE`. A `*` matches any characters.
        pub tables: Vec<String> = texts("tables", SettingKind::List(&TABLES), "").must_be_given(),
        /// The conditions on rows, as [filters](#filters-and-transforms). All must hold. The value
        /// `"${claims.NAME}"`, in quotes, is that claim of the identity.
        pub rows: Vec<FilterConfig> = list("rows").with_claims(),
        /// The columns that are left out.
        pub hide: Vec<String> = texts("hide", SettingKind::List(&TEXT), "none"),
        /// The columns whose values are replaced, as below. None may be part of the key.
        pub mask: Vec<ColumnMaskConfig> = list("mask"),
    }
}

config_block! {
    /// A grant to give orders.
    pub struct OperatorConfig [OperatorConfig::check] {
        /// The identities that have the grant.
        pub identities: Vec<String> = identities(),
        /// The claims that the identity must have, all of them.
        pub claims: Vec<(String, String)> = claims("claims", "none"),
        /// The orders, by the names of their rpcs, as in `[ReloadTable, PauseSync]`. `*` is for
        /// all.
        pub orders: Vec<String> = texts("orders", SettingKind::List(&ORDER), "").must_be_given(),
    }
}

config_block! {
    /// A grant to read states and metrics.
    pub struct ObserverConfig [ObserverConfig::check] {
        /// The identities that have the grant.
        pub identities: Vec<String> = identities(),
        /// The claims that the identity must have, all of them.
        pub claims: Vec<(String, String)> = claims("claims", "none"),
    }
}

const COUNT: SettingKind = SettingKind::Count { min: 1, max: 1_000_000 };

const RATE: SettingKind = SettingKind::Rate { min: 1024, max: 1 << 40 };

const HASH: SettingKind = SettingKind::Text {
    accepts: |text| text.parse::<TokenHash>().is_ok(),
    expected: "the SHA-256 of a token as 64 hexadecimal digits, which `laredo token new` prints with the token",
};

const TIME_OF_DAY: SettingKind =
    SettingKind::Text { accepts: |text| ExpiryTime::parse(text).is_some(), expected: EXPECTED_TIME };

const EXPECTED_TIME: &str = "a time with its zone, such as 2030-01-31T00:00:00Z";

const TABLES: SettingKind = SettingKind::Text {
    accepts: |text| text.parse::<TablePattern>().is_ok(),
    expected: "SCHEMA.TABLE, in which * matches any characters, or * for all tables",
};

const ORDER: SettingKind = SettingKind::Text {
    accepts: |text| text == "*" || laredo_server::order_names().any(|name| name == text),
    expected: "the name of an order of the OAM service, such as ReloadTable, or * for all orders",
};

/// Declares the identities of a grant.
const fn identities() -> ConfigKey<Vec<String>> {
    texts("identities", SettingKind::List(&TEXT), "").must_be_given()
}

/// Declares claims, as a block.
pub(super) const fn claims(name: &'static str, default_text: &'static str) -> ConfigKey<Vec<(String, String)>> {
    custom::<Vec<(String, String)>>(
        name,
        SettingKind::Map(&TEXT_OR_EMPTY),
        Vec::new,
        |key, fields, _| Some(fields.texts_by_name(key.name())),
        |claims, key, out| {
            if !claims.is_empty() {
                out.block(key.name(), |out| claims.iter().for_each(|(name, value)| out.put(name, text(value))));
            }
        },
    )
    .defaults_to(default_text)
}

/// The time from which on something is no longer valid, with the text that it was written as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExpiryTime {
    /// The time.
    pub at: CommitTime,
    text: String,
}

impl ExpiryTime {
    fn parse(text: &str) -> Option<ExpiryTime> {
        let time: prost_types::Timestamp = text.parse().ok()?;
        // Without a zone, another machine could read another time.
        let has_zone = text.contains(['T', 't']) && text.ends_with(|end: char| end == 'Z' || end.is_ascii_digit());
        let us = time.seconds.checked_mul(1_000_000)?.checked_add(i64::from(time.nanos) / 1000)?;
        has_zone.then(|| ExpiryTime { at: CommitTime::from_unix_us(us), text: text.to_owned() })
    }
}

impl LeafSetting for ExpiryTime {
    fn from_leaf(value: LeafValue) -> Option<Self> {
        ExpiryTime::parse(&String::from_leaf(value)?)
    }

    fn to_leaf(&self) -> LeafValue {
        LeafValue::Text(self.text.clone())
    }
}

impl LeafSetting for TokenHash {
    fn from_leaf(value: LeafValue) -> Option<Self> {
        String::from_leaf(value)?.parse().ok()
    }

    fn to_leaf(&self) -> LeafValue {
        LeafValue::Text(self.to_string())
    }
}

/// Reads the text of a file of tokens.
///
/// # Errors
/// Returns the number of the first line that is wrong, and the problem.
pub(crate) fn read_token_hashes(text: &str) -> Result<Vec<TokenConfig>, (usize, String)> {
    let lines = text.lines().enumerate().map(|(index, line)| (index + 1, line.trim()));
    let lines = lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
    let tokens = lines.map(|(number, line)| {
        let (hash, time) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        let hash: TokenHash = hash.parse().map_err(|error| (number, format!("{error}")))?;
        let expires_at = match time.trim() {
            "" => None,
            time => match ExpiryTime::parse(time) {
                Some(expires_at) => Some(expires_at),
                None => return Err((number, format!("after the hash: expected {EXPECTED_TIME}"))),
            },
        };
        Ok(TokenConfig { hash, expires_at })
    });
    tokens.collect()
}

/// The value of a condition: a claim of the identity, or a value of the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RuleText<'a> {
    Claim(&'a str),
    Literal(&'a str),
}

/// Reads a text that may be the name of a claim, `${claims.NAME}`. Returns `None` if the text only
/// contains one, which is not supported.
pub(crate) fn rule_text(text: &str) -> Option<RuleText<'_>> {
    let claim = text.strip_prefix("${claims.").and_then(|rest| rest.strip_suffix('}'));
    match claim {
        Some(claim) if !claim.is_empty() && !claim.contains(['$', '{', '}']) => Some(RuleText::Claim(claim)),
        Some(_) => None,
        None if text.contains("${") => None,
        None => Some(RuleText::Literal(text)),
    }
}

impl AccessConfig {
    fn check(&mut self, fields: &BlockFields, reader: &mut ConfigReader) {
        if fields.has("identities") && fields.names("identities").is_empty() {
            reader.report(
                fields,
                "identities",
                "there is no identity, so every call would be refused; name at least one",
            );
        }
        // Two identities with the same token would be confused.
        let mut seen: Vec<(TokenHash, &str)> = Vec::new();
        for (name, identity) in &self.identities {
            for token in &identity.tokens {
                if let Some((_, other)) = seen.iter().find(|(hash, _)| *hash == token.hash) {
                    let message = format!("{other} and {name} have the same token; give each its own");
                    reader.report(fields, "identities", message);
                }
                seen.push((token.hash, name));
            }
        }
    }

    /// Returns true if an identity is proven by a client's certificate.
    pub(crate) fn uses_certificates(&self) -> bool {
        self.identities.values().any(|identity| !identity.certificates.is_empty())
    }
}

impl AccessIdentityConfig {
    fn check(&mut self, fields: &BlockFields, reader: &mut ConfigReader) {
        let has_tokens = fields.item_count("tokens") > 0 || self.token_hashes_file.is_some();
        if !has_tokens && fields.item_count("certificates") == 0 && !fields.has("jwt") {
            reader.report(fields, "tokens", "nothing proves this identity; name a token, a certificate, or JWTs");
        }
    }
}

impl ReaderConfig {
    fn check(&mut self, fields: &BlockFields, reader: &mut ConfigReader) {
        check_grant(fields, reader, "tables");
        check_masks(&self.mask, &self.hide, fields, reader);
        for (rule, fields) in self.rows.iter().zip(fields.items("rows")) {
            let (key, text) = match rule {
                FilterConfig::FieldEquals { value: FilterValue::String(text), .. } => ("value", text.as_str()),
                FilterConfig::FieldEquals { .. } => continue,
                FilterConfig::FieldPrefix { prefix, .. } => ("prefix", prefix.as_str()),
                FilterConfig::FieldRegex { pattern, .. } if pattern.0.as_str().contains("claims.") => {
                    reader.report(
                        &fields,
                        "pattern",
                        "a pattern cannot have a claim; use field-equals or field-prefix",
                    );
                    continue;
                }
                FilterConfig::FieldRegex { .. } => continue,
            };
            if rule_text(text).is_none() {
                let message =
                    "a claim is the whole value; write \"${claims.NAME}\", in quotes and with nothing around it";
                reader.report(&fields, key, message);
            }
        }
    }
}

impl OperatorConfig {
    fn check(&mut self, fields: &BlockFields, reader: &mut ConfigReader) {
        check_grant(fields, reader, "orders");
    }
}

impl ObserverConfig {
    fn check(&mut self, fields: &BlockFields, reader: &mut ConfigReader) {
        check_grant(fields, reader, "identities");
    }
}

/// Checks that a grant names identities that exist, and that the list `what` is not empty.
fn check_grant(fields: &BlockFields, reader: &mut ConfigReader, what: &str) {
    reader.check_identities(fields, "identities");
    for key in ["identities", what] {
        if fields.has(key) && fields.item_count(key) == 0 {
            reader.report(fields, key, "is empty, so the grant is for nothing; name at least one, or remove the grant");
            break;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_is_the_whole_text() {
        assert_eq!(rule_text("${claims.tenant}"), Some(RuleText::Claim("tenant")));
        assert_eq!(rule_text("${claims.https://x.example/tenant}"), Some(RuleText::Claim("https://x.example/tenant")));
        for literal in ["", "tenant", "$claims", "{claims.tenant}", "claims.tenant"] {
            assert_eq!(rule_text(literal), Some(RuleText::Literal(literal)));
        }
        for wrong in ["${claims.}", "${claims.a}${claims.b}", "x${claims.a}", "${claims.a}x", "${tenant}", "${claims"] {
            assert_eq!(rule_text(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_file_of_tokens_has_a_hash_and_a_time_in_each_line() {
        let (one, two) = (TokenHash::of("one"), TokenHash::of("two"));
        let text = format!("# the second one is for the move\n\n{one}\r\n  {two}   2030-01-31T00:00:00Z \n");
        let tokens = read_token_hashes(&text).unwrap();
        assert_eq!(tokens.iter().map(|token| token.hash).collect::<Vec<_>>(), [one, two]);
        assert_eq!(tokens[0].expires_at, None);
        assert_eq!(tokens[1].expires_at, ExpiryTime::parse("2030-01-31T00:00:00Z"));
        assert_eq!(read_token_hashes(""), Ok(Vec::new()));
        for (text, line, problem) in [
            (format!("{one}\nno hash"), 2, "64 hexadecimal digits"),
            (format!("\n{one} tomorrow"), 2, "a time with its zone"),
            (format!("laredo_{one}"), 1, "it is a token"),
        ] {
            let (number, found) = read_token_hashes(&text).unwrap_err();
            assert!(number == line && found.contains(problem), "{text}: {number} {found}");
        }
    }

    #[test]
    fn a_time_has_a_zone() {
        let at = |text| ExpiryTime::parse(text).map(|time| time.at);
        assert_eq!(at("1970-01-01T00:00:01Z"), Some(CommitTime::from_unix_us(1_000_000)));
        assert_eq!(at("1970-01-01T01:00:01+01:00"), Some(CommitTime::from_unix_us(1_000_000)));
        for wrong in ["", "2030-01-01", "2030", "tomorrow", "2030-13-01T00:00:00Z"] {
            assert_eq!(at(wrong), None, "{wrong}");
        }
    }
}
