//! `laredo top`: a server on the whole screen, asked again every second.

mod sampling;
mod screen;
#[cfg(test)]
mod tests;
mod view;

use std::io::{self, IsTerminal};
use std::process::ExitCode;
use std::time::Instant;

use crossterm::event::{Event, EventStream, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use futures::StreamExt;
use laredo_core::TableName;
use ratatui::DefaultTerminal;
use tokio::sync::{mpsc, watch};

use super::args::TopArgs;
use super::error::CliError;
use sampling::{TopSample, sample_until_closed};
use view::{TableOrder, TopView};

/// Shows the server until a key or Ctrl-C ends it.
pub(super) async fn run(args: TopArgs) -> Result<ExitCode, CliError> {
    if !io::stdin().is_terminal() || !io::stdout().is_terminal() {
        return Err(CliError::NoTerminal);
    }
    let (selection, selected) = watch::channel(None);
    // One sample at a time: a slow terminal makes the next one later, not the line longer.
    let (sender, samples) = mpsc::channel(1);
    let server = args.oam.clone();
    tokio::spawn(sample_until_closed(args, selected, sender));
    let mut terminal = ratatui::try_init().map_err(CliError::Output)?;
    let shown = show(&mut terminal, TopView::new(server), samples, &selection).await;
    ratatui::restore();
    shown.map_err(CliError::Output).map(|()| ExitCode::SUCCESS)
}

/// Draws after each sample, key and change of the terminal's size.
async fn show(
    terminal: &mut DefaultTerminal,
    mut view: TopView,
    mut samples: mpsc::Receiver<TopSample>,
    selection: &watch::Sender<Option<TableName>>,
) -> io::Result<()> {
    let mut events = EventStream::new();
    loop {
        terminal.draw(|frame| screen::draw(frame, &view))?;
        tokio::select! {
            sample = samples.recv() => match sample {
                Some(sample) => view.update(sample, Instant::now()),
                None => return Ok(()),
            },
            event = events.next() => match event.transpose()? {
                Some(Event::Key(key)) if key.kind != KeyEventKind::Release => {
                    if press(&mut view, key) {
                        return Ok(());
                    }
                }
                Some(_) => {}
                None => return Ok(()),
            },
        }
        selection.send_if_modified(|selected| {
            let is_other = *selected != view.selected();
            *selected = view.selected();
            is_other
        });
    }
}

/// Handles a key. Returns true if it ends the command.
fn press(view: &mut TopView, key: KeyEvent) -> bool {
    match key.code {
        KeyCode::Char('q') | KeyCode::Esc => return true,
        KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => return true,
        KeyCode::Up | KeyCode::Char('k') => view.select_by(-1),
        KeyCode::Down | KeyCode::Char('j') => view.select_by(1),
        KeyCode::PageUp => view.select_by(-10),
        KeyCode::PageDown => view.select_by(10),
        KeyCode::Char('t') => view.set_order(TableOrder::Trouble),
        KeyCode::Char('n') => view.set_order(TableOrder::Name),
        KeyCode::Char('r') => view.set_order(TableOrder::Rate),
        KeyCode::Char('l') => view.set_order(TableOrder::Lag),
        KeyCode::Char('c') => view.set_order(TableOrder::Clients),
        _ => {}
    }
    false
}
