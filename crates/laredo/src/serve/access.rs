//! The access rules of the server, from its configuration.

use std::path::Path;

use laredo_server::{
    AccessGrants, AccessOptions, GrantSubjects, IdentityLimits, IdentityOptions, JwtKeys, JwtOptions, NamePattern,
    OperatorGrant, ReaderGrant, RowRule, RowTest, TokenOptions,
};

use super::jwt_keys::JwtKeySources;
use super::options::{column_masks, predicate};
use crate::config::ServerConfig;
use crate::config::server::{
    AccessConfig, AccessIdentityConfig, EndpointAccess, FilterConfig, FilterValue, JwtConfig, OperatorConfig,
    ReaderConfig, RuleText, TokenConfig, read_token_hashes, rule_text,
};

/// Reads the rules, with the files that they name. Returns `None` without the block `access`. The
/// keys of JWTs come from `sources`.
///
/// # Errors
/// Returns all problems of the files, each a sentence.
pub(super) fn read_access(
    config: &ServerConfig,
    sources: &JwtKeySources,
) -> Result<Option<AccessOptions>, Vec<String>> {
    let Some(access) = &config.access else { return Ok(None) };
    let (mut problems, mut identities) = (Vec::new(), Vec::new());
    for (name, config) in &access.identities {
        match config.token_hashes_file.as_deref().map(|file| read_tokens(name, file)).transpose() {
            Ok(tokens) => identities.push(identity(name, config, &tokens.unwrap_or_default())),
            Err(problem) => problems.push(problem),
        }
    }
    problems.extend(shared_tokens(&identities));
    let grants = grants(access).unwrap_or_else(|unreadable| {
        problems.extend(unreadable);
        AccessGrants::default()
    });
    if !problems.is_empty() {
        return Err(problems);
    }
    // Last, because it changes the sources.
    let keys = sources.replace(access)?;
    for (identity, config) in identities.iter_mut().zip(access.identities.values()) {
        identity.jwt =
            config.jwt.as_ref().zip(keys.get(&identity.name)).map(|(config, keys)| jwt(config, keys.clone()));
    }
    Ok(Some(AccessOptions {
        identities,
        grants,
        health_is_open: access.health == EndpointAccess::Anyone,
        metrics_are_open: access.metrics == EndpointAccess::Anyone,
    }))
}

fn read_tokens(name: &str, file: &Path) -> Result<Vec<TokenConfig>, String> {
    let key = format!("access.identities.{name}.token_hashes_file");
    let text = std::fs::read_to_string(file)
        .map_err(|error| format!("{key}: cannot read {}: {error}; name a file of hashes", file.display()))?;
    read_token_hashes(&text).map_err(|(line, problem)| format!("{key}: {}:{line}: {problem}", file.display()))
}

/// Returns a problem for each token that proves two identities. Callers would be confused.
fn shared_tokens(identities: &[IdentityOptions]) -> Vec<String> {
    let mut problems = Vec::new();
    for (index, one) in identities.iter().enumerate() {
        for other in &identities[..index] {
            let is_shared = |token: &TokenOptions| other.tokens.iter().any(|known| known.hash == token.hash);
            if one.tokens.iter().any(is_shared) {
                let (one, other) = (&one.name, &other.name);
                problems.push(format!("access.identities: {other} and {one} have the same token; give each its own"));
            }
        }
    }
    problems
}

/// Logs a warning if callers send their tokens in plain text.
pub(super) fn log_plain_text_tokens(config: &ServerConfig) {
    let mut identities = config.access.iter().flat_map(|access| access.identities.values());
    let has_tokens = identities
        .any(|identity| !identity.tokens.is_empty() || identity.token_hashes_file.is_some() || identity.jwt.is_some());
    if has_tokens && config.grpc.tls.is_none() {
        tracing::warn!(
            event = "tokens_in_plain_text",
            "access: callers send their tokens in plain text, so anyone on the network can read them; set grpc.tls, or \
             put the server behind a proxy with TLS"
        );
    }
}

/// Returns the grants.
///
/// # Errors
/// Every key of a hash that cannot be read.
fn grants(access: &AccessConfig) -> Result<AccessGrants, Vec<String>> {
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
    let operator = |grant: &OperatorConfig| OperatorGrant {
        subjects: subjects(&grant.identities, &grant.claims),
        orders: grant.orders.clone(),
    };
    Ok(AccessGrants {
        readers,
        operators: access.operators.iter().map(operator).collect(),
        observers: access.observers.iter().map(|grant| subjects(&grant.identities, &grant.claims)).collect(),
    })
}

/// Returns an identity without the JWTs that prove it.
fn identity(name: &str, config: &AccessIdentityConfig, more_tokens: &[TokenConfig]) -> IdentityOptions {
    let tokens = config.tokens.iter().chain(more_tokens).map(|token| TokenOptions {
        hash: token.hash,
        expires_at: token.expires_at.as_ref().map(|expires_at| expires_at.at),
    });
    IdentityOptions {
        name: name.to_owned(),
        claims: config.claims.iter().cloned().collect(),
        tokens: tokens.collect(),
        certificates: config.certificates.iter().map(|pattern| NamePattern::new(pattern.as_str())).collect(),
        jwt: None,
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
        let problems = grants(&AccessConfig { readers, ..AccessConfig::default() }).err().unwrap();
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert!(problems[0].starts_with("access.readers[1].mask: key_file /no/such/key: "), "{problems:?}");
    }
}
