//! The assembly of a configuration from its layers: files, folders, variables and arguments.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::check::check;
use super::diagnostics::{ConfigProblem, ConfigReport};
use super::layers::LayerMerger;
use super::overrides::KeyOverride;
use super::schema::ConfigSchema;
use super::sources::ConfigTexts;
use super::tree::{ConfigNode, ConfigPlace, KeyPath};

/// The stack size of the thread that reads the configuration. Only the used part takes memory.
const STACK_BYTES: usize = 64 << 20;

/// The layers of a configuration. Later ones win. The order is: the file, the configuration folder,
/// the init folder, `LAREDO_…` variables, settings in the order they were given. The `*.conf` files
/// of a folder are sorted by name.
#[derive(Clone)]
pub struct ConfigLoader {
    pub(super) environment: BTreeMap<String, String>,
    pub(super) file: Option<PathBuf>,
    pub(super) conf_dir: Option<PathBuf>,
    pub(super) init_dir: Option<PathBuf>,
    pub(super) settings: Vec<Result<KeyOverride, ConfigProblem>>,
}

impl ConfigLoader {
    /// Makes a loader that sees these environment variables and no others.
    pub fn new(environment: impl IntoIterator<Item = (String, String)>) -> Self {
        ConfigLoader {
            environment: environment.into_iter().collect(),
            file: None,
            conf_dir: None,
            init_dir: None,
            settings: Vec::new(),
        }
    }

    /// Makes a loader that sees the process's environment, without variables that are not UTF-8.
    pub fn from_process() -> Self {
        ConfigLoader::new(std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?))))
    }

    /// Names the configuration file (`--config`). This overrides `LAREDO_CONFIG`, or for the
    /// snapshotter `LAREDO_SNAPSHOTTER_CONFIG`.
    pub fn file(mut self, file: impl Into<PathBuf>) -> Self {
        self.file = Some(file.into());
        self
    }

    /// Names the configuration folder (`--conf-dir`). A named folder must exist; the default
    /// folder, `/etc/laredo/conf.d`, need not.
    pub fn conf_dir(mut self, folder: impl Into<PathBuf>) -> Self {
        self.conf_dir = Some(folder.into());
        self
    }

    /// Names the init folder (`--init-dir`). A named folder must exist; the default folder,
    /// `/docker-entrypoint-init.d`, need not.
    pub fn init_dir(mut self, folder: impl Into<PathBuf>) -> Self {
        self.init_dir = Some(folder.into());
        self
    }

    /// Adds the `key=value` of a `--set`. An invalid setting is reported when the configuration is
    /// loaded.
    pub fn set(mut self, assignment: &str) -> Self {
        self.settings.push(KeyOverride::parse(assignment));
        self
    }

    /// Adds a key that a flag of its own sets, such as `--health-port`. Errors name the flag.
    pub fn flag(mut self, flag: &str, key: &str, value: impl Into<String>) -> Self {
        self.settings.push(Ok(KeyOverride {
            path: key.split('.').map(str::to_owned).collect(),
            value: value.into(),
            place: ConfigPlace::Argument(flag.to_owned()),
        }));
        self
    }

    /// Returns the files that are read and merged, in their order, without those that they include.
    pub(crate) fn files(&self, schema: &ConfigSchema) -> Vec<PathBuf> {
        LayerMerger::new().files(self, schema).into_iter().map(|(path, _)| path).collect()
    }

    /// Reads and merges the layers, checks them against a schema, and passes the tree to `read`,
    /// which adds the problems that a schema cannot detect. Reading continues after an error, so
    /// that one report has all problems.
    pub(crate) fn load<T: Send>(
        &self,
        schema: &'static ConfigSchema,
        read: impl FnOnce(&ConfigNode, &mut Vec<ConfigProblem>) -> T + Send,
    ) -> Result<T, ConfigReport> {
        // Merging and resolving recurse. This stack is enough for documents within the limits.
        std::thread::scope(|scope| {
            std::thread::Builder::new()
                .name("configuration".to_owned())
                .stack_size(STACK_BYTES)
                .spawn_scoped(scope, || self.load_here(schema, read))
                .map_err(|error| {
                    let message = format!("cannot start a thread to read the configuration: {error}");
                    let problem = ConfigProblem::new(&ConfigPlace::Nowhere, &KeyPath::default(), message);
                    ConfigReport::new(ConfigTexts::default(), vec![problem])
                })?
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    fn load_here<T>(
        &self,
        schema: &ConfigSchema,
        read: impl FnOnce(&ConfigNode, &mut Vec<ConfigProblem>) -> T,
    ) -> Result<T, ConfigReport> {
        let mut merging = LayerMerger::new();
        let tree = merging.tree(self, schema);
        let LayerMerger { sources, mut problems, .. } = merging;
        let value = tree.map(|tree| {
            check(schema, &tree, &mut problems);
            read(&tree, &mut problems)
        });
        match value {
            Some(value) if problems.is_empty() => Ok(value),
            _ => {
                problems.sort_by_key(|problem| order(&problem.place));
                Err(ConfigReport::new(sources, problems))
            }
        }
    }
}

/// Returns a problem's sort key. Problems are reported file by file, from top to bottom; those
/// without a file come last.
fn order(place: &ConfigPlace) -> (usize, usize, usize) {
    match place {
        ConfigPlace::File { source, line, column } => (*source, *line, *column),
        _ => (usize::MAX, 0, 0),
    }
}
