//! The commands that compare and reload a server's configuration.

use std::process::ExitCode;

use laredo_proto::oam::{ConfigChange, ConfigEffect, DiffConfigRequest, ReloadConfigRequest};
use serde_json::{Value, json};

use super::args::{ConfigCommand, ConfigReloadArgs, OamArgs};
use super::error::CliError;
use super::oam::call_oam;
use super::print_output;
use crate::printable::printable;

pub(super) async fn run(command: ConfigCommand) -> Result<ExitCode, CliError> {
    match command {
        ConfigCommand::Diff(oam) => diff(&oam).await,
        ConfigCommand::Reload(args) => reload(args).await,
    }
}

async fn diff(oam: &OamArgs) -> Result<ExitCode, CliError> {
    let answer = call_oam(oam, async |mut client| client.diff_config(DiffConfigRequest {}).await).await?;
    let is_good = answer.problems.is_empty();
    print_output(&match oam.json {
        true => {
            let plan = json!({ "changes": changes_json(&answer.changes), "problems": answer.problems });
            format!("{plan}\n")
        }
        false => plan_text(&answer.changes, &answer.problems),
    })?;
    Ok(ExitCode::from(u8::from(!is_good)))
}

async fn reload(ConfigReloadArgs { skip_restart, oam }: ConfigReloadArgs) -> Result<ExitCode, CliError> {
    let request = ReloadConfigRequest { skip_restart };
    let answer = call_oam(&oam, async |mut client| client.reload_config(request).await).await?;
    print_output(&match oam.json {
        true => {
            let outcome = json!({
                "applied": answer.applied, "changes": changes_json(&answer.changes), "problems": answer.problems
            });
            format!("{outcome}\n")
        }
        false => {
            let end = if answer.applied { "applied" } else { "not applied" };
            format!("{}{end}\n", plan_text(&answer.changes, &answer.problems))
        }
    })?;
    Ok(ExitCode::from(u8::from(!answer.applied)))
}

/// Returns the changes and the problems, a line each. The lines of changes have a sign: added,
/// removed, begun again, changed at once, or changed by a restart.
fn plan_text(changes: &[ConfigChange], problems: &[String]) -> String {
    let mut lines: Vec<String> = changes.iter().map(change_line).collect();
    if changes.is_empty() && problems.is_empty() {
        lines.push("nothing differs".to_owned());
    }
    lines.extend(problems.iter().map(|problem| format!("problem: {}", printable(problem))));
    lines.into_iter().map(|line| line + "\n").collect()
}

fn change_line(change: &ConfigChange) -> String {
    let table = match change.table.as_str() {
        "" => String::new(),
        table => format!("table {table} "),
    };
    let key = match change.key.as_str() {
        "" => String::new(),
        key => format!("{key}: {} -> {} ", shown(&change.before), shown(&change.after)),
    };
    let (sign, effect) = match change.effect() {
        ConfigEffect::TableAdded => ('+', "is added: it is copied, and then served"),
        ConfigEffect::TableRemoved => ('-', "is removed: its streams end"),
        ConfigEffect::TableRestarted => ('~', "(the table begins again: its streams end, and it is copied)"),
        ConfigEffect::AtOnce => ('=', "(at once)"),
        ConfigEffect::NeedsRestart => ('!', "(needs a restart)"),
        ConfigEffect::Unspecified => ('?', ""),
    };
    printable(&format!("{sign} {table}{key}{effect}"))
}

fn shown(value: &str) -> &str {
    if value.is_empty() { "none" } else { value }
}

fn changes_json(changes: &[ConfigChange]) -> Value {
    let change = |change: &ConfigChange| {
        let effect = change.effect().as_str_name().trim_start_matches("CONFIG_EFFECT_").to_ascii_lowercase();
        json!({
            "effect": effect,
            "table": change.table,
            "key": change.key,
            "before": change.before,
            "after": change.after,
        })
    };
    changes.iter().map(change).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_change_has_a_line_that_says_its_effect() {
        let change = |effect: ConfigEffect, table: &str, key: &str, before: &str, after: &str| ConfigChange {
            effect: effect.into(),
            table: table.into(),
            key: key.into(),
            before: before.into(),
            after: after.into(),
        };
        let changes = [
            change(ConfigEffect::TableAdded, "public.a", "", "", ""),
            change(ConfigEffect::TableRestarted, "public.b", "verify.enabled", "", "true"),
            change(ConfigEffect::AtOnce, "", "observability.logging.level", "info", "debug\x1b"),
        ];
        let expected = "+ table public.a is added: it is copied, and then served\n\
            ~ table public.b verify.enabled: none -> true (the table begins again: its streams end, and it is copied)\n\
            = observability.logging.level: info -> debug\\u{1b} (at once)\nproblem: x\n";
        assert_eq!(plan_text(&changes, &["x".to_owned()]), expected);
        assert_eq!(plan_text(&[], &[]), "nothing differs\n");
    }
}
