//! The schema of a configuration, as data: the keys of each block, and the kind of each value.
//!
//! The check for unknown keys and wrong types, the names of environment variables, and the typed
//! reading (`fields`) all use this data. Another program needs only another schema.

use std::time::Duration;

/// The schema of a whole configuration.
pub(crate) struct ConfigSchema {
    pub(crate) root: &'static BlockSchema,
    /// Keys that other implementations have and this one refuses: the name, and the sentence for
    /// the error.
    pub(crate) refused: &'static [(&'static str, &'static str)],
    /// The variable that names the configuration file.
    pub(crate) file_variable: &'static str,
    /// The prefix of this program's variables. Variables with another prefix are ignored.
    pub(crate) variable_prefix: &'static str,
    /// The names of such variables that belong to other programs, without `LAREDO_`. A name that
    /// ends in an underscore means all variables that begin with it.
    pub(crate) foreign_variables: &'static [&'static str],
}

/// The keys of one `{ … }`.
pub(crate) struct BlockSchema {
    pub(crate) keys: &'static [KeySchema],
}

/// A key of a block.
pub(crate) struct KeySchema {
    pub(crate) name: &'static str,
    pub(crate) kind: SettingKind,
    pub(crate) required: bool,
}

/// The kind of a value.
pub(crate) enum SettingKind {
    /// A string that `accepts` approves of; `expected` describes such strings.
    Text {
        accepts: fn(&str) -> bool,
        expected: &'static str,
    },
    /// A string that no message shows.
    Secret,
    Flag,
    /// A whole number within a range.
    Count {
        min: u64,
        max: u64,
    },
    /// A number within a range, whole or not.
    Ratio {
        min: f64,
        max: f64,
    },
    /// A duration with a unit: `200ms`, `5m`.
    Time {
        min: Duration,
        max: Duration,
    },
    /// A size in bytes: `512k`, `32MiB`.
    Size {
        min: u64,
        max: u64,
    },
    /// A rate in bytes per second: `20MiB/s`.
    Rate {
        min: u64,
        max: u64,
    },
    /// A choice between words, each with its other spellings.
    Choice(&'static [&'static [&'static str]]),
    /// Any string, number, boolean or null.
    Scalar,
    /// A block with known keys.
    Block(&'static BlockSchema),
    /// A block whose keys are names that the operator chooses.
    Map(&'static SettingKind),
    List(&'static SettingKind),
    /// A block whose other keys depend on the word under `tag`.
    Tagged(&'static VariantSchema),
    /// A block whose keys depend on the word under another key of the same block.
    Beside {
        tag: &'static str,
        variants: &'static [(&'static str, &'static BlockSchema)],
    },
    /// A key of another program or a later version; the sentence says why it is refused.
    Refused(&'static str),
}

/// The variants of a block.
pub(crate) struct VariantSchema {
    /// The key that selects the variant: `type`. Each variant's block has it, too.
    pub(crate) tag: &'static str,
    /// A description of the block for messages: "source type".
    pub(crate) what: &'static str,
    /// The variants: the words of each, of which the first is printed, and its block.
    pub(crate) variants: &'static [(&'static [&'static str], &'static BlockSchema)],
}

impl ConfigSchema {
    /// Returns the paths of all keys that have a value. `*` is a placeholder for names that the
    /// operator chooses.
    pub(crate) fn keys(&self) -> Vec<String> {
        let mut keys = Vec::new();
        collect(&SettingKind::Block(self.root), "", &mut keys);
        keys.dedup();
        keys
    }
}

fn collect(kind: &SettingKind, path: &str, keys: &mut Vec<String>) {
    match kind {
        SettingKind::Refused(_) => {}
        SettingKind::List(kind) => collect(kind, path, keys),
        SettingKind::Map(kind) => collect(kind, &format!("{path}.*"), keys),
        _ => {
            let blocks = kind.blocks();
            if blocks.is_empty() {
                keys.push(path.trim_start_matches('.').to_owned());
            }
            for key in blocks.into_iter().flat_map(|block| block.keys) {
                collect(&key.kind, &format!("{path}.{}", key.name), keys);
            }
        }
    }
}

impl SettingKind {
    /// Returns the blocks that a value of this kind may be.
    pub(crate) fn blocks(&self) -> Vec<&'static BlockSchema> {
        match self {
            SettingKind::Block(block) => vec![*block],
            SettingKind::Tagged(tagged) => tagged.variants.iter().map(|(_, block)| *block).collect(),
            SettingKind::Beside { variants, .. } => variants.iter().map(|(_, block)| *block).collect(),
            _ => Vec::new(),
        }
    }
}

impl KeySchema {
    pub(crate) const fn new(name: &'static str, kind: SettingKind) -> KeySchema {
        KeySchema { name, kind, required: false }
    }

    pub(crate) const fn required(name: &'static str, kind: SettingKind) -> KeySchema {
        KeySchema { name, kind, required: true }
    }
}

impl BlockSchema {
    pub(crate) fn key(&self, name: &str) -> Option<&'static KeySchema> {
        self.keys.iter().find(|key| key.name == name)
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &'static str> + use<> {
        self.keys.iter().filter(|key| !matches!(key.kind, SettingKind::Refused(_))).map(|key| key.name)
    }
}

impl VariantSchema {
    /// Returns the variant that a word selects: its printed name and its block.
    pub(crate) fn variant(&self, word: &str) -> Option<(&'static str, &'static BlockSchema)> {
        self.variants.iter().find(|(words, _)| words.contains(&word)).map(|(words, block)| (words[0], *block))
    }

    /// Returns all words, for messages.
    pub(crate) fn words(&self) -> impl Iterator<Item = &'static str> + use<> {
        self.variants.iter().flat_map(|(words, _)| words.iter().copied())
    }
}

/// A string that is not blank.
pub(crate) const TEXT: SettingKind =
    SettingKind::Text { accepts: |text| !text.trim().is_empty(), expected: "a string that is not empty" };

/// A string in which empty means missing.
pub(crate) const TEXT_OR_EMPTY: SettingKind = SettingKind::Text { accepts: |_| true, expected: "a string" };

/// The path of an HTTP endpoint.
pub(crate) const URL_PATH: SettingKind = SettingKind::Text {
    accepts: |text| {
        text.starts_with('/')
            && !text.contains("/:")
            && text.chars().all(|c| c.is_ascii_graphic() && !"?#{}*".contains(c))
    },
    expected: "a path that begins with / and has no ?, #, *, braces, spaces or part that begins with a colon",
};

/// A TCP port; 0 means any free one.
pub(crate) const PORT: SettingKind = SettingKind::Count { min: 0, max: u16::MAX as u64 };

/// A whole number, 1 or more.
pub(crate) const AT_LEAST_ONE: SettingKind = SettingKind::Count { min: 1, max: i64::MAX as u64 };

/// A number above 0.
pub(crate) const ABOVE_ZERO: SettingKind = SettingKind::Ratio { min: f64::MIN_POSITIVE, max: f64::MAX };

/// A duration from 1 s to 10 years. The maximum is practically unlimited, and sums of such
/// durations cannot overflow.
pub(crate) const AGE: SettingKind =
    SettingKind::Time { min: Duration::from_secs(1), max: Duration::from_secs(3650 * 86_400) };
