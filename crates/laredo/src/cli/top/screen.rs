//! The drawing of the screen. Everything that is not ours is made printable.

use laredo_proto::replication::ConnectedClient;
use ratatui::Frame;
use ratatui::layout::{Alignment, Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Text};
use ratatui::widgets::{Paragraph, Row, Table, TableState};

use super::super::status::{duration, source_line};
use super::super::text_table::grouped;
use super::view::{TableOrder, TopTable, TopView, is_well};
use crate::printable::printable;

const KEYS: &str = "↑↓ table   order: t trouble  n name  r rate  l lag  c clients   q quit";
/// The most lines for the clients of the selected table.
const CLIENT_LINES_MAX: u16 = 12;

pub(super) fn draw(frame: &mut Frame, view: &TopView) {
    let troubles = troubles(view);
    let lines = |count: usize| u16::try_from(count).unwrap_or(u16::MAX);
    let clients = view.replication.as_ref().map_or(0, |(_, replication)| replication.clients.len());
    let areas = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(lines(troubles.len())),
        Constraint::Min(3),
        Constraint::Length(2 + lines(clients).clamp(1, CLIENT_LINES_MAX)),
        Constraint::Length(1),
    ]);
    let [head, trouble, tables, clients, keys] = areas.areas(frame.area());
    frame.render_widget(Paragraph::new(headline(view)).style(bold()), head);
    let troubles = troubles.into_iter().map(Line::from).collect::<Vec<_>>();
    frame.render_widget(Paragraph::new(troubles).style(Style::new().fg(Color::Red)), trouble);
    draw_tables(frame, view, tables);
    draw_clients(frame, view, clients);
    frame.render_widget(Paragraph::new(KEYS).style(Style::new().add_modifier(Modifier::DIM)), keys);
}

fn bold() -> Style {
    Style::new().add_modifier(Modifier::BOLD)
}

fn headline(view: &TopView) -> String {
    let server = printable(&view.server);
    let Some(health) = &view.health else { return server };
    let ready = if health.ready { "ready" } else { "not ready" };
    let tables = match view.troubled() {
        0 => format!("{} tables", view.tables.len()),
        count => format!("{} tables, {count} of them in trouble", view.tables.len()),
    };
    let rate: f64 = view.tables.iter().filter_map(|table| table.changes_per_second).sum();
    format!("{server}  {ready}  {tables}  {} changes/s", per_second(rate))
}

/// Returns a line for each error, and for each source that is not followed.
fn troubles(view: &TopView) -> Vec<String> {
    let errors = view.errors.iter().map(|error| printable(error));
    let sources = view.health.iter().flat_map(|health| &health.sources).filter_map(source_line);
    errors.chain(sources.map(|line| line.trim_end().to_owned())).collect()
}

fn draw_tables(frame: &mut Frame, view: &TopView, area: Rect) {
    let widest = view.tables.iter().map(|table| table.name.to_string().chars().count()).max().unwrap_or(0);
    let widths = [
        Constraint::Length(u16::try_from(widest.clamp(5, 40)).unwrap_or(40)),
        Constraint::Length(9),
        Constraint::Length(14),
        Constraint::Length(9),
        Constraint::Length(9),
        Constraint::Length(8),
        Constraint::Fill(1),
    ];
    let heading = |name: &'static str, order: TableOrder| {
        if view.order == order { format!("{name}↓") } else { name.to_owned() }
    };
    let header = Row::new([
        Text::from(heading("TABLE", TableOrder::Name)),
        Text::from(heading("STATE", TableOrder::Trouble)),
        right("ROWS".to_owned()),
        right(heading("CHANGE/S", TableOrder::Rate)),
        right(heading("LAG", TableOrder::Lag)),
        right(heading("CLIENTS", TableOrder::Clients)),
        Text::from("DETAIL"),
    ]);
    let table = Table::new(view.tables.iter().map(table_row), widths)
        .header(header.style(bold()))
        .column_spacing(2)
        .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED));
    let mut state = TableState::default().with_selected(view.selected_line());
    frame.render_stateful_widget(table, area, &mut state);
}

fn table_row(table: &TopTable) -> Row<'static> {
    let row = Row::new([
        Text::from(printable(&table.name.to_string())),
        Text::from(printable(&table.state)),
        right(table.rows.map_or_else(String::new, grouped)),
        right(table.changes_per_second.map_or_else(String::new, per_second)),
        right(table.lag_ms.map_or_else(String::new, duration)),
        right(table.clients.map_or_else(String::new, grouped)),
        Text::from(printable(&table.detail)),
    ]);
    if is_well(table) { row } else { row.style(Style::new().fg(Color::Yellow)) }
}

fn draw_clients(frame: &mut Frame, view: &TopView, area: Rect) {
    let Some((name, replication)) = &view.replication else { return };
    let [title, list] = Layout::vertical([Constraint::Length(1), Constraint::Min(1)]).areas(area);
    let count = match replication.clients.len() {
        0 => "no client".to_owned(),
        1 => "1 client".to_owned(),
        count => format!("{} clients", grouped(count as u64)),
    };
    let entries = grouped(u64::try_from(replication.journal_entry_count).unwrap_or(0));
    let text = printable(&format!("{name}: {count}, {entries} entries in the journal"));
    frame.render_widget(Paragraph::new(text).style(bold()), title);
    // The farthest behind first: those are looked for.
    let mut clients: Vec<&ConnectedClient> = replication.clients.iter().collect();
    clients.sort_by(|a, b| b.behind_count.cmp(&a.behind_count).then_with(|| a.client_id.cmp(&b.client_id)));
    let widths = [Constraint::Length(30), Constraint::Length(13), Constraint::Length(12), Constraint::Fill(1)];
    let header =
        Row::new([Text::from("CLIENT"), Text::from("STATE"), right("BEHIND".to_owned()), Text::from("CONNECTED")]);
    let table = Table::new(clients.into_iter().map(client_row), widths).header(header.style(bold())).column_spacing(2);
    frame.render_widget(table, list);
}

fn client_row(client: &ConnectedClient) -> Row<'static> {
    let id = if client.client_id.is_empty() { "(unnamed)" } else { &client.client_id };
    Row::new([
        Text::from(printable(id)),
        Text::from(printable(&client.state)),
        right(grouped(u64::try_from(client.behind_count).unwrap_or(0))),
        Text::from(client.connected_at.as_ref().map_or_else(String::new, ToString::to_string)),
    ])
}

fn right(text: String) -> Text<'static> {
    Text::from(text).alignment(Alignment::Right)
}

/// Formats a rate: whole numbers from ten on.
fn per_second(rate: f64) -> String {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rate is not below zero")]
    match rate {
        0.0 => "0".to_owned(),
        ..10.0 => format!("{rate:.1}"),
        _ => grouped(rate.round() as u64),
    }
}
