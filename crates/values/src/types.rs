//! The base types of PostgreSQL by family, and the table that finds the family of a type.
//!
//! Each family is one module. It declares its types, converts their cells in both directions, and
//! says what filters and archives must know about them. A new type is added to its family alone.

pub(crate) mod bits;
pub(crate) mod bytes;
pub(crate) mod geometry;
pub(crate) mod json;
pub(crate) mod network;
pub(crate) mod numbers;
pub(crate) mod search;
pub(crate) mod system;
pub(crate) mod text;
pub(crate) mod time;

use std::borrow::Cow;

use laredo_core::Oid;

use crate::problem::{CellProblem, NUMERIC_TEXT_MAX, ValueMismatch};
use crate::value::{Value, string};

/// The numbers of built-in types are below this one.
const BUILTIN_OID_END: usize = 10_000;

/// The reason why values of a type cannot be compared, if PostgreSQL could but laredo cannot.
pub(crate) const UNKNOWN_EQUALITY: &str = "laredo does not know when two of its values are equal";

/// The circumstances of a cell that is decoded, and the limits that remain for it.
#[derive(Debug)]
pub(crate) struct CellContext {
    /// True if the cell is part of the key. Keys are distinguished by their bytes.
    pub(crate) is_key: bool,
    /// The nesting depth of the value inside its cell.
    pub(crate) depth: usize,
    numeric_room: usize,
}

impl CellContext {
    pub(crate) fn new(is_key: bool) -> CellContext {
        CellContext { is_key, depth: 0, numeric_room: NUMERIC_TEXT_MAX }
    }

    /// Subtracts the length of a number's text from the limit for the whole cell.
    fn reserve_numeric_text(&mut self, length: usize) -> Result<(), CellProblem> {
        self.numeric_room = self.numeric_room.checked_sub(length).ok_or(CellProblem::TooLarge)?;
        Ok(())
    }
}

/// The equality of a type's values in SQL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ValueEquality {
    /// Equal values have equal cells.
    OfCells,
    /// Equal values have equal canonical forms.
    OfCanonicalForms,
    /// Values cannot be compared, for this reason.
    Unknown(&'static str),
}

/// The base types of one family, with everything that depends on the type.
pub(crate) trait TypeFamily: Copy + 'static {
    /// The built-in types, by their numbers in `pg_type`.
    const BUILTIN: &'static [(Oid, Self)];
    /// The extension types, by name, because their numbers differ between databases.
    const EXTENSIONS: &'static [(&'static str, Self)] = &[];

    /// Returns the projection of a cell, by the rules in the documentation of this crate.
    fn project(self, context: &mut CellContext, cell: &[u8]) -> Result<Value, CellProblem> {
        self.to_text(context, cell).map(Value::String)
    }

    /// Returns PostgreSQL's text form of a cell.
    fn to_text(self, context: &mut CellContext, cell: &[u8]) -> Result<String, CellProblem>;

    /// Appends the projection of a cell as JSON, without an intermediate value. Returns false
    /// without appending anything if that is not possible.
    fn push_json(self, _context: &mut CellContext, _cell: &[u8], _to: &mut Vec<u8>) -> Result<bool, CellProblem> {
        Ok(false)
    }

    /// Returns the cell that has this projection. Projections of keys keep more information.
    fn unproject(self, _is_key: bool, value: &Value) -> Result<Vec<u8>, ValueMismatch> {
        self.parse_text(string(value)?)
    }

    /// Returns the cell that has this text form.
    fn parse_text(self, text: &str) -> Result<Vec<u8>, ValueMismatch>;

    /// Returns the cell of a value in any spelling that SQL accepts as a literal.
    fn parse_literal(self, value: &Value) -> Result<Vec<u8>, ValueMismatch> {
        self.parse_text(string(value)?)
    }

    /// Returns the equality of the type's values.
    fn equality(self) -> ValueEquality;

    /// Returns the canonical form of a cell.
    fn canonical(self, cell: &[u8]) -> Result<Cow<'_, [u8]>, CellProblem> {
        Ok(cell.into())
    }

    /// Returns true if each projection is a text that patterns can search.
    fn is_always_text(self) -> bool {
        true
    }

    /// Returns true if the projection restores every byte of every cell.
    fn is_exact(self) -> bool {
        false
    }

    /// Returns true if no value is shown as a string that begins with `\x`, unless it is bytes in
    /// hex.
    fn is_distinct_from_hex(self) -> bool {
        true
    }

    /// Returns true if the text form is exactly that of PostgreSQL for every value.
    fn prints_as_postgresql(self) -> bool {
        true
    }
}

/// Declares the families: the type of all base types, its table, and its operations.
macro_rules! families {
    ($($family:ident($types:ty)),+ $(,)?) => {
        /// A base type, by its family.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum BaseType {
            $($family($types)),+
        }

        /// The built-in types by number.
        static BUILTIN: [Option<BaseType>; BUILTIN_OID_END] = {
            let mut table: [Option<BaseType>; BUILTIN_OID_END] = [None; BUILTIN_OID_END];
            $(
                let types = <$types as TypeFamily>::BUILTIN;
                let mut next = 0;
                while next < types.len() {
                    let (oid, base) = types[next];
                    assert!(table[oid as usize].is_none(), "a type is of one family");
                    table[oid as usize] = Some(BaseType::$family(base));
                    next += 1;
                }
            )+
            table
        };

        impl BaseType {
            /// Returns the extension type of this name.
            pub(crate) fn of_extension(name: &str) -> Option<BaseType> {
                $(
                    let types = <$types as TypeFamily>::EXTENSIONS;
                    if let Some((_, base)) = types.iter().find(|(known, _)| *known == name) {
                        return Some(BaseType::$family(*base));
                    }
                )+
                None
            }

            pub(crate) fn project(self, context: &mut CellContext, cell: &[u8]) -> Result<Value, CellProblem> {
                match self { $(BaseType::$family(base) => base.project(context, cell)),+ }
            }

            pub(crate) fn to_text(self, context: &mut CellContext, cell: &[u8]) -> Result<String, CellProblem> {
                match self { $(BaseType::$family(base) => base.to_text(context, cell)),+ }
            }

            pub(crate) fn push_json(
                self,
                context: &mut CellContext,
                cell: &[u8],
                to: &mut Vec<u8>,
            ) -> Result<bool, CellProblem> {
                match self { $(BaseType::$family(base) => base.push_json(context, cell, to)),+ }
            }

            pub(crate) fn unproject(self, is_key: bool, value: &Value) -> Result<Vec<u8>, ValueMismatch> {
                match self { $(BaseType::$family(base) => base.unproject(is_key, value)),+ }
            }

            pub(crate) fn parse_text(self, text: &str) -> Result<Vec<u8>, ValueMismatch> {
                match self { $(BaseType::$family(base) => base.parse_text(text)),+ }
            }

            pub(crate) fn parse_literal(self, value: &Value) -> Result<Vec<u8>, ValueMismatch> {
                match self { $(BaseType::$family(base) => base.parse_literal(value)),+ }
            }

            pub(crate) fn equality(self) -> ValueEquality {
                match self { $(BaseType::$family(base) => base.equality()),+ }
            }

            pub(crate) fn canonical(self, cell: &[u8]) -> Result<Cow<'_, [u8]>, CellProblem> {
                match self { $(BaseType::$family(base) => base.canonical(cell)),+ }
            }

            pub(crate) fn is_always_text(self) -> bool {
                match self { $(BaseType::$family(base) => base.is_always_text()),+ }
            }

            pub(crate) fn is_exact(self) -> bool {
                match self { $(BaseType::$family(base) => base.is_exact()),+ }
            }

            pub(crate) fn is_distinct_from_hex(self) -> bool {
                match self { $(BaseType::$family(base) => base.is_distinct_from_hex()),+ }
            }

            pub(crate) fn prints_as_postgresql(self) -> bool {
                match self { $(BaseType::$family(base) => base.prints_as_postgresql()),+ }
            }
        }
    };
}

families! {
    Bits(bits::BitString),
    Bytes(bytes::ByteType),
    Geometry(geometry::GeometricType),
    Json(json::JsonType),
    Network(network::NetworkType),
    Number(numbers::NumberType),
    Search(search::SearchType),
    System(system::SystemType),
    Text(text::TextType),
    Time(time::TimeType),
}

impl BaseType {
    /// Returns the built-in type of this number, if it has a family.
    pub(crate) fn of_oid(oid: Oid) -> Option<BaseType> {
        BUILTIN.get(oid as usize).copied().flatten()
    }

    /// Returns true if a cell's bytes are its text.
    pub(crate) fn is_its_own_text(self) -> bool {
        matches!(self, BaseType::Text(text) if text != text::TextType::Ltree)
    }

    /// Returns true for `json` and `jsonb`, whose values may be lists and JSON's own null.
    pub(crate) fn is_document(self) -> bool {
        matches!(self, BaseType::Json(json::JsonType::Json | json::JsonType::Jsonb))
    }
}

/// Appends a string of JSON. The text has no characters that JSON escapes.
fn push_quoted(
    to: &mut Vec<u8>,
    push_text: impl FnOnce(&mut Vec<u8>) -> Result<(), CellProblem>,
) -> Result<bool, CellProblem> {
    to.push(b'"');
    push_text(to)?;
    to.push(b'"');
    Ok(true)
}

/// Returns the text that a function appends.
fn text_of(push_text: impl FnOnce(&mut Vec<u8>) -> Result<(), CellProblem>) -> Result<String, CellProblem> {
    let mut text = Vec::new();
    push_text(&mut text)?;
    String::from_utf8(text).map_err(|_| CellProblem::NotUtf8)
}
