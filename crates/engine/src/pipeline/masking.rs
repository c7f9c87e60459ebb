//! The replacement of values by a keyed hash or by a mask, so that readers never receive them.

use std::borrow::Cow;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use laredo_core::{Column, Oid, Schema, TypeDef, TypeKind};
use laredo_values::{ColumnText, UnprintableType, hex};
use ring::hmac;

/// The OID of the type `text`.
const TEXT_OID: Oid = 25;

/// The secret key of a hash.
///
/// Its `Debug` output is a fingerprint, which differs for different keys and does not disclose
/// them. It is part of the definition of the rows that readers receive.
#[derive(Clone)]
pub struct HashKey {
    key: hmac::Key,
    fingerprint: String,
}

/// An error of a key that is too short to be safe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the key has {0} bytes and needs at least {min}; make one with `openssl rand -hex 32`",
    min = HashKey::BYTES_MIN
)]
pub struct ShortHashKey(pub usize);

impl HashKey {
    /// The minimum length of a key in bytes.
    pub const BYTES_MIN: usize = 16;

    /// Returns a key of these bytes.
    ///
    /// # Errors
    /// When the key is shorter than [`HashKey::BYTES_MIN`].
    pub fn new(bytes: &[u8]) -> Result<HashKey, ShortHashKey> {
        if bytes.len() < HashKey::BYTES_MIN {
            return Err(ShortHashKey(bytes.len()));
        }
        let key = hmac::Key::new(hmac::HMAC_SHA256, bytes);
        let tag = hmac::sign(&key, b"laredo: fingerprint of a hash key");
        let fingerprint = hex(tag.as_ref().get(..8).unwrap_or_default());
        Ok(HashKey { key, fingerprint })
    }

    /// Returns the HMAC-SHA-256 of a text in lower-case hex.
    fn sign(&self, text: &[u8]) -> String {
        hex(hmac::sign(&self.key, text).as_ref())
    }
}

impl fmt::Debug for HashKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HashKey({})", self.fingerprint)
    }
}

impl PartialEq for HashKey {
    fn eq(&self, other: &HashKey) -> bool {
        self.fingerprint == other.fingerprint
    }
}

impl Eq for HashKey {}

impl Hash for HashKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.fingerprint.hash(state);
    }
}

/// The replacement of a value by a mask.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ValueMask {
    /// A fixed text.
    Fixed(String),
    /// The same number of characters, of which only the first and the last ones are the value's. A
    /// value that has no more characters than are kept is replaced as a whole.
    Partial {
        /// The number of characters that are kept at the beginning.
        keep_first: usize,
        /// The number of characters that are kept at the end.
        keep_last: usize,
        /// The character that replaces each of the others.
        with: char,
    },
}

impl ValueMask {
    fn apply(&self, text: &[u8]) -> String {
        match self {
            ValueMask::Fixed(value) => value.clone(),
            ValueMask::Partial { keep_first, keep_last, with } => {
                let text = String::from_utf8_lossy(text);
                let count = text.chars().count();
                let is_short = keep_first.saturating_add(*keep_last) >= count;
                let hidden = if is_short { 0..count } else { *keep_first..count - keep_last };
                text.chars().enumerate().map(|(i, char)| if hidden.contains(&i) { *with } else { char }).collect()
            }
        }
    }
}

/// The replacement of a column's values. NULL is never replaced.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum CellReplacement {
    /// A keyed hash of the value's text.
    Hash(HashKey),
    /// A mask.
    Mask(ValueMask),
}

impl CellReplacement {
    /// Returns the name of the transform.
    pub(super) fn step(&self) -> &'static str {
        match self {
            CellReplacement::Hash(_) => "hash",
            CellReplacement::Mask(_) => "mask",
        }
    }

    /// Returns true if different values have different replacements, but for a collision of
    /// SHA-256.
    pub(super) fn is_distinct(&self) -> bool {
        match self {
            CellReplacement::Hash(_) => true,
            CellReplacement::Mask(_) => false,
        }
    }

    /// Binds the replacement to a column of a schema, by the column's number from 0.
    ///
    /// # Errors
    /// When the replacement depends on the text of the values, and that is unknown for their type.
    pub fn bind(self, schema: &Arc<Schema>, column: usize) -> Result<ReplacedColumn, UnprintableType> {
        Ok(ReplacedColumn(match self {
            CellReplacement::Mask(ValueMask::Fixed(value)) => BoundReplacement::Fixed(value),
            CellReplacement::Hash(_) | CellReplacement::Mask(ValueMask::Partial { .. }) => {
                BoundReplacement::Computed(ColumnText::new(schema, column)?, self)
            }
        }))
    }
}

/// A replacement that is bound to a column.
#[derive(Clone, Debug)]
pub struct ReplacedColumn(BoundReplacement);

#[derive(Clone, Debug)]
enum BoundReplacement {
    Fixed(String),
    Computed(ColumnText, CellReplacement),
}

impl ReplacedColumn {
    /// Returns the text that readers receive instead of a cell that is not NULL.
    #[must_use]
    pub fn replace(&self, cell: &[u8]) -> Cow<'_, str> {
        match &self.0 {
            BoundReplacement::Fixed(value) => Cow::Borrowed(value),
            BoundReplacement::Computed(text, CellReplacement::Hash(key)) => Cow::Owned(key.sign(&text.of(cell))),
            BoundReplacement::Computed(text, CellReplacement::Mask(mask)) => Cow::Owned(mask.apply(&text.of(cell))),
        }
    }
}

/// Returns the schema that readers receive if the values of some columns, by their numbers, are
/// replaced: those columns are of the type `text`.
#[must_use]
pub fn with_replaced_columns(schema: &Schema, columns: &[usize]) -> Schema {
    let shown = |(number, column): (usize, &Column)| match columns.contains(&number) {
        true => Column {
            name: column.name.clone(),
            type_oid: TEXT_OID,
            type_modifier: -1,
            type_name: "text".to_owned(),
            not_null: column.not_null,
            is_text: false,
        },
        false => column.clone(),
    };
    let mut types = schema.types().clone();
    types.entry(TEXT_OID).or_insert_with(|| TypeDef { name: "text".to_owned(), kind: TypeKind::Base });
    Schema::new(schema.columns().iter().enumerate().map(shown).collect(), schema.key().clone(), types)
}
