//! The reading of checked blocks: the problems so far, and the names that keys may refer to.

use super::diagnostics::ConfigProblem;
use super::fields::BlockFields;
use super::schema::ReferenceTarget;
use super::suggestions::nearest;

/// The state of a reading.
pub(crate) struct ConfigReader<'p> {
    pub(crate) problems: &'p mut Vec<ConfigProblem>,
    /// The names of the sources, valid or not.
    pub(crate) sources: Vec<String>,
    /// The names of the credentials profiles, valid or not.
    pub(crate) profiles: Vec<String>,
    /// The names of the identities, valid or not.
    pub(crate) identities: Vec<String>,
}

impl<'p> ConfigReader<'p> {
    pub(crate) fn new(problems: &'p mut Vec<ConfigProblem>) -> Self {
        ConfigReader { problems, sources: Vec::new(), profiles: Vec::new(), identities: Vec::new() }
    }

    /// Reports a problem of a key, at its value, or at the block if the key is missing.
    pub(crate) fn report(&mut self, fields: &BlockFields, key: &str, message: impl Into<String>) {
        self.report_at(fields, key, key, message);
    }

    /// Reports a problem of `key` at the value of another key of the block.
    pub(crate) fn report_at(&mut self, fields: &BlockFields, place: &str, key: &str, message: impl Into<String>) {
        self.problems.push(ConfigProblem::new(fields.place_of(place), &fields.path.key(key), message));
    }

    /// Reports a reference to a name that does not exist.
    pub(super) fn check_reference(&mut self, fields: &BlockFields, key: &str, target: ReferenceTarget) {
        let Some(name) = fields.leaf::<String>(key) else { return };
        let known = match target {
            ReferenceTarget::Source => &self.sources,
            ReferenceTarget::CredentialsProfile => &self.profiles,
        };
        if known.contains(&name) {
            return;
        }
        let what = target.what();
        let help = match nearest(&name, known.iter().map(String::as_str)) {
            Some(near) => format!("did you mean {near}?"),
            None if known.is_empty() => format!("no {what} is configured"),
            None => format!("there are {}", known.join(", ")),
        };
        let message = format!("there is no {what} named \"{name}\"");
        let problem = ConfigProblem::new(fields.place_of(key), &fields.path.key(key), message);
        self.problems.push(problem.help(help));
    }

    /// Reports the names in a list that no identity has.
    pub(super) fn check_identities(&mut self, fields: &BlockFields, key: &str) {
        for (name, path, place) in fields.texts(key) {
            if self.identities.contains(&name) {
                continue;
            }
            let help = match nearest(&name, self.identities.iter().map(String::as_str)) {
                Some(near) => format!("did you mean {near}?"),
                None if self.identities.is_empty() => "access.identities has none".to_owned(),
                None => format!("there are {}", self.identities.join(", ")),
            };
            let message = format!("access.identities has no \"{name}\"");
            self.problems.push(ConfigProblem::new(place, &path, message).help(help));
        }
    }

    /// Reports the strings that a list has more than once.
    pub(super) fn check_repeated(&mut self, fields: &BlockFields, key: &str, texts: &[String]) {
        for (i, text) in texts.iter().enumerate() {
            if texts[..i].contains(text) {
                self.report(fields, key, format!("names {text} twice"));
            }
        }
    }
}
