//! The merging of a configuration's layers in their order, and the resolving of the result.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use hocon::{Config, HoconError, ResolveOptions};

use super::diagnostics::Problem;
use super::document::Reader;
use super::load::Loader;
use super::marks::Marks;
use super::nearest::nearest;
use super::overrides::Override;
use super::schema::Schema;
use super::sources::Sources;
use super::tree::{KeyPath, Node, Place, Value};
use super::variables;

/// The folder of `*.conf` files unless another one is given.
const CONF_DIR_DEFAULT: &str = "/etc/laredo/conf.d";
/// The default of the second such folder, the init folder. Container images provide configuration
/// files in it.
const INIT_DIR_DEFAULT: &str = "/docker-entrypoint-init.d";

/// A configuration while it is being merged: the layers so far, with their places and problems.
pub(crate) struct Merging {
    pub(crate) sources: Sources,
    pub(crate) problems: Vec<Problem>,
    marks: Marks,
    merged: Config,
}

impl Merging {
    pub(crate) fn new() -> Self {
        Merging {
            sources: Sources::default(),
            problems: Vec::new(),
            marks: Marks::new(Place::Nowhere),
            merged: hocon::empty(None),
        }
    }

    /// Returns the merged tree. Returns `None` if a file cannot be read, or if the result cannot be
    /// resolved.
    pub(crate) fn tree(&mut self, loader: &Loader, schema: &Schema) -> Option<Node> {
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
    fn files(&mut self, loader: &Loader, schema: &Schema) -> Vec<(PathBuf, Place)> {
        let mut files = Vec::new();
        if let Some(file) = &loader.file {
            files.push((file.clone(), Place::Argument("--config".to_owned())));
        } else if let Some(file) = loader.environment.get(schema.file_variable)
            && !file.is_empty()
        {
            let variable = Place::Variable(schema.file_variable.to_owned());
            files.push((PathBuf::from(file), variable));
        }
        for (flag, named, default) in
            [("--conf-dir", &loader.conf_dir, CONF_DIR_DEFAULT), ("--init-dir", &loader.init_dir, INIT_DIR_DEFAULT)]
        {
            let place = Place::Argument(flag.to_owned());
            let folder = named.as_deref().unwrap_or(Path::new(default));
            if named.is_none() && !folder.is_dir() {
                continue;
            }
            match conf_files(folder) {
                Ok(found) => files.extend(found.into_iter().map(|file| (file, place.clone()))),
                Err(error) => self.problems.push(Problem::new(
                    &place,
                    &KeyPath::default(),
                    format!("cannot read the folder {}: {error}", folder.display()),
                )),
            }
        }
        files
    }

    fn file(&mut self, path: &Path, place: &Place) {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) => {
                self.problems.push(Problem::new(
                    place,
                    &KeyPath::default(),
                    format!("cannot read {}: {error}", path.display()),
                ));
                return;
            }
        };
        let mut reader = Reader::new(&mut self.sources, &mut self.problems);
        if let Some(layer) = reader.document(path, &text, &mut self.marks) {
            self.merged = layer.with_fallback(&self.merged);
        }
    }

    /// Returns the keys that variables and arguments set, in order.
    fn settings(&mut self, loader: &Loader, schema: &Schema) -> Vec<Override> {
        let mut settings = Vec::new();
        for (name, value) in &loader.environment {
            if !variables::is_ours(schema, name, value) {
                continue;
            }
            let place = Place::Variable(name.clone());
            let mut keys = variables::keys(schema, name, &self.marks);
            match keys.len() {
                1 => settings.push(Override { path: keys.remove(0), value: value.clone(), place }),
                0 => self.problems.push(self.unknown_variable(schema, name, &place)),
                _ => {
                    let keys: Vec<_> = keys.iter().map(|keys| KeyPath::from_keys(keys).to_string()).collect();
                    let message = format!("may mean {}; set the key with --set", keys.join(" or "));
                    self.problems.push(Problem::new(&place, &KeyPath::default(), message));
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

    fn unknown_variable(&self, schema: &Schema, name: &str, place: &Place) -> Problem {
        let problem = Problem::new(place, &KeyPath::default(), "sets no known key");
        let names = variables::names(schema, &self.marks);
        match nearest(name, names.iter().map(String::as_str)) {
            Some(near) => problem.help(format!("did you mean {near}?")),
            None => problem,
        }
    }

    /// Resolves `${…}` from the keys, and then from the environment.
    fn resolve(&mut self, environment: &BTreeMap<String, String>) -> Option<Node> {
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
                self.holes(&tree, &KeyPath::default());
                Some(tree)
            }
            _ => {
                let problem = self.unresolvable(&error);
                self.problems.push(problem);
                None
            }
        }
    }

    fn holes(&mut self, node: &Node, path: &KeyPath) {
        match &node.value {
            Value::Unresolved => {
                let name = self.sources.substitution_at(&node.place);
                let what = name.unwrap_or("a substitution here").to_owned();
                let message = format!("{what} has no value: no such key and no such variable");
                self.problems.push(Problem::new(&node.place, path, message));
            }
            Value::Object(fields) => {
                for (key, field) in fields {
                    self.holes(field, &path.key(key));
                }
            }
            Value::List(items) => {
                for (i, item) in items.iter().enumerate() {
                    self.holes(item, &path.index(i));
                }
            }
            Value::Scalar(_) => {}
        }
    }

    fn unresolvable(&self, error: &HoconError) -> Problem {
        let (place, message) = match error {
            HoconError::Resolve(error) => {
                (self.sources.substitution_place(error.line, error.col), error.message.clone())
            }
            error => (Place::Nowhere, error.to_string()),
        };
        Problem::new(&place, &KeyPath::default(), message)
    }

    fn root(&self, config: &Config) -> Node {
        let mut root = Node::empty(Place::Nowhere);
        if let Value::Object(fields) = &mut root.value {
            for key in config.keys() {
                let quoted = serde_json::Value::from(key).to_string();
                let marks = self.marks.children.get(key);
                if let Some(value) = config.get(&quoted) {
                    let node = Node::join(value, marks, &Place::Nowhere);
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
