//! The format of a line of the log, as JSON or as text. A line has the fields of the spans around
//! it, such as `source` and `table`, next to its own.

use std::collections::BTreeMap;
use std::fmt::{self, Debug};

use serde::Serializer as _;
use serde::ser::SerializeMap as _;
use serde_json::Value;
use tracing::field::Field;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::field::MakeExt;
use tracing_subscriber::fmt::format::{Writer, debug_fn};
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, FormattedFields};
use tracing_subscriber::registry::LookupSpan;

use crate::printable::printable;

/// The fields that a line of JSON begins with, after its time and level.
const FIRST_FIELDS: [&str; 4] = ["event", "message", "source", "table"];

/// Lines of JSON: one object each, with all fields at its top level. Used with `JsonFields`.
pub(super) struct JsonLines;

/// Lines of text. Used with [`text_fields`].
pub(super) struct TextLines<T> {
    pub(super) timer: T,
}

impl<S, N> FormatEvent<S, N> for JsonLines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut fields = BTreeMap::new();
        let mut own = String::new();
        context.format_fields(Writer::new(&mut own), event)?;
        for texts in span_fields(context, event).into_iter().chain([own]) {
            fields.extend(serde_json::from_str::<BTreeMap<String, Value>>(&texts).map_err(|_| fmt::Error)?);
        }
        let mut time = String::new();
        SystemTime.format_time(&mut Writer::new(&mut time))?;
        let line = json_line(&time, event, &mut fields).map_err(|_| fmt::Error)?;
        writeln!(writer, "{line}")
    }
}

fn json_line(time: &str, event: &Event<'_>, fields: &mut BTreeMap<String, Value>) -> Result<String, serde_json::Error> {
    let mut line = Vec::new();
    let mut serializer = serde_json::Serializer::new(&mut line);
    let mut object = serializer.serialize_map(None)?;
    object.serialize_entry("timestamp", time)?;
    object.serialize_entry("level", event.metadata().level().as_str())?;
    for name in FIRST_FIELDS {
        if let Some(value) = fields.remove(name) {
            object.serialize_entry(name, &value)?;
        }
    }
    for (name, value) in fields {
        object.serialize_entry(name, value)?;
    }
    object.serialize_entry("target", event.metadata().target())?;
    object.end()?;
    // JSON is UTF-8.
    Ok(String::from_utf8_lossy(&line).into_owned())
}

impl<S, N, T> FormatEvent<S, N> for TextLines<T>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    T: FormatTime,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let (dim, end) = if writer.has_ansi_escapes() { ("\x1b[2m", "\x1b[0m") } else { ("", "") };
        let mut time = String::new();
        self.timer.format_time(&mut Writer::new(&mut time))?;
        if !time.is_empty() {
            write!(writer, "{dim}{time}{end} ")?;
        }
        let level = event.metadata().level();
        let color = if writer.has_ansi_escapes() { level_color(*level) } else { "" };
        write!(writer, "{color}{level:>5}{end} {dim}{}:{end} ", event.metadata().target())?;
        context.format_fields(writer.by_ref(), event)?;
        span_fields(context, event).iter().try_for_each(|fields| write!(writer, " {fields}"))?;
        writeln!(writer)
    }
}

fn level_color(level: Level) -> &'static str {
    match level {
        Level::TRACE => "\x1b[35m",
        Level::DEBUG => "\x1b[34m",
        Level::INFO => "\x1b[32m",
        Level::WARN => "\x1b[33m",
        Level::ERROR => "\x1b[31m",
    }
}

/// Returns the fields of the spans around a line, without those spans that have a field of the line
/// itself.
fn span_fields<S, N>(context: &FmtContext<'_, S, N>, event: &Event<'_>) -> Vec<String>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    let own = event.metadata().fields();
    let spans = context.event_scope().into_iter().flat_map(tracing_subscriber::registry::Scope::from_root);
    let others = spans.filter(|span| span.metadata().fields().iter().all(|field| own.field(field.name()).is_none()));
    others.filter_map(|span| Some(span.extensions().get::<FormattedFields<N>>()?.fields.clone())).collect()
}

/// Returns the format of an event's message and fields in text. A name in them, such as a table's,
/// cannot control the terminal, nor begin another line.
pub(super) fn text_fields() -> impl for<'a> FormatFields<'a> + Send + Sync + 'static {
    let fields = debug_fn(|writer: &mut Writer<'_>, field: &Field, value: &dyn Debug| {
        let value = printable(&format!("{value:?}"));
        match (field.name(), writer.has_ansi_escapes()) {
            ("message", _) => write!(writer, "{value}"),
            (name, false) => write!(writer, "{name}={value}"),
            // Italic, and a faint sign.
            (name, true) => write!(writer, "\x1b[3m{name}\x1b[0m\x1b[2m=\x1b[0m{value}"),
        }
    });
    fields.delimited(" ")
}

#[cfg(test)]
pub(super) use tests::LoggedText;

#[cfg(test)]
mod tests {
    use std::io::{self, Write};
    use std::sync::Arc;

    use parking_lot::Mutex;
    use tracing_subscriber::Layer;
    use tracing_subscriber::fmt::format::JsonFields;
    use tracing_subscriber::layer::SubscriberExt;
    use tracing_subscriber::registry::Registry;

    use super::*;

    /// The text of a log that a test reads.
    #[derive(Clone, Default)]
    pub(crate) struct LoggedText(Arc<Mutex<Vec<u8>>>);

    impl LoggedText {
        pub(crate) fn read(&self) -> String {
            String::from_utf8(self.0.lock().clone()).unwrap()
        }
    }

    impl Write for LoggedText {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged<L: Layer<Registry> + Send + Sync + 'static>(
        layer: impl FnOnce(LoggedText) -> L,
        log: impl FnOnce(),
    ) -> String {
        let text = LoggedText::default();
        let subscriber = tracing_subscriber::registry().with(layer(text.clone()));
        tracing::subscriber::with_default(subscriber, log);
        text.read()
    }

    fn text(has_colors: bool, log: impl FnOnce()) -> String {
        let layer = |writer: LoggedText| {
            let shown = tracing_subscriber::fmt::layer().with_writer(move || writer.clone()).with_ansi(has_colors);
            shown.fmt_fields(text_fields()).event_format(TextLines { timer: () })
        };
        logged(layer, log)
    }

    fn json(log: impl FnOnce()) -> Vec<Value> {
        let layer = |writer: LoggedText| {
            let shown = tracing_subscriber::fmt::layer().with_writer(move || writer.clone());
            shown.fmt_fields(JsonFields::new()).event_format(JsonLines)
        };
        logged(layer, log).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[test]
    fn a_name_cannot_control_the_terminal_that_shows_the_log() {
        let table = "public.a\x1b[2J\u{9b}\nERROR b";
        let log = || {
            tracing::info!(target: "t", %table, quoted = table, rows = 5, "copying {table}");
            tracing::info!(target: "t", "done");
        };
        let escaped = "public.a\\u{1b}[2J\\u{9b}\\nERROR b";
        let expected =
            format!(" INFO t: copying {escaped} table={escaped} quoted=\"{escaped}\" rows=5\n INFO t: done\n");
        assert_eq!(text(false, log), expected);
        let colored = text(true, log);
        assert!(
            colored.contains(&format!("copying {escaped} \x1b[3mtable\x1b[0m\x1b[2m=\x1b[0m{escaped}")),
            "{colored}"
        );
        assert_eq!(colored.lines().count(), 2, "{colored}");
    }

    #[test]
    fn a_line_has_the_fields_of_its_spans_once() {
        let log = || {
            let _source = tracing::error_span!("source", source = "main").entered();
            let _table = tracing::error_span!("table", table = %"public.a").entered();
            tracing::warn!(target: "t", event = "slow", rows = 5, "it is \"slow\"");
            tracing::error!(target: "t", event = "other", table = "public.b", "stopped");
        };
        let expected = " WARN t: it is \"slow\" event=\"slow\" rows=5 source=\"main\" table=public.a\n\
                        ERROR t: stopped event=\"other\" table=\"public.b\" source=\"main\"\n";
        assert_eq!(text(false, log), expected);
        let lines = json(log);
        for (line, (event, table)) in lines.iter().zip([("slow", "public.a"), ("other", "public.b")]) {
            let found = ["event", "source", "table", "target"].map(|name| line[name].as_str().unwrap_or_default());
            assert_eq!(found, [event, "main", table, "t"], "{line}");
            assert!(line["timestamp"].as_str().is_some_and(|time| time.ends_with('Z')), "{line}");
        }
        assert_eq!((&lines[0]["message"], &lines[0]["rows"]), (&"it is \"slow\"".into(), &5.into()));
        assert_eq!((lines.len(), &lines[1]["level"]), (2, &"ERROR".into()));
    }
}
