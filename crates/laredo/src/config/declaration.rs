//! The declaration of configurations: each key once, with its type, kind, default and meaning.
//!
//! [`config_block!`] declares a block, [`config_variants!`] a block with variants, and
//! [`config_choice!`] a choice between words. From a declaration come the Rust type with its
//! default, the schema, the reading, the output and the reference in `docs/configuration.md`.

use std::collections::BTreeMap;

use super::fields::BlockFields;
use super::leaf::LeafSetting;
use super::reader::ConfigReader;
use super::schema::{FieldSchema, KeySchema, SettingKind};
use super::write::{HoconBlock, list as hocon_list, text};

/// The declaration of a key, or of several keys that make one value.
pub(crate) struct ConfigKey<T> {
    name: &'static str,
    kind: SettingKind,
    required: bool,
    has_claims: bool,
    group: Option<&'static [FieldSchema]>,
    default: fn() -> T,
    default_text: &'static str,
    doc: &'static str,
    read: ReadFunction<T>,
    write: WriteFunction<T>,
}

/// Reads the value of a key. Returns `None` for the default.
type ReadFunction<T> = fn(&ConfigKey<T>, &BlockFields<'_>, &mut ConfigReader<'_>) -> Option<T>;

/// Writes the value of a key.
type WriteFunction<T> = fn(&T, &ConfigKey<T>, &mut HoconBlock);

/// A Rust type that is a block of a configuration.
pub(crate) trait ConfigBlock: Sized {
    /// The kind of a key that has such a block.
    const KIND: SettingKind;
    /// The kind of a key that has a list of such blocks.
    const LIST: SettingKind = SettingKind::List(&Self::KIND);
    /// The kind of a key that has such blocks by name.
    const MAP: SettingKind = SettingKind::Map(&Self::KIND);

    /// Reads the block, and reports the problems that its schema cannot detect.
    fn read(fields: &BlockFields<'_>, reader: &mut ConfigReader<'_>) -> Self;

    fn write(&self, out: &mut HoconBlock);
}

/// Declares a single value with a default.
pub(crate) const fn key<T: LeafSetting>(name: &'static str, kind: SettingKind, default: fn() -> T) -> ConfigKey<T> {
    custom::<T>(
        name,
        kind,
        default,
        |key, fields, _| fields.leaf(key.name),
        |value, key, out| out.put(key.name, value.to_leaf().to_hocon(&key.kind)),
    )
}

/// Declares a single value that must be given.
pub(crate) const fn required<T: LeafSetting + Default>(name: &'static str, kind: SettingKind) -> ConfigKey<T> {
    key(name, kind, T::default).must_be_given()
}

/// Declares a single value that may be missing. `default_text` says what that means.
pub(crate) const fn optional<T: LeafSetting>(
    name: &'static str,
    kind: SettingKind,
    default_text: &'static str,
) -> ConfigKey<Option<T>> {
    custom::<Option<T>>(
        name,
        kind,
        || None,
        |key, fields, _| fields.leaf(key.name).map(Some),
        |value, key, out| out.put_if(key.name, value.as_ref().map(|value| value.to_leaf().to_hocon(&key.kind))),
    )
    .defaults_to(default_text)
}

/// Declares a list of strings, which is empty by default.
pub(crate) const fn texts(name: &'static str, kind: SettingKind, default_text: &'static str) -> ConfigKey<Vec<String>> {
    custom::<Vec<String>>(
        name,
        kind,
        Vec::new,
        |key, fields, _| Some(fields.texts(key.name).into_iter().map(|(text, ..)| text).collect()),
        |texts, key, out| {
            if key.required || !texts.is_empty() {
                out.put(key.name, hocon_list(texts.iter().map(|item| text(item))));
            }
        },
    )
    .defaults_to(default_text)
}

/// Declares a block. A missing block has the defaults of its keys.
pub(crate) const fn block<T: ConfigBlock + Default>(name: &'static str) -> ConfigKey<T> {
    custom::<T>(
        name,
        T::KIND,
        T::default,
        |key, fields, reader| Some(T::read(&fields.block(key.name), reader)),
        |value, key, out| out.block(key.name, |out| value.write(out)),
    )
}

/// Declares a block that may be missing.
pub(crate) const fn optional_block<T: ConfigBlock>(name: &'static str) -> ConfigKey<Option<T>> {
    custom::<Option<T>>(
        name,
        T::KIND,
        || None,
        |key, fields, reader| Some(fields.has(key.name).then(|| T::read(&fields.block(key.name), reader))),
        |value, key, out| {
            if let Some(value) = value {
                out.block(key.name, |out| value.write(out));
            }
        },
    )
    .defaults_to("none")
}

/// Declares a list of blocks, which is empty by default.
pub(crate) const fn list<T: ConfigBlock>(name: &'static str) -> ConfigKey<Vec<T>> {
    custom::<Vec<T>>(
        name,
        T::LIST,
        Vec::new,
        |key, fields, reader| Some(fields.items(key.name).iter().map(|item| T::read(item, reader)).collect()),
        |items, key, out| {
            if key.required || !items.is_empty() {
                out.blocks(key.name, items, |item, out| item.write(out));
            }
        },
    )
    .defaults_to("none")
}

/// Declares a map of blocks, which is empty by default.
pub(crate) const fn map<T: ConfigBlock>(name: &'static str) -> ConfigKey<BTreeMap<String, T>> {
    custom::<BTreeMap<String, T>>(
        name,
        T::MAP,
        BTreeMap::new,
        |key, fields, reader| {
            let entries = fields.entries(key.name);
            Some(entries.iter().map(|(name, entry)| ((*name).to_owned(), T::read(entry, reader))).collect())
        },
        |items, key, out| {
            if key.required || !items.is_empty() {
                out.block(key.name, |out| items.iter().for_each(|(name, item)| out.block(name, |out| item.write(out))));
            }
        },
    )
    .defaults_to("none")
}

/// Declares a value of several keys. Their declarations are `fields`.
pub(crate) const fn group<T>(
    fields: &'static [FieldSchema],
    default: fn() -> T,
    read: ReadFunction<T>,
    write: WriteFunction<T>,
) -> ConfigKey<T> {
    ConfigKey { group: Some(fields), ..custom("", SettingKind::Refused(""), default, read, write) }
}

/// Declares the keys of a block as keys of the block around it.
pub(crate) const fn flat<T: ConfigBlock + Default>() -> ConfigKey<T> {
    group(
        T::KIND.fields(),
        T::default,
        |_, fields, reader| Some(T::read(fields, reader)),
        |value, _, out| value.write(out),
    )
}

/// Declares a value that is read and written by functions of its own.
pub(crate) const fn custom<T>(
    name: &'static str,
    kind: SettingKind,
    default: fn() -> T,
    read: ReadFunction<T>,
    write: WriteFunction<T>,
) -> ConfigKey<T> {
    ConfigKey {
        name,
        kind,
        required: false,
        has_claims: false,
        group: None,
        default,
        default_text: "",
        doc: "",
        read,
        write,
    }
}

impl<T> ConfigKey<T> {
    /// Makes the key one that must be given.
    pub(crate) const fn must_be_given(self) -> Self {
        ConfigKey { required: true, ..self }
    }

    /// Allows claims of the caller, `"${claims.NAME}"`, in the texts of the value.
    pub(crate) const fn with_claims(self) -> Self {
        ConfigKey { has_claims: true, ..self }
    }

    /// Describes a default that is not a value, as Markdown.
    pub(crate) const fn defaults_to(self, default_text: &'static str) -> Self {
        ConfigKey { default_text, ..self }
    }

    /// Sets the meaning of the key, as Markdown.
    pub(crate) const fn doc(self, doc: &'static str) -> Self {
        ConfigKey { doc, ..self }
    }

    /// Returns the schema. `default` returns the default as HOCON.
    pub(crate) const fn field(&self, default: fn() -> String) -> FieldSchema {
        match self.group {
            Some(fields) => FieldSchema::Group(fields),
            None => FieldSchema::Key(KeySchema {
                name: self.name,
                kind: self.kind,
                required: self.required,
                has_claims: self.has_claims,
                default,
                default_text: self.default_text,
                doc: self.doc,
            }),
        }
    }

    pub(crate) const fn name(&self) -> &'static str {
        self.name
    }

    pub(crate) fn default_value(&self) -> T {
        (self.default)()
    }

    /// Returns the default as HOCON.
    pub(crate) fn default_as_hocon(&self) -> String {
        let mut out = HoconBlock::default();
        self.write(&self.default_value(), &mut out);
        out.into_value()
    }

    /// Reads the key. A value that is missing or invalid reads as the default.
    pub(crate) fn read(&self, fields: &BlockFields<'_>, reader: &mut ConfigReader<'_>) -> T {
        if let SettingKind::Reference(target) = self.kind {
            reader.check_reference(fields, self.name, target);
        }
        (self.read)(self, fields, reader).unwrap_or_else(self.default)
    }

    pub(crate) fn write(&self, value: &T, out: &mut HoconBlock) {
        (self.write)(value, self, out);
    }
}

/// Returns the schema of a key that is a constant.
macro_rules! config_field {
    ($key:ident) => {
        $key.field(|| $key.default_as_hocon())
    };
}

/// Declares a block: a struct, a key for each field, and the keys that no field has.
///
/// The parentheses after the name have the description of the block for messages, and the words
/// under `type` that select it. The function in brackets completes and checks what was read.
macro_rules! config_block {
    (
        $(#[doc = $about:literal])*
        pub struct $name:ident $(($what:literal $words:tt))? $([$check:path])? {
            $($(#[doc = $doc:literal])* pub $field:ident : $ty:ty = $key:expr,)*
        }
        $(also [$($extra:expr),* $(,)?])?
    ) => {
        $(#[doc = $about])*
        #[derive(Debug, Clone, PartialEq)]
        pub struct $name {
            $($(#[doc = $doc])* pub $field: $ty,)*
        }

        impl Default for $name {
            fn default() -> Self {
                $name {
                    $($field: {
                        const KEY: $crate::config::declaration::ConfigKey<$ty> = $key;
                        KEY.default_value()
                    },)*
                }
            }
        }

        $crate::config::declaration::config_block_impl! {
            $name [$($about)*] [$($what $words)?] [$($check)?] [$($($extra),*)?]
            $({ [$($doc)*] $field : $ty = $key })*
        }
    };
    // A struct of another crate.
    (
        foreign $name:ident $([$check:path])? {
            $($(#[doc = $doc:literal])* $field:ident : $ty:ty = $key:expr,)*
        }
    ) => {
        $crate::config::declaration::config_block_impl! {
            $name [] [] [$($check)?] []
            $({ [$($doc)*] $field : $ty = $key })*
        }
    };
}

/// Implements `ConfigBlock` for a struct.
macro_rules! config_block_impl {
    (
        $name:ident [$($about:literal)*] [$($what:literal $words:tt)?] [$($check:path)?] [$($extra:expr),*]
        $({ [$($doc:literal)*] $field:ident : $ty:ty = $key:expr })*
    ) => {
        const _: () = {
            use $crate::config::declaration::{ConfigBlock, ConfigKey, config_field, config_kind};
            use $crate::config::fields::BlockFields;
            use $crate::config::reader::ConfigReader;
            use $crate::config::schema::BlockSchema;
            use $crate::config::write::HoconBlock;

            const SCHEMA: &BlockSchema = &BlockSchema {
                fields: &[
                    $($crate::config::schema::FieldSchema::Key($crate::config::schema::KeySchema::tag(&[&$words])),)?
                    $($extra,)*
                    $({
                        const KEY: ConfigKey<$ty> = $key.doc(concat!($($doc),*));
                        config_field!(KEY)
                    },)*
                ],
            };

            impl ConfigBlock for $name {
                const KIND: $crate::config::schema::SettingKind =
                    config_kind!([$($what $words)?] SCHEMA, concat!($($about),*));

                fn read(fields: &BlockFields<'_>, reader: &mut ConfigReader<'_>) -> Self {
                    #[allow(unused_mut, reason = "only a block with a check changes it")]
                    let mut block = $name {
                        $($field: {
                            const KEY: ConfigKey<$ty> = $key;
                            KEY.read(fields, reader)
                        },)*
                    };
                    $($check(&mut block, fields, reader);)?
                    block
                }

                fn write(&self, out: &mut HoconBlock) {
                    $(out.put($crate::config::schema::TAG, $words[0]);)?
                    $({
                        const KEY: ConfigKey<$ty> = $key;
                        KEY.write(&self.$field, out);
                    })*
                }
            }
        };
    };
}

/// Returns the kind of a block, with or without a word under `type`.
macro_rules! config_kind {
    ([] $schema:expr, $doc:expr) => {
        $crate::config::schema::SettingKind::Block($schema)
    };
    ([$what:literal $words:tt] $schema:expr, $doc:expr) => {
        $crate::config::schema::SettingKind::Tagged(&$crate::config::schema::VariantSchema {
            what: $what,
            variants: &[$crate::config::schema::BlockVariant { words: &$words, block: $schema, doc: $doc }],
        })
    };
}

/// Declares a block with variants: an enum, for each variant its word, and a key for each field.
///
/// The parentheses after the name have the description of the block for messages. Without it, the
/// word is under a key that is declared elsewhere. A variant may have the struct of another block.
macro_rules! config_variants {
    (
        $(#[doc = $about:literal])*
        pub enum $name:ident $what:tt $([$check:path])? {
            $(
                $(#[doc = $variant_doc:literal])*
                $variant:ident [$word:literal]
                $({ $($(#[doc = $doc:literal])* $field:ident : $ty:ty = $key:expr,)* })?
                $(($inner:ident : $block:ty))?,
            )*
        }
    ) => {
        $(#[doc = $about])*
        #[derive(Debug, Clone, PartialEq)]
        pub enum $name {
            $(
                $(#[doc = $variant_doc])*
                $variant $({ $($(#[doc = $doc])* $field: $ty,)* })? $(($block))?,
            )*
        }

        impl $name {
            /// The schemas of the variants.
            pub(crate) const VARIANTS: &'static [$crate::config::schema::BlockVariant] = &[$(
                $crate::config::schema::BlockVariant {
                    words: &[$word],
                    block: &$crate::config::schema::BlockSchema {
                        fields: &[
                            $crate::config::schema::FieldSchema::Group(
                                $crate::config::declaration::config_tag!($what $word),
                            ),
                            $($({
                                const KEY: $crate::config::declaration::ConfigKey<$ty> = $key.doc(concat!($($doc),*));
                                $crate::config::declaration::config_field!(KEY)
                            },)*)?
                            $($crate::config::schema::FieldSchema::Group(
                                <$block as $crate::config::declaration::ConfigBlock>::KIND.fields(),
                            ),)?
                        ],
                    },
                    doc: concat!($($variant_doc),*),
                },
            )*];

            /// Reads the variant of a word.
            #[allow(unused_variables, reason = "a variant may have no keys")]
            pub(crate) fn read_variant(
                word: &str,
                fields: &$crate::config::fields::BlockFields<'_>,
                reader: &mut $crate::config::reader::ConfigReader<'_>,
            ) -> Self {
                #[allow(unused_mut, reason = "only a block with a check changes it")]
                let mut block = match word {
                    $($word => $name::$variant
                        $({ $($field: {
                            const KEY: $crate::config::declaration::ConfigKey<$ty> = $key;
                            KEY.read(fields, reader)
                        },)* })?
                        $((<$block as $crate::config::declaration::ConfigBlock>::read(fields, reader)))?,
                    )*
                    _ => unreachable!("{word} is not a variant in the schema"),
                };
                $($check(&mut block, fields, reader);)?
                block
            }

            /// Writes the keys of the variant, without its word.
            #[allow(unused_variables, reason = "a variant may have no keys")]
            pub(crate) fn write_variant(&self, out: &mut $crate::config::write::HoconBlock) {
                match self {
                    $($name::$variant $({ $($field),* })? $(($inner))? => {
                        $($({
                            const KEY: $crate::config::declaration::ConfigKey<$ty> = $key;
                            KEY.write($field, out);
                        })*)?
                        $($crate::config::declaration::ConfigBlock::write($inner, out);)?
                    })*
                }
            }

            /// Returns the word of the variant.
            pub(crate) fn word(&self) -> &'static str {
                match self {
                    $($name::$variant { .. } => $word,)*
                }
            }
        }

        $crate::config::declaration::config_variants_impl!($what $name);
    };
}

/// Returns the key of a variant's word, if there is one.
macro_rules! config_tag {
    (() $word:literal) => {
        &[]
    };
    (($what:literal) $word:literal) => {
        &[$crate::config::schema::FieldSchema::Key($crate::config::schema::KeySchema::tag(&[&[$word]]))]
    };
}

/// Implements `ConfigBlock` for an enum whose word is under `type`.
macro_rules! config_variants_impl {
    (() $name:ident) => {};
    (($what:literal) $name:ident) => {
        impl $crate::config::declaration::ConfigBlock for $name {
            const KIND: $crate::config::schema::SettingKind =
                $crate::config::schema::SettingKind::Tagged(&$crate::config::schema::VariantSchema {
                    what: $what,
                    variants: $name::VARIANTS,
                });

            fn read(
                fields: &$crate::config::fields::BlockFields<'_>,
                reader: &mut $crate::config::reader::ConfigReader<'_>,
            ) -> Self {
                $name::read_variant(fields.tag, fields, reader)
            }

            fn write(&self, out: &mut $crate::config::write::HoconBlock) {
                out.put($crate::config::schema::TAG, self.word());
                self.write_variant(out);
            }
        }
    };
}

/// Declares a choice between words: an enum, and for each variant its words. The first word is
/// printed.
macro_rules! config_choice {
    (
        $(#[doc = $about:literal])*
        pub enum $name:ident {
            $($(#[doc = $doc:literal])* $variant:ident = $first:literal $(| $other:literal)*,)*
        }
    ) => {
        $(#[doc = $about])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $name {
            $($(#[doc = $doc])* $variant,)*
        }

        impl $name {
            /// All values, in the order of their declaration.
            pub const ALL: &'static [$name] = &[$($name::$variant),*];
            /// The kind of a key with such a value.
            pub(crate) const KIND: $crate::config::schema::SettingKind =
                $crate::config::schema::SettingKind::Choice(&[$(&[$first $(, $other)*]),*]);

            /// Returns the value with a name.
            pub fn from_name(name: &str) -> Option<$name> {
                match name {
                    $($first $(| $other)* => Some($name::$variant),)*
                    _ => None,
                }
            }

            /// Returns the name in configurations.
            pub fn name(self) -> &'static str {
                match self {
                    $($name::$variant => $first,)*
                }
            }
        }

        impl $crate::config::leaf::LeafSetting for $name {
            fn from_leaf(value: $crate::config::leaf::LeafValue) -> Option<Self> {
                match value {
                    $crate::config::leaf::LeafValue::Word(word) => $name::from_name(word),
                    _ => None,
                }
            }

            fn to_leaf(&self) -> $crate::config::leaf::LeafValue {
                $crate::config::leaf::LeafValue::Word(self.name())
            }
        }
    };
}

pub(super) use {
    config_block, config_block_impl, config_choice, config_field, config_kind, config_tag, config_variants,
    config_variants_impl,
};
