//! Values that are given outside of files.

use hocon::{Config, ParseOptions};

use super::syntax::{HoconSyntaxError, check_braces, parse};

/// Parses a value that was given outside of a file, such as `[1, 2]` or `"text"`, as the value of
/// `path`. The error never quotes the value.
pub(crate) fn value_document(path: &[String], value: &str) -> Result<Config, String> {
    let key = path.iter().map(|key| serde_json::Value::from(key.as_str()).to_string()).collect::<Vec<_>>().join(".");
    let read = || -> Result<Config, HoconSyntaxError> {
        // The value is checked alone first, because the key before it would hide some errors.
        check_braces(&hocon::tokenize(value)?)?;
        let text = format!("{key} = {value}");
        parse(&text, 0)?;
        let options = ParseOptions::defaults().with_resolve_substitutions(false);
        Ok(hocon::parse_string_with_options(&text, options)?)
    };
    read().map_err(|_| "the value is not valid HOCON".to_owned())
}
