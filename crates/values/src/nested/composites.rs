//! Composites.

use bytes::Buf;
use laredo_core::Oid;

use super::quoting::{QuotingRule, quote, split};
use crate::decode::CellDecoder;
use crate::encode::CellEncoder;
use crate::problem::{CellProblem, ValueMismatch};
use crate::value::Value;
use crate::wire;

impl CellDecoder<'_> {
    /// Shows a composite as an object.
    pub(crate) fn composite(&mut self, fields: &[(String, Oid)], mut input: &[u8]) -> Result<Value, CellProblem> {
        check_field_count(fields, &mut input)?;
        let mut values = Vec::with_capacity(fields.len());
        for (name, oid) in fields {
            let bytes = next_field(*oid, &mut input)?;
            values.push((name.clone(), self.optional_value(*oid, bytes)?));
        }
        wire::end(input)?;
        Ok(Value::Object(values))
    }

    /// Returns a composite in PostgreSQL's text form.
    pub(crate) fn composite_text(&mut self, fields: &[(String, Oid)], mut input: &[u8]) -> Result<String, CellProblem> {
        check_field_count(fields, &mut input)?;
        let mut texts = Vec::with_capacity(fields.len());
        for (_, oid) in fields {
            texts.push(match next_field(*oid, &mut input)? {
                Some(bytes) => quote(self.text(*oid, bytes)?, &['"', '\\', '(', ')', ',']),
                None => String::new(),
            });
        }
        wire::end(input)?;
        Ok(format!("({})", texts.join(",")))
    }
}

impl CellEncoder<'_> {
    /// Reads a composite from an object of its fields.
    pub(crate) fn composite(&mut self, fields: &[(String, Oid)], value: &Value) -> Result<Vec<u8>, ValueMismatch> {
        let Value::Object(values) = value else { return Err(ValueMismatch::Kind("an object")) };
        let names =
            || ValueMismatch::Fields(fields.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(", "));
        if values.len() != fields.len() {
            return Err(names());
        }
        let mut parts = Vec::with_capacity(fields.len());
        for (name, oid) in fields {
            let (_, value) = values.iter().find(|(found, _)| found == name).ok_or_else(names)?;
            parts.push((*oid, self.optional(*oid, value)?));
        }
        composite_cell(&parts)
    }

    /// Reads a composite in PostgreSQL's text form.
    pub(crate) fn composite_text(&mut self, fields: &[(String, Oid)], input: &str) -> Result<Vec<u8>, ValueMismatch> {
        const WRONG: ValueMismatch = ValueMismatch::Text("a composite");
        let inner = input.strip_prefix('(').and_then(|rest| rest.strip_suffix(')')).ok_or(WRONG)?;
        let parts = if fields.is_empty() { Vec::new() } else { split(inner, ',', QuotingRule::Doubled)? };
        if parts.len() != fields.len() {
            return Err(WRONG);
        }
        let mut sent = Vec::with_capacity(fields.len());
        for ((_, oid), part) in fields.iter().zip(parts) {
            let is_null = !part.is_quoted && part.text.is_empty();
            sent.push((*oid, if is_null { None } else { Some(self.text(*oid, &part.text)?) }));
        }
        composite_cell(&sent)
    }
}

pub(crate) fn check_field_count(fields: &[(String, Oid)], input: &mut &[u8]) -> Result<(), CellProblem> {
    match wire::count(input, 8)? {
        count if count == fields.len() => Ok(()),
        _ => Err(CellProblem::Impossible("number of fields")),
    }
}

pub(crate) fn next_field<'a>(oid: Oid, input: &mut &'a [u8]) -> Result<Option<&'a [u8]>, CellProblem> {
    if input.try_get_u32()? != oid {
        return Err(CellProblem::Impossible("field type"));
    }
    wire::sized(input)
}

fn composite_cell(fields: &[(Oid, Option<Vec<u8>>)]) -> Result<Vec<u8>, ValueMismatch> {
    let mut bytes = i32::try_from(fields.len()).map_err(|_| ValueMismatch::Range)?.to_be_bytes().to_vec();
    for (oid, value) in fields {
        bytes.extend(oid.to_be_bytes());
        wire::push_sized(&mut bytes, value.as_deref())?;
    }
    Ok(bytes)
}
