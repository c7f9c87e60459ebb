//! Checks of references by name, and of lists without repeated items.

use super::diagnostics::ConfigProblem;
use super::fields::BlockFields;
use super::suggestions::nearest;

/// Reports a reference to a name that does not exist.
pub(super) fn report_dangling(
    fields: &BlockFields,
    key: &str,
    name: &str,
    known: &[&str],
    what: &str,
    problems: &mut Vec<ConfigProblem>,
) {
    if known.contains(&name) {
        return;
    }
    let message = format!("there is no {what} named \"{name}\"");
    let problem = ConfigProblem::new(fields.place_of(key), &fields.path.key(key), message);
    let help = match nearest(name, known.iter().copied()) {
        Some(near) => format!("did you mean {near}?"),
        None if known.is_empty() => format!("no {what} is configured"),
        None => format!("there are {}", known.join(", ")),
    };
    problems.push(problem.help(help));
}

/// Reports the strings that a list has more than once.
pub(super) fn report_repeated(fields: &BlockFields, key: &str, problems: &mut Vec<ConfigProblem>) {
    let texts = fields.texts(key);
    for (i, text) in texts.iter().enumerate() {
        if texts[..i].contains(text) {
            let message = format!("names {text} twice");
            problems.push(ConfigProblem::new(fields.place_of(key), &fields.path.key(key), message));
        }
    }
}
