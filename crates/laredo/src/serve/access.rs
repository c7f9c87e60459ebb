//! The access rules of the server, from its configuration.

use std::collections::BTreeMap;

use laredo_server::{
    AccessGrants, AccessOptions, GrantSubjects, IdentityLimits, IdentityOptions, JwtKeys, JwtOptions, NamePattern,
    OperatorGrant, ReaderGrant, RowRule, RowTest, TokenOptions,
};

use super::jwt_keys::JwtKeySources;
use super::options::{column_masks, predicate};
use crate::config::ServerConfig;
use crate::config::server::{
    AccessConfig, AccessIdentityConfig, EndpointAccess, FilterConfig, FilterValue, JwtConfig, ReaderConfig, RuleText,
    rule_text,
};
use crate::program::ProgramFailure;

/// Returns the rules; `None` without the block `access`. The keys of JWTs come from `sources`.
///
/// # Errors
/// All files of keys that cannot be read, each a sentence.
pub(super) fn access(config: &ServerConfig, sources: &JwtKeySources) -> Result<Option<AccessOptions>, ProgramFailure> {
    let Some(access) = &config.access else { return Ok(None) };
    let options = sources.replace(access).and_then(|keys| options(access, &keys));
    options.map(Some).map_err(ProgramFailure::Misconfigured)
}

/// Logs a warning if callers send their tokens in plain text.
pub(super) fn log_plain_text_tokens(config: &ServerConfig) {
    let mut identities = config.access.iter().flat_map(|access| access.identities.values());
    let has_tokens = identities.any(|identity| !identity.tokens.is_empty() || identity.jwt.is_some());
    if has_tokens && config.grpc.tls.is_none() {
        tracing::warn!(
            "access: callers send their tokens in plain text, so anyone on the network can read them; set grpc.tls, or \
             put the server behind a proxy with TLS"
        );
    }
}

fn options(access: &AccessConfig, keys: &BTreeMap<String, JwtKeys>) -> Result<AccessOptions, Vec<String>> {
    let (mut readers, mut unreadable) = (Vec::new(), Vec::new());
    for (number, grant) in access.readers.iter().enumerate() {
        match reader(grant) {
            Ok(grant) => readers.push(grant),
            Err(error) => unreadable.push(format!("access.readers[{number}].mask: {error}")),
        }
    }
    if !unreadable.is_empty() {
        return Err(unreadable);
    }
    let grants = AccessGrants {
        readers,
        operators: access
            .operators
            .iter()
            .map(|grant| OperatorGrant {
                subjects: subjects(&grant.identities, &grant.claims),
                orders: grant.orders.clone(),
            })
            .collect(),
        observers: access.observers.iter().map(|grant| subjects(&grant.identities, &grant.claims)).collect(),
    };
    let identities = access.identities.iter().map(|(name, config)| identity(name, config, keys.get(name)));
    Ok(AccessOptions {
        identities: identities.collect(),
        grants,
        health_is_open: access.health == EndpointAccess::Anyone,
        metrics_are_open: access.metrics == EndpointAccess::Anyone,
    })
}

fn identity(name: &str, config: &AccessIdentityConfig, keys: Option<&JwtKeys>) -> IdentityOptions {
    let tokens = config.tokens.iter().map(|token| TokenOptions {
        hash: token.hash,
        expires_at: token.expires_at.as_ref().map(|expires_at| expires_at.at),
    });
    IdentityOptions {
        name: name.to_owned(),
        claims: config.claims.iter().cloned().collect(),
        tokens: tokens.collect(),
        certificates: config.certificates.iter().map(|pattern| NamePattern::new(pattern.as_str())).collect(),
        jwt: config.jwt.as_ref().zip(keys).map(|(config, keys)| jwt(config, keys.clone())),
        limits: IdentityLimits {
            streams_max: config.limits.streams,
            new_streams_per_second: config.limits.new_streams,
            snapshot_bytes_per_second: config.limits.snapshot_rate,
        },
    }
}

fn jwt(config: &JwtConfig, keys: JwtKeys) -> JwtOptions {
    JwtOptions {
        issuer: config.issuer.clone(),
        audiences: config.audiences.clone(),
        keys,
        algorithms: config.accepted_algorithms(),
        subjects: config.subjects.iter().map(|pattern| NamePattern::new(pattern.as_str())).collect(),
        required_claims: config.required_claims.iter().cloned().collect(),
        leeway: config.leeway,
    }
}

fn subjects(identities: &[String], claims: &[(String, String)]) -> GrantSubjects {
    GrantSubjects { identities: identities.to_vec(), claims: claims.iter().cloned().collect() }
}

fn reader(grant: &ReaderConfig) -> Result<ReaderGrant, String> {
    let masked: Vec<_> = grant.mask.iter().map(column_masks).collect::<Result<_, _>>()?;
    Ok(ReaderGrant {
        subjects: subjects(&grant.identities, &grant.claims),
        // The configuration accepts only valid patterns.
        tables: grant.tables.iter().filter_map(|pattern| pattern.parse().ok()).collect(),
        rows: grant.rows.iter().map(row_rule).collect(),
        hidden_columns: grant.hide.clone(),
        masked_columns: masked.into_iter().flatten().collect(),
    })
}

fn row_rule(filter: &FilterConfig) -> RowRule {
    let claim = |text: &str| match rule_text(text) {
        Some(RuleText::Claim(claim)) => Some(claim.to_owned()),
        Some(RuleText::Literal(_)) | None => None,
    };
    let claimed = match filter {
        FilterConfig::FieldEquals { field, value: FilterValue::String(text) } => {
            claim(text).map(|claim| (field, RowTest::EqualsClaim(claim)))
        }
        FilterConfig::FieldPrefix { field, prefix } => {
            claim(prefix).map(|claim| (field, RowTest::BeginsWithClaim(claim)))
        }
        FilterConfig::FieldEquals { .. } | FilterConfig::FieldRegex { .. } => None,
    };
    match claimed {
        Some((field, test)) => RowRule { field: field.clone(), test },
        None => {
            let fixed = predicate(filter);
            RowRule { field: fixed.field, test: RowTest::Fixed(fixed.test) }
        }
    }
}

#[cfg(test)]
mod tests {
    use laredo_engine::{CellReplacement, ValueMask};

    use super::*;
    use crate::config::server::{ColumnMaskConfig, HashConfig, MaskConfig};

    fn masking(mask: ColumnMaskConfig) -> ReaderConfig {
        ReaderConfig { mask: vec![mask], ..ReaderConfig::default() }
    }

    #[test]
    fn each_column_of_a_mask_has_the_replacement() {
        let fields = vec!["card".to_owned(), "phone".to_owned()];
        let mask = ColumnMaskConfig::Mask(MaskConfig { fields, keep_last: Some(4), ..MaskConfig::default() });
        let grant = reader(&masking(mask)).unwrap();
        let replacement = CellReplacement::Mask(ValueMask::Partial { keep_first: 0, keep_last: 4, with: '*' });
        let expected = ["card", "phone"].map(|column| (column.to_owned(), replacement.clone()));
        assert_eq!(grant.masked_columns, expected);
    }

    #[test]
    fn a_key_that_cannot_be_read_is_reported_with_its_grant() {
        let key_file = Some("/no/such/key".into());
        let hash = HashConfig { fields: vec!["card".to_owned()], key_file, ..HashConfig::default() };
        let readers = vec![ReaderConfig::default(), masking(ColumnMaskConfig::Hash(hash))];
        let problems = options(&AccessConfig { readers, ..AccessConfig::default() }).err().unwrap();
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert!(problems[0].starts_with("access.readers[1].mask: key_file /no/such/key: "), "{problems:?}");
    }
}
