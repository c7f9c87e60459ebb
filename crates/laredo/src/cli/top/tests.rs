//! Samples become lines, and lines a screen.

use std::time::{Duration, Instant};

use laredo_core::TableName;
use laredo_proto::oam::{GetStatusResponse, PipelineStatus};
use laredo_proto::replication::{ConnectedClient, GetReplicationStatusResponse};
use ratatui::Terminal;
use ratatui::backend::TestBackend;

use super::super::status::parse_health;
use super::sampling::TopSample;
use super::screen::draw;
use super::view::{TableOrder, TopView};

/// Returns a sample of two tables, one of which is not well.
fn sample(orders: i64, health: &str) -> TopSample {
    let (health, _) = parse_health(health.as_bytes()).unwrap();
    let pipeline = |table: &str, inserts_applied| PipelineStatus {
        schema: "public".to_owned(),
        table: table.to_owned(),
        inserts_applied,
        updates_applied: 10,
        ..PipelineStatus::default()
    };
    let pipelines = vec![pipeline("account", 5), pipeline("order", orders)];
    let status = GetStatusResponse { pipelines, ..GetStatusResponse::default() };
    TopSample { health: Ok(health), status: Ok(status), table: None }
}

const HEALTH: &str = r#"{"ready": true, "tables": [
    {"schema": "public", "table": "account", "state": "live", "rows": 1204, "lag_ms": 18, "clients": 2},
    {"schema": "public", "table": "order", "state": "retrying", "rows": 7, "lag_ms": 900, "clients": 0, "error": "disk full"}]}"#;

fn names(view: &TopView) -> Vec<&str> {
    view.tables.iter().map(|table| table.name.table.as_str()).collect()
}

#[test]
fn rates_are_the_changes_between_two_samples() {
    let (mut view, began) = (TopView::new(String::new()), Instant::now());
    view.update(sample(100, HEALTH), began);
    assert!(view.tables.iter().all(|table| table.changes_per_second.is_none()));
    view.update(sample(350, HEALTH), began + Duration::from_secs(2));
    view.set_order(TableOrder::Rate);
    let rates: Vec<_> = view.tables.iter().map(|table| table.changes_per_second).collect();
    assert_eq!((names(&view), rates), (vec!["order", "account"], vec![Some(125.0), Some(0.0)]));
    // The counts of a server that was restarted begin at zero.
    view.update(sample(0, HEALTH), began + Duration::from_secs(3));
    assert_eq!(view.tables.iter().find(|table| table.name.table == "order").unwrap().changes_per_second, None);
}

#[test]
fn trouble_comes_first_and_each_key_has_its_order() {
    let mut view = TopView::new(String::new());
    view.update(sample(1, HEALTH), Instant::now());
    assert_eq!((names(&view), view.troubled()), (vec!["order", "account"], 1));
    view.set_order(TableOrder::Name);
    assert_eq!(names(&view), ["account", "order"]);
    view.set_order(TableOrder::Lag);
    assert_eq!(names(&view), ["order", "account"]);
    view.set_order(TableOrder::Clients);
    assert_eq!(names(&view), ["account", "order"]);
}

#[test]
fn the_selection_follows_its_table_and_stays_within_the_list() {
    let mut view = TopView::new(String::new());
    view.update(sample(1, HEALTH), Instant::now());
    assert_eq!(view.selected_line(), Some(0));
    view.select_by(10);
    assert_eq!(view.selected().unwrap().table, "account");
    view.set_order(TableOrder::Name);
    assert_eq!(view.selected_line(), Some(0));
    view.select_by(-10);
    assert_eq!(view.selected_line(), Some(0));
    // The table was removed from the configuration.
    view.update(sample(1, r#"{"ready": true, "tables": []}"#), Instant::now());
    assert_eq!(view.selected(), None);
    view.select_by(1);
    assert_eq!(view.selected(), None);
}

#[test]
fn answers_that_are_missing_keep_the_last_ones_and_say_why() {
    let mut view = TopView::new(String::new());
    view.update(sample(1, HEALTH), Instant::now());
    let gone = || Err("http://h:1 cannot be reached".to_owned());
    view.update(TopSample { health: gone(), status: Err("refused".to_owned()), table: None }, Instant::now());
    assert_eq!((view.tables.len(), view.errors.join("; ")), (2, "refused; http://h:1 cannot be reached".to_owned()));
    view.update(sample(1, HEALTH), Instant::now());
    assert!(view.errors.is_empty());
}

/// Returns the lines of a screen of this size.
fn drawn(view: &TopView, width: u16, height: u16) -> Vec<String> {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| draw(frame, view)).unwrap();
    let buffer = terminal.backend().buffer();
    let symbol = |x, y| buffer.cell((x, y)).unwrap().symbol().to_owned();
    (0..height).map(|y| (0..width).map(|x| symbol(x, y)).collect::<String>().trim_end().to_owned()).collect()
}

#[test]
fn a_screen_has_the_server_its_tables_and_the_clients_of_one() {
    let (mut view, began) = (TopView::new("http://db1:4001".to_owned()), Instant::now());
    view.update(sample(100, HEALTH), began);
    let client = |client_id: &str, behind_count| ConnectedClient {
        client_id: client_id.to_owned(),
        behind_count,
        state: "live".to_owned(),
        ..ConnectedClient::default()
    };
    let clients = vec![client("billing\x1b[2J", 0), client("", 4200)];
    let replication = GetReplicationStatusResponse { clients, journal_entry_count: 8112, ..Default::default() };
    let mut newer = sample(1600, HEALTH);
    newer.table = Some((TableName::new("public", "order"), Ok(replication)));
    view.update(newer, began + Duration::from_secs(1));
    let lines = drawn(&view, 100, 14);
    assert_eq!(lines[0], "http://db1:4001  ready  2 tables, 1 of them in trouble  1,500 changes/s");
    assert_eq!(lines[1], "TABLE           STATE↓               ROWS   CHANGE/S        LAG   CLIENTS  DETAIL");
    assert_eq!(lines[2], "public.order    retrying                7      1,500     900 ms         0  disk full");
    assert_eq!(lines[3], "public.account  live                1,204          0      18 ms         2");
    assert_eq!(lines[9], "public.order: 2 clients, 8,112 entries in the journal");
    assert!(lines[11].starts_with("(unnamed)"), "{lines:#?}");
    assert!(lines[12].starts_with("billing\\u{1b}[2J"), "{lines:#?}");
    assert!(lines[13].starts_with("↑↓ table"), "{lines:#?}");
}

#[test]
fn a_screen_of_any_size_is_drawn() {
    let mut view = TopView::new("http://db1:4001".to_owned());
    for (width, height) in [(1, 1), (20, 3), (300, 2), (80, 24)] {
        drawn(&view, width, height);
    }
    let gone = "http://db1:4001 cannot be reached".to_owned();
    let nothing = TopSample { health: Err(gone.clone()), status: Err(gone), table: None };
    view.update(nothing, Instant::now());
    let lines = drawn(&view, 60, 8);
    assert_eq!((lines[0].as_str(), lines[1].as_str()), ("http://db1:4001", "http://db1:4001 cannot be reached"));
}
