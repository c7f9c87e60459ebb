//! The schema of a configuration, as data: the keys of each block, and the kind of each value.
//!
//! The schema is made from the declarations (`declaration`). The check for unknown keys and wrong
//! types, the names of environment variables, and the reference of `docs/configuration.md` use it.

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
    pub(crate) fields: &'static [FieldSchema],
}

/// A part of a block's schema.
#[derive(Clone, Copy)]
pub(crate) enum FieldSchema {
    Key(KeySchema),
    /// Keys that are declared together elsewhere.
    Group(&'static [FieldSchema]),
    /// The keys of another block. None is required here, and that block documents them.
    Repeated(&'static BlockSchema),
}

/// A key of a block.
#[derive(Clone, Copy)]
pub(crate) struct KeySchema {
    pub(crate) name: &'static str,
    pub(crate) kind: SettingKind,
    pub(crate) required: bool,
    /// True if `"${claims.NAME}"` in the value's texts is a claim of the caller.
    pub(crate) has_claims: bool,
    /// Returns the default as HOCON, or an empty text if the key has no default value.
    pub(crate) default: fn() -> String,
    /// A description of the default, as Markdown, for one that is not a value. Otherwise empty.
    pub(crate) default_text: &'static str,
    /// The meaning of the key, as Markdown.
    pub(crate) doc: &'static str,
}

/// The name of a group of names that keys refer to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ReferenceTarget {
    Source,
    CredentialsProfile,
}

/// The kind of a value.
#[derive(Clone, Copy)]
pub(crate) enum SettingKind {
    /// A string that `accepts` approves of; `expected` describes such strings.
    Text {
        accepts: fn(&str) -> bool,
        expected: &'static str,
    },
    /// A name under `sources` or `credentials`.
    Reference(ReferenceTarget),
    /// A regular expression.
    Pattern,
    /// A string that no message shows.
    Secret,
    /// A connection string of libpq. Messages show none of it, and the effective configuration
    /// shows it without its passwords.
    Connection,
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
    SiblingTagged {
        tag: &'static str,
        variants: &'static [BlockVariant],
    },
    /// A key of another program or a later version; the sentence says why it is refused.
    Refused(&'static str),
}

/// The variants of a block. The key `type` selects one of them.
pub(crate) struct VariantSchema {
    /// A description of the block for messages: "source type".
    pub(crate) what: &'static str,
    pub(crate) variants: &'static [BlockVariant],
}

/// A variant of a block.
#[derive(Clone, Copy)]
pub(crate) struct BlockVariant {
    /// The words that select the variant. The first one is printed.
    pub(crate) words: &'static [&'static str],
    pub(crate) block: &'static BlockSchema,
    /// The meaning of the variant, as Markdown.
    pub(crate) doc: &'static str,
}

/// The key that selects a variant.
pub(crate) const TAG: &str = "type";

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
            for key in blocks.into_iter().flat_map(BlockSchema::keys) {
                collect(&key.kind, &format!("{path}.{}", key.name), keys);
            }
        }
    }
}

impl SettingKind {
    /// Returns the parts of a block. Other kinds have none.
    pub(crate) const fn fields(&self) -> &'static [FieldSchema] {
        match self {
            SettingKind::Block(block) => block.fields,
            _ => &[],
        }
    }

    /// Returns the blocks that a value of this kind may be.
    pub(crate) fn blocks(&self) -> Vec<&'static BlockSchema> {
        match self {
            SettingKind::Block(block) => vec![*block],
            SettingKind::Tagged(VariantSchema { variants, .. }) | SettingKind::SiblingTagged { variants, .. } => {
                variants.iter().map(|variant| variant.block).collect()
            }
            _ => Vec::new(),
        }
    }
}

impl KeySchema {
    const fn without_default(name: &'static str, kind: SettingKind) -> KeySchema {
        KeySchema { name, kind, required: false, has_claims: false, default: String::new, default_text: "", doc: "" }
    }

    pub(crate) const fn required(name: &'static str, kind: SettingKind) -> KeySchema {
        KeySchema { required: true, ..KeySchema::without_default(name, kind) }
    }

    /// Returns the key that selects the variant of a block.
    pub(crate) const fn tag(words: &'static [&'static [&'static str]]) -> KeySchema {
        KeySchema { default_text: "required", ..KeySchema::without_default(TAG, SettingKind::Choice(words)) }
    }
}

impl FieldSchema {
    /// Returns a key that is refused with a sentence.
    pub(crate) const fn refused(name: &'static str, why: &'static str) -> FieldSchema {
        FieldSchema::Key(KeySchema::without_default(name, SettingKind::Refused(why)))
    }

    /// Returns a key for a block that no declaration reads as a whole.
    pub(crate) const fn of(name: &'static str, kind: SettingKind) -> FieldSchema {
        FieldSchema::Key(KeySchema::without_default(name, kind))
    }

    fn collect(&'static self, keys: &mut Vec<&'static KeySchema>, with_repeated: bool) {
        match self {
            FieldSchema::Key(key) => keys.push(key),
            FieldSchema::Group(fields) => fields.iter().for_each(|field| field.collect(keys, with_repeated)),
            FieldSchema::Repeated(block) if with_repeated => keys.extend(block.keys()),
            FieldSchema::Repeated(_) => {}
        }
    }
}

impl BlockSchema {
    /// Returns all keys, in the order of their declaration.
    pub(crate) fn keys(&'static self) -> Vec<&'static KeySchema> {
        let mut keys = Vec::new();
        self.fields.iter().for_each(|field| field.collect(&mut keys, true));
        keys
    }

    /// Returns the keys that are not those of another block.
    pub(crate) fn own_keys(&'static self) -> Vec<&'static KeySchema> {
        let mut keys = Vec::new();
        self.fields.iter().for_each(|field| field.collect(&mut keys, false));
        keys
    }

    pub(crate) fn key(&'static self, name: &str) -> Option<&'static KeySchema> {
        self.keys().into_iter().find(|key| key.name == name)
    }

    /// Returns the names of the keys that are not refused.
    pub(crate) fn names(&'static self) -> impl Iterator<Item = &'static str> {
        self.keys().into_iter().filter(|key| !matches!(key.kind, SettingKind::Refused(_))).map(|key| key.name)
    }
}

impl VariantSchema {
    /// Returns the variant that a word selects.
    pub(crate) fn variant(&self, word: &str) -> Option<&'static BlockVariant> {
        self.variants.iter().find(|variant| variant.words.contains(&word))
    }

    /// Returns all words, for messages.
    pub(crate) fn words(&self) -> impl Iterator<Item = &'static str> + use<> {
        self.variants.iter().flat_map(|variant| variant.words.iter().copied())
    }

    /// Returns the printed words.
    pub(crate) fn names(&self) -> impl Iterator<Item = &'static str> + use<> {
        self.variants.iter().map(|variant| variant.words[0])
    }
}

impl ReferenceTarget {
    /// Returns the description of such a name in messages.
    pub(crate) fn what(self) -> &'static str {
        match self {
            ReferenceTarget::Source => "source",
            ReferenceTarget::CredentialsProfile => "credentials profile",
        }
    }

    /// Returns the block that has the names.
    pub(crate) fn block(self) -> &'static str {
        match self {
            ReferenceTarget::Source => "sources",
            ReferenceTarget::CredentialsProfile => "credentials",
        }
    }
}

/// A string that is not blank.
pub(crate) const TEXT: SettingKind =
    SettingKind::Text { accepts: |text| !text.trim().is_empty(), expected: "a string that is not empty" };

/// A string in which empty means missing.
pub(crate) const TEXT_OR_EMPTY: SettingKind = SettingKind::Text { accepts: |_| true, expected: "a string" };

/// The name of a credentials profile.
pub(crate) const PROFILE: SettingKind = SettingKind::Reference(ReferenceTarget::CredentialsProfile);

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
