//! The output of a change as one line: for people, or as JSON.

use laredo_client::{CommitTime, Lsn, RowRef};
use laredo_core::{Schema, TupleRef};
use laredo_values::{HexCells, ProjectError, Value, show_row};
use prost_types::Timestamp;
use serde::ser::{Serialize, SerializeMap, Serializer};

/// The maximum number of characters of a value on a line for people.
const VALUE_CHARS_MAX: usize = 120;

/// The format of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ChangeStyle {
    /// JSON lines.
    Json,
    /// Text for people.
    Plain,
    /// Text for people, in colors.
    Colored,
}

/// The kind of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ChangeAction {
    /// No change: the row was present at the beginning.
    Snapshot,
    Insert,
    Update,
    Delete,
}

/// A change of a row, and the commit that it belongs to.
#[derive(Debug)]
pub(super) struct RowChangeLine<'a> {
    action: ChangeAction,
    position: Lsn,
    committed_at: Option<CommitTime>,
    key: Vec<&'a str>,
    old: Option<RowFields<'a>>,
    new: Option<RowFields<'a>>,
}

/// The values of a row, in the order of the table's columns.
#[derive(Debug)]
struct RowFields<'a>(Vec<(&'a str, Value)>);

impl ChangeStyle {
    /// Returns the style of an output. On a terminal, it depends on the environment variables
    /// `NO_COLOR` and `TERM`.
    pub(super) fn of(json: bool, is_terminal: bool, no_color: Option<&str>, term: Option<&str>) -> ChangeStyle {
        match (json || !is_terminal, no_color.unwrap_or_default().is_empty() && term != Some("dumb")) {
            (true, _) => ChangeStyle::Json,
            (false, true) => ChangeStyle::Colored,
            (false, false) => ChangeStyle::Plain,
        }
    }
}

impl ChangeAction {
    fn name(self) -> &'static str {
        match self {
            ChangeAction::Snapshot => "SNAPSHOT",
            ChangeAction::Insert => "INSERT",
            ChangeAction::Update => "UPDATE",
            ChangeAction::Delete => "DELETE",
        }
    }

    /// Returns the color's number in terminal escape sequences.
    fn color(self) -> &'static str {
        match self {
            ChangeAction::Snapshot => "36",
            ChangeAction::Insert => "32",
            ChangeAction::Update => "33",
            ChangeAction::Delete => "31",
        }
    }
}

impl<'a> RowChangeLine<'a> {
    /// Makes the change for a row that was present at the beginning.
    pub(super) fn snapshot(position: Lsn, row: RowRef<'a>) -> Result<RowChangeLine<'a>, ProjectError> {
        let change = RowChangeLine::of(position, None, None, Some((row.schema(), row.tuple().as_ref())))?;
        Ok(RowChangeLine { action: ChangeAction::Snapshot, ..change })
    }

    /// Makes the change of a row by a transaction.
    pub(super) fn new(
        position: Lsn,
        committed_at: Option<CommitTime>,
        old: Option<RowRef<'a>>,
        new: Option<RowRef<'a>>,
    ) -> Result<RowChangeLine<'a>, ProjectError> {
        let parts = |row: RowRef<'a>| (&**row.schema(), row.tuple().as_ref());
        RowChangeLine::of(position, committed_at, old.map(parts), new.map(parts))
    }

    fn of(
        position: Lsn,
        committed_at: Option<CommitTime>,
        old: Option<(&'a Schema, TupleRef<'_>)>,
        new: Option<(&'a Schema, TupleRef<'_>)>,
    ) -> Result<RowChangeLine<'a>, ProjectError> {
        let action = match (&old, &new) {
            (_, None) => ChangeAction::Delete,
            (None, Some(_)) => ChangeAction::Insert,
            (Some(_), Some(_)) => ChangeAction::Update,
        };
        let schema = new.or(old).map(|(schema, _)| schema);
        let columns = |schema: &'a Schema| {
            let names = schema.key().columns().iter().filter_map(|&number| schema.columns().get(number));
            names.map(|column| column.name.as_str()).collect()
        };
        let fields = |(schema, row)| show_row(schema, row, &HexCells::default()).map(RowFields);
        Ok(RowChangeLine {
            action,
            position,
            committed_at,
            key: schema.map(columns).unwrap_or_default(),
            old: old.map(fields).transpose()?,
            new: new.map(fields).transpose()?,
        })
    }

    /// Returns the line, without a line break at its end.
    pub(super) fn line(&self, style: ChangeStyle) -> String {
        match style {
            ChangeStyle::Json => escaped(self.json()),
            ChangeStyle::Plain => self.text(|_, text| text.to_owned()),
            ChangeStyle::Colored => self.text(|code, text| format!("\x1b[{code}m{text}\x1b[0m")),
        }
    }

    fn json(&self) -> String {
        #[derive(serde::Serialize)]
        struct ChangeJson<'a> {
            action: &'static str,
            position: String,
            committed_at: Option<String>,
            #[serde(skip_serializing_if = "Option::is_none")]
            key: Option<RowKeyFields<'a>>,
            old: Option<&'a RowFields<'a>>,
            new: Option<&'a RowFields<'a>>,
        }
        let row = self.new.as_ref().or(self.old.as_ref());
        let line = ChangeJson {
            action: self.action.name(),
            position: self.position.to_string(),
            committed_at: self.committed_at.map(time),
            key: row.filter(|_| !self.key.is_empty()).map(|row| RowKeyFields(row, &self.key)),
            old: self.old.as_ref(),
            new: self.new.as_ref(),
        };
        serde_json::to_string(&line).expect("text, maps with text keys and finite numbers can be written as JSON")
    }

    /// Returns the line for people. `paint` receives the number of a color and a text.
    fn text(&self, paint: impl Fn(&str, &str) -> String) -> String {
        let mut line = match self.committed_at {
            Some(at) => format!("{} ", paint("2", &time(at))),
            None => String::new(),
        };
        line += &paint(self.action.color(), &format!("{:<6}", self.action.name()));
        line += &format!(" {}", paint("2", &self.position.to_string()));
        let Some(row) = self.new.as_ref().or(self.old.as_ref()) else { return line };
        for name in &self.key {
            line += &format!(" {}={}", paint("1", &escaped((*name).to_owned())), shown(row.get(name)));
        }
        let others = row.0.iter().filter(|(name, _)| !self.key.contains(name));
        let mut shown_count = 0;
        for (name, value) in others {
            let before =
                self.old.as_ref().filter(|_| self.action == ChangeAction::Update).and_then(|old| old.get(name));
            if self.action == ChangeAction::Update && before == Some(value) {
                continue;
            }
            shown_count += 1;
            line += &format!(" {}=", escaped((*name).to_owned()));
            if before.is_some() {
                line += &format!("{} → ", paint("31", &shown(before)));
            }
            line += &shown(Some(value));
        }
        if shown_count == 0 && self.action == ChangeAction::Update {
            line += " (no value changed)";
        }
        line
    }
}

impl RowFields<'_> {
    fn get(&self, name: &str) -> Option<&Value> {
        self.0.iter().find(|(other, _)| *other == name).map(|(_, value)| value)
    }
}

impl Serialize for RowFields<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, value)| (name, value.to_json())))
    }
}

/// The values of a row that have the given names.
struct RowKeyFields<'a>(&'a RowFields<'a>, &'a [&'a str]);

impl Serialize for RowKeyFields<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.1.len()))?;
        for name in self.1 {
            map.serialize_entry(name, &self.0.get(name).map(Value::to_json))?;
        }
        map.end()
    }
}

/// Formats a time as RFC 3339, in UTC.
fn time(at: CommitTime) -> String {
    let unix_us = at.unix_us();
    let nanos = i32::try_from(unix_us.rem_euclid(1_000_000) * 1000).unwrap_or(0);
    Timestamp { seconds: unix_us.div_euclid(1_000_000), nanos }.to_string()
}

/// Formats a value for people: as JSON, cut after [`VALUE_CHARS_MAX`] characters.
fn shown(value: Option<&Value>) -> String {
    let text = escaped(value.map_or(serde_json::Value::Null, Value::to_json).to_string());
    match text.char_indices().nth(VALUE_CHARS_MAX) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

/// Escapes control characters in JSON or in a name, because they could control a terminal. JSON
/// itself leaves some unescaped: DEL, and those from U+0080 on.
fn escaped(text: String) -> String {
    match text.contains(char::is_control) {
        false => text,
        true => {
            let escape = |c: char| if c.is_control() { format!("\\u{:04x}", u32::from(c)) } else { c.into() };
            text.chars().map(escape).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use laredo_core::{Cell, Column, KeyColumns, Tuple, TupleBuf};
    use serde_json::json;

    use super::*;

    fn schema(key: &[usize]) -> Schema {
        let column = |name: &str, type_oid, type_name: &str| Column {
            name: name.to_owned(),
            type_oid,
            type_modifier: -1,
            type_name: type_name.to_owned(),
            not_null: false,
            is_text: false,
        };
        let columns = vec![column("name", 25, "text"), column("id", 20, "bigint"), column("note", 25, "text")];
        Schema::new(columns, KeyColumns::new(key), BTreeMap::new())
    }

    fn row(id: i64, name: &str, note: Option<&str>) -> Tuple {
        let id = id.to_be_bytes();
        let note = note.map_or(Cell::Null, |note| Cell::Value(note.as_bytes()));
        let row: TupleBuf = [Cell::Value(name.as_bytes()), Cell::Value(&id), note].into_iter().collect();
        row.as_ref().to_tuple()
    }

    fn line(schema: &Schema, old: Option<&Tuple>, new: Option<&Tuple>, style: ChangeStyle) -> String {
        let row = |tuple: &Tuple| (schema, tuple.clone());
        let (old, new) = (old.map(row), new.map(row));
        let part = |row: &Option<(_, Tuple)>| row.is_some();
        assert!(part(&old) || part(&new));
        let old = old.as_ref().map(|(schema, tuple)| (*schema, tuple.as_ref()));
        let new = new.as_ref().map(|(schema, tuple)| (*schema, tuple.as_ref()));
        RowChangeLine::of(Lsn(0x1_0000_0200), Some(CommitTime(-1)), old, new).unwrap().line(style)
    }

    #[test]
    fn json_has_the_whole_rows_in_the_tables_order() {
        let (schema, a, b) = (schema(&[1]), row(1, "a", None), row(1, "b", Some("x\u{9b}")));
        let text = line(&schema, Some(&a), Some(&b), ChangeStyle::Json);
        assert_eq!(
            text,
            "{\"action\":\"UPDATE\",\"position\":\"1/200\",\"committed_at\":\"1999-12-31T23:59:59.999999Z\",\
             \"key\":{\"id\":1},\"old\":{\"name\":\"a\",\"id\":1,\"note\":null},\
             \"new\":{\"name\":\"b\",\"id\":1,\"note\":\"x\\u009b\"}}"
        );
        let back: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(back["new"]["note"], "x\u{9b}");
    }

    #[test]
    fn json_of_a_table_without_a_key_has_none() {
        let (schema, a) = (schema(&[]), row(1 << 60, "a", None));
        let back: serde_json::Value = serde_json::from_str(&line(&schema, None, Some(&a), ChangeStyle::Json)).unwrap();
        assert_eq!(
            back,
            json!({"action": "INSERT", "position": "1/200", "committed_at": "1999-12-31T23:59:59.999999Z",
                   "old": null, "new": {"name": "a", "id": "1152921504606846976", "note": null}})
        );
    }

    #[test]
    fn people_see_the_key_and_what_changed() {
        let schema = schema(&[1]);
        let (a, b) = (row(1, "a", None), row(1, "b", None));
        let text = |old, new| line(&schema, old, new, ChangeStyle::Plain);
        let at = "1999-12-31T23:59:59.999999Z";
        assert_eq!(text(None, Some(&a)), format!("{at} INSERT 1/200 id=1 name=\"a\" note=null"));
        assert_eq!(text(Some(&a), Some(&b)), format!("{at} UPDATE 1/200 id=1 name=\"a\" → \"b\""));
        assert_eq!(text(Some(&a), Some(&a)), format!("{at} UPDATE 1/200 id=1 (no value changed)"));
        assert_eq!(text(Some(&a), None), format!("{at} DELETE 1/200 id=1 name=\"a\" note=null"));
        let long = row(1, &"é\n\u{1b}".repeat(100), None);
        let text = text(None, Some(&long));
        assert!(text.contains("name=\"é\\n\\u001bé") && text.contains("… note"), "{text}");
        assert!(!text.contains(char::is_control));
    }

    #[test]
    fn colors_are_only_added() {
        let (schema, a, b) = (schema(&[1]), row(1, "a", None), row(1, "b", None));
        for (old, new) in [(None, Some(&a)), (Some(&a), Some(&b)), (Some(&a), None)] {
            let colored = line(&schema, old, new, ChangeStyle::Colored);
            let without = ["0", "1", "2", "31", "32", "33"]
                .iter()
                .fold(colored.clone(), |text, code| text.replace(&format!("\x1b[{code}m"), ""));
            assert_eq!(without, line(&schema, old, new, ChangeStyle::Plain));
            assert_ne!(without, colored);
        }
    }

    #[test]
    fn a_cell_that_does_not_fit_its_type_is_shown_in_hex() {
        let wrong: TupleBuf = [Cell::Null, Cell::Value(b"x")].into_iter().collect();
        let schema = schema(&[1]);
        let change = RowChangeLine::of(Lsn::ZERO, None, None, Some((&schema, wrong.as_ref()))).unwrap();
        assert!(change.line(ChangeStyle::Json).contains(r#""id":"\\x78""#), "{}", change.line(ChangeStyle::Json));
    }

    #[test]
    fn colors_are_for_terminals_that_want_them() {
        assert_eq!(ChangeStyle::of(false, false, None, None), ChangeStyle::Json);
        assert_eq!(ChangeStyle::of(true, true, None, None), ChangeStyle::Json);
        assert_eq!(ChangeStyle::of(false, true, None, Some("xterm")), ChangeStyle::Colored);
        assert_eq!(ChangeStyle::of(false, true, Some(""), None), ChangeStyle::Colored);
        assert_eq!(ChangeStyle::of(false, true, Some("0"), None), ChangeStyle::Plain);
        assert_eq!(ChangeStyle::of(false, true, None, Some("dumb")), ChangeStyle::Plain);
    }
}
