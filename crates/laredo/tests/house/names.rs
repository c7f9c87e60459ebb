//! The names of types: each occurs once, and most say what the type is without its module.

use std::collections::BTreeMap;
use std::path::PathBuf;

use regex::Regex;

use crate::{files, read};

/// The number of letters up to which a name is short. A short name is a term that everybody in the
/// field knows, or that the glossary defines.
const SHORT_LETTERS: usize = 6;

/// The maximum share of short names, in percent.
const SHORT_PERCENT_MAX: usize = 12;

/// A definition of a type at the level of a module. Associated types are indented.
const DEFINITION: &str =
    r"(?m)^(?:type|[ \t]*(?:pub(?:\([a-z: ]+\))? )?(?:struct|enum|trait|union)|pub(?:\([a-z: ]+\))? type) ([A-Z]\w*)";

#[test]
fn a_type_s_name_occurs_once_and_is_long_enough() {
    let definition = Regex::new(DEFINITION).unwrap();
    let mut defined: BTreeMap<String, Vec<PathBuf>> = BTreeMap::new();
    for path in files() {
        let is_source = path.starts_with("crates") && path.extension().is_some_and(|extension| extension == "rs");
        let Some(text) = read(&path).filter(|_| is_source) else { continue };
        for name in type_names(&definition, &text) {
            defined.entry(name).or_default().push(path.clone());
        }
    }
    let count: usize = defined.values().map(Vec::len).sum();
    let short: Vec<_> = defined.keys().filter(|name| name.len() <= SHORT_LETTERS).collect();
    println!("{count} types, {} with a short name", short.len());
    let twice: Vec<_> = defined.iter().filter(|(_, files)| files.len() > 1).collect();
    assert!(twice.is_empty(), "these names are of more than one type: {twice:#?}");
    assert!(short.len() * 100 <= count * SHORT_PERCENT_MAX, "too many names are short: {short:?}");
}

#[test]
fn all_definitions_of_types_are_found() {
    let code = "pub struct Abc;\nenum Def {}\n    pub(crate) struct Inner;\ntype Alias = u8;\npub(super) type Other = u8;\n\
                impl X {\n    type Item = u8;\n}\n// struct Comment\npub trait Ghi {}\nlet structure = 1;\n";
    let definition = Regex::new(DEFINITION).unwrap();
    assert_eq!(type_names(&definition, code), ["Abc", "Def", "Inner", "Alias", "Other", "Ghi"]);
}

fn type_names(definition: &Regex, source: &str) -> Vec<String> {
    definition.captures_iter(source).map(|found| found[1].to_owned()).collect()
}
