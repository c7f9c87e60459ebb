//! Single keys that are set outside of files: by `LAREDO_…` variables, `--set` and other flags.

use hocon::{Config, HoconValue};

use super::diagnostics::ConfigProblem;
use super::syntax::DEPTH_MAX;
use super::tree::{ConfigNode, ConfigPlace, ConfigValue, KeyPath};
use super::value::value_document;

/// A key, its new value as it was given, and the argument or variable that set it.
#[derive(Clone)]
pub(crate) struct KeyOverride {
    pub(crate) path: Vec<String>,
    pub(crate) value: String,
    pub(crate) place: ConfigPlace,
}

impl KeyOverride {
    /// Parses the `key=value` of a `--set`. Keys may be quoted: `sources."a.b".connection=…`.
    ///
    /// # Errors
    ///
    /// A problem, if the `=` or a key is missing, or if the keys nest too deep.
    pub(crate) fn parse(assignment: &str) -> Result<KeyOverride, ConfigProblem> {
        let mut path = vec![String::new()];
        let mut quoted = false;
        let mut chars = assignment.char_indices();
        let equals = chars.find_map(|(i, c)| {
            match c {
                '"' => quoted = !quoted,
                '=' if !quoted => return Some(i),
                '.' if !quoted => path.push(String::new()),
                c => path.last_mut().expect("a path has a first key").push(c),
            }
            None
        });
        let trimmed: Vec<_> = path.iter().map(|key| key.trim().to_owned()).collect();
        match equals {
            Some(_) if path.len() > DEPTH_MAX => Err(ConfigProblem::new(
                &ConfigPlace::Argument("--set".to_owned()),
                &KeyPath::default(),
                format!("keys nest at most {DEPTH_MAX} levels deep"),
            )),
            Some(equals) if trimmed.iter().all(|key| !key.is_empty()) => Ok(KeyOverride {
                value: assignment[equals + 1..].trim().to_owned(),
                place: ConfigPlace::Argument(format!("--set {}", assignment[..equals].trim())),
                path: trimmed,
            }),
            _ => Err(ConfigProblem::new(
                &ConfigPlace::Argument("--set".to_owned()),
                &KeyPath::default(),
                "expected key=value, as in --set grpc.port=4001",
            )),
        }
    }

    /// Returns true if the path reaches into a list. Only a resolved configuration has the list.
    pub(crate) fn reaches_into_list(&self) -> bool {
        self.path.iter().any(|key| key.parse::<usize>().is_ok())
    }

    /// Returns the override as a layer of configuration to merge.
    pub(crate) fn layer(&self) -> Result<Config, ConfigProblem> {
        value_document(&self.path, &self.text()).map_err(|error| self.problem(error))
    }

    /// Sets the key in a resolved tree. The path may have an index: `tables.0.targets.0.grpc.port`.
    pub(crate) fn apply(&self, root: &mut ConfigNode) -> Result<(), ConfigProblem> {
        let key = "value".to_owned();
        let config = value_document(std::slice::from_ref(&key), &self.text()).map_err(|error| self.problem(error))?;
        let null = HoconValue::Scalar(hocon::ScalarValue::null());
        let node = ConfigNode::join(config.get(&key).unwrap_or(&null), None, &self.place);
        let slot = self.slot(root)?;
        *slot = node;
        Ok(())
    }

    fn slot<'n>(&self, root: &'n mut ConfigNode) -> Result<&'n mut ConfigNode, ConfigProblem> {
        let mut node = root;
        for key in &self.path {
            if !matches!(node.value, ConfigValue::Object(_) | ConfigValue::List(_)) {
                *node = ConfigNode::empty(self.place.clone());
            }
            node = match &mut node.value {
                ConfigValue::List(items) => {
                    let count = items.len();
                    key.parse::<usize>().ok().and_then(|index| items.get_mut(index)).ok_or_else(|| {
                        self.problem(format!("there is no item {key} in a list of {count}; the first item is 0"))
                    })?
                }
                ConfigValue::Object(fields) => {
                    fields.entry(key.clone()).or_insert_with(|| ConfigNode::empty(self.place.clone()))
                }
                ConfigValue::Scalar(_) | ConfigValue::Unresolved => {
                    unreachable!("what is neither a block nor a list was replaced above")
                }
            };
        }
        Ok(node)
    }

    /// Returns the value as HOCON. Lists, blocks and quoted strings stay as they are, and so do
    /// numbers, booleans and null. Anything else becomes a string, so that a connection string
    /// needs no quotes.
    fn text(&self) -> String {
        let value = self.value.trim();
        let bare = matches!(value, "true" | "false" | "null")
            || (value.parse::<f64>().is_ok_and(f64::is_finite)
                && value.starts_with(|c: char| c == '-' || c.is_ascii_digit()));
        if bare || value.starts_with(['[', '{', '"']) {
            value.to_owned()
        } else {
            serde_json::Value::from(value).to_string()
        }
    }

    fn problem(&self, message: impl Into<String>) -> ConfigProblem {
        ConfigProblem::new(&self.place, &KeyPath::from_keys(&self.path), message)
    }
}

#[cfg(test)]
mod tests {
    use super::KeyOverride;

    #[test]
    fn an_assignment_is_split_at_its_first_unquoted_equals_sign() {
        let set = KeyOverride::parse("sources.\"a.b=c\".connection = host=h password=p").expect("valid");
        assert_eq!(set.path, ["sources", "a.b=c", "connection"]);
        assert_eq!(set.value, "host=h password=p");
        for wrong in ["", "=", "grpc.port", "=5", "a..b=1", ".a=1", "\"a=1"] {
            assert!(KeyOverride::parse(wrong).is_err(), "{wrong}");
        }
    }
}
