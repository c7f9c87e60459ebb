//! The merging of a configuration's layers in their order, and the resolving of the result.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use hocon::{Config, HoconError, ResolveOptions};

use super::diagnostics::ConfigProblem;
use super::document::DocumentReader;
use super::key_places::KeyPlaces;
use super::load::ConfigLoader;
use super::overrides::KeyOverride;
use super::schema::ConfigSchema;
use super::sources::ConfigTexts;
use super::suggestions::nearest;
use super::tree::{ConfigNode, ConfigPlace, ConfigValue, KeyPath};
use super::variables;

/// The folder of `*.conf` files unless another one is given.
const CONF_DIR_DEFAULT: &str = "/etc/laredo/conf.d";
/// The default of the second such folder, the init folder. Container images provide configuration
/// files in it.
const INIT_DIR_DEFAULT: &str = "/docker-entrypoint-init.d";

/// A configuration while it is being merged: the layers so far, with their places and problems.
pub(crate) struct LayerMerger {
    pub(crate) sources: ConfigTexts,
    pub(crate) problems: Vec<ConfigProblem>,
    marks: KeyPlaces,
    merged: Config,
}

impl LayerMerger {
    pub(crate) fn new() -> Self {
        LayerMerger {
            sources: ConfigTexts::default(),
            problems: Vec::new(),
            marks: KeyPlaces::new(ConfigPlace::Nowhere),
            merged: hocon::empty(None),
        }
    }

    /// Returns the merged tree. Returns `None` if a file cannot be read, or if the result cannot be
    /// resolved.
    pub(crate) fn tree(&mut self, loader: &ConfigLoader, schema: &ConfigSchema) -> Option<ConfigNode> {
        for (path, place) in self.files(loader, schema) {
            self.file(&path, &place);
        }
        // While a file is unreadable, the keys of the others cannot be checked.
        if !self.problems.is_empty() {
            self.problems.extend(loader.settings.iter().filter_map(|s| s.clone().err()));
            return None;
        }
        let mut inside_lists = Vec::new();
        for setting in self.settings(loader, schema) {
            if setting.reaches_into_list() {
                inside_lists.push(setting);
                continue;
            }
            match setting.layer() {
                Ok(layer) => {
                    self.marks.set(&setting.path, &setting.place);
                    self.merged = layer.with_fallback(&self.merged);
                }
                Err(problem) => self.problems.push(problem),
            }
        }
        let mut tree = self.resolve(&loader.environment)?;
        for setting in inside_lists {
            if let Err(problem) = setting.apply(&mut tree) {
                self.problems.push(problem);
            }
        }
        Some(tree)
    }

    /// Returns the files to read, in order, each with the argument or variable that named it.
    pub(crate) fn files(&mut self, loader: &ConfigLoader, schema: &ConfigSchema) -> Vec<(PathBuf, ConfigPlace)> {
        let mut files = Vec::new();
        if let Some(file) = &loader.file {
            files.push((file.clone(), ConfigPlace::Argument("--config".to_owned())));
        } else if let Some(file) = loader.environment.get(schema.file_variable)
            && !file.is_empty()
        {
            let variable = ConfigPlace::Variable(schema.file_variable.to_owned());
            files.push((PathBuf::from(file), variable));
        }
        for (flag, named, default) in
            [("--conf-dir", &loader.conf_dir, CONF_DIR_DEFAULT), ("--init-dir", &loader.init_dir, INIT_DIR_DEFAULT)]
        {
            let place = ConfigPlace::Argument(flag.to_owned());
            let folder = named.as_deref().unwrap_or(Path::new(default));
            if named.is_none() && !folder.is_dir() {
                continue;
            }
            match conf_files(folder) {
                Ok(found) => files.extend(found.into_iter().map(|file| (file, place.clone()))),
                Err(error) => self.problems.push(ConfigProblem::new(
                    &place,
                    &KeyPath::default(),
                    format!("cannot read the folder {}: {error}", folder.display()),
                )),
            }
        }
        files
    }

    fn file(&mut self, path: &Path, place: &ConfigPlace) {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) => {
                self.problems.push(ConfigProblem::new(
                    place,
                    &KeyPath::default(),
                    format!("cannot read {}: {error}", path.display()),
                ));
                return;
            }
        };
        let mut reader = DocumentReader::new(&mut self.sources, &mut self.problems);
        if let Some(layer) = reader.document(path, &text, &mut self.marks) {
            self.merged = layer.with_fallback(&self.merged);
        }
    }

    /// Returns the keys that variables and arguments set, in order.
    fn settings(&mut self, loader: &ConfigLoader, schema: &ConfigSchema) -> Vec<KeyOverride> {
        let mut settings = Vec::new();
        for (name, value) in &loader.environment {
            if !variables::is_ours(schema, name, value) {
                continue;
            }
            let place = ConfigPlace::Variable(name.clone());
            let mut keys = variables::keys(schema, name, &self.marks);
            match keys.len() {
                1 => settings.push(KeyOverride { path: keys.remove(0), value: value.clone(), place }),
                0 => self.problems.push(self.unknown_variable(schema, name, &place)),
                _ => {
                    let keys: Vec<_> = keys.iter().map(|keys| KeyPath::from_keys(keys).to_string()).collect();
                    let message = format!("may mean {}; set the key with --set", keys.join(" or "));
                    self.problems.push(ConfigProblem::new(&place, &KeyPath::default(), message));
                }
            }
        }
        for setting in &loader.settings {
            match setting {
                Ok(setting) => settings.push(setting.clone()),
                Err(problem) => self.problems.push(problem.clone()),
            }
        }
        settings
    }

    fn unknown_variable(&self, schema: &ConfigSchema, name: &str, place: &ConfigPlace) -> ConfigProblem {
        let problem = ConfigProblem::new(place, &KeyPath::default(), "sets no known key");
        let names = variables::names(schema, &self.marks);
        match nearest(name, names.iter().map(String::as_str)) {
            Some(near) => problem.help(format!("did you mean {near}?")),
            None => problem,
        }
    }

    /// Resolves `${…}` from the keys, and then from the environment.
    fn resolve(&mut self, environment: &BTreeMap<String, String>) -> Option<ConfigNode> {
        let strict = ResolveOptions::defaults().with_use_system_environment(false);
        let lenient = strict.clone().with_allow_unresolved(true);
        let resolve = |options| {
            let variables = environment_layer(environment)?;
            self.merged.resolve_with(&variables, options)
        };
        let error = match resolve(strict) {
            Ok(config) => return Some(self.root(&config)),
            Err(error) => error,
        };
        // Resolve again and leave gaps, to find every substitution without a value, and the other
        // errors too.
        match resolve(lenient) {
            Ok(config) if !config.is_resolved() => {
                let tree = self.root(&config);
                self.report_unresolved(&tree, &KeyPath::default());
                Some(tree)
            }
            _ => {
                let problem = self.unresolvable(&error);
                self.problems.push(problem);
                None
            }
        }
    }

    fn report_unresolved(&mut self, node: &ConfigNode, path: &KeyPath) {
        match &node.value {
            ConfigValue::Unresolved => {
                let name = self.sources.substitution_at(&node.place);
                let what = name.unwrap_or("a substitution here").to_owned();
                let message = format!("{what} has no value: no such key and no such variable");
                self.problems.push(ConfigProblem::new(&node.place, path, message));
            }
            ConfigValue::Object(fields) => {
                for (key, field) in fields {
                    self.report_unresolved(field, &path.key(key));
                }
            }
            ConfigValue::List(items) => {
                for (i, item) in items.iter().enumerate() {
                    self.report_unresolved(item, &path.index(i));
                }
            }
            ConfigValue::Scalar(_) => {}
        }
    }

    fn unresolvable(&self, error: &HoconError) -> ConfigProblem {
        let (place, message) = match error {
            HoconError::Resolve(error) => {
                (self.sources.substitution_place(error.line, error.col), error.message.clone())
            }
            error => (ConfigPlace::Nowhere, error.to_string()),
        };
        ConfigProblem::new(&place, &KeyPath::default(), message)
    }

    fn root(&self, config: &Config) -> ConfigNode {
        let mut root = ConfigNode::empty(ConfigPlace::Nowhere);
        if let ConfigValue::Object(fields) = &mut root.value {
            for key in config.keys() {
                let quoted = serde_json::Value::from(key).to_string();
                let marks = self.marks.children.get(key);
                if let Some(value) = config.get(&quoted) {
                    let node = ConfigNode::join(value, marks, &ConfigPlace::Nowhere);
                    fields.insert(key.to_owned(), node);
                }
            }
        }
        root
    }
}

/// Makes a layer of the environment, from which substitutions are resolved.
fn environment_layer(environment: &BTreeMap<String, String>) -> Result<Config, HoconError> {
    // JSON is HOCON. The quotes keep names with dots from being read as paths.
    let json = serde_json::Value::from_iter(environment.iter().map(|(k, v)| (k.as_str(), v.as_str())));
    hocon::parse_with_env(&json.to_string(), &Default::default())
}

/// Returns the `*.conf` files of a folder, sorted by name. Leaves out hidden files, as `*` does in
/// a shell.
fn conf_files(folder: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        if !hidden && path.extension().is_some_and(|e| e == "conf") && path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}
