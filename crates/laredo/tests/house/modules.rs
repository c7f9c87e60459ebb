//! The top-level modules of each crate do not use each other in a circle.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use regex::Regex;

use super::{code_spans, crates, files, read};

/// Modules that hold fixtures for the tests of their crate.
const TEST_MODULES: &[&str] = &["fixtures", "message_bytes"];

/// The modules that each module of a crate uses.
type ModuleUses = BTreeMap<String, BTreeSet<String>>;

#[test]
fn no_modules_of_a_crate_use_each_other_in_a_circle() {
    let found: Vec<_> = crates()
        .iter()
        .map(|name| name.strip_prefix("laredo-").unwrap_or(name).to_owned())
        .flat_map(|name| circles(&uses(&name)).into_iter().map(move |circle| format!("{name}: {}", circle.join(", "))))
        .collect();
    assert!(found.is_empty(), "these modules use each other: {found:#?}");
}

#[test]
fn the_code_map_names_all_modules_and_no_other() {
    let page = read(Path::new("ARCHITECTURE.md")).expect("the page is there");
    let (_, map) = page.split_once("\n## Code map\n").expect("the page has a code map");
    let map = map.split("\n## ").next().unwrap_or_default();
    for section in map.split("\n**").skip(1) {
        let name = section.split("**").next().unwrap_or_default();
        let rows = section.lines().filter_map(|line| line.strip_prefix("| ")?.split(" | ").next());
        let named: BTreeSet<String> = rows.flat_map(code_spans).map(str::to_owned).collect();
        // Those that only tests use are not part of the map.
        let modules: BTreeSet<String> =
            uses(name).into_keys().filter(|module| !TEST_MODULES.contains(&module.as_str())).collect();
        assert_eq!(named, modules, "the modules of {name}");
    }
}

#[test]
fn circles_are_found_in_all_ways_to_write_a_path() {
    let mut modules = BTreeMap::new();
    let mut add = |file: &str, text: &str| add_uses(&mut modules, file, text);
    add("a.rs", "use crate::b::Name;\n");
    add("b/deep.rs", "use crate::{Other, c::{self, More}, d};\n");
    add("c.rs", "fn f() { crate::a::call() }\n");
    add("d/deep/er.rs", "use super::super::super::e::Name;\n");
    add("e.rs", "#[cfg(test)]\nmod tests {\n    use crate::d::Name;\n}\n");
    add("f.rs", "use super::e;\n/// See [`crate::g`].\n// crate::g::x\n");
    add("g.rs", "use crate::f::X;\n");
    assert_eq!(circles(&modules), [["a", "b", "c"]]);
    assert_eq!(modules["d"], BTreeSet::from(["e".to_owned()]));
    assert_eq!(modules["f"], BTreeSet::from(["e".to_owned()]));
}

/// Returns the uses between the top-level modules of a crate, without those of its tests.
fn uses(name: &str) -> ModuleUses {
    let source = Path::new("crates").join(name).join("src");
    let mut modules = ModuleUses::new();
    for path in files() {
        let Some(file) = path.strip_prefix(&source).ok().and_then(Path::to_str) else { continue };
        let is_root = ["lib.rs", "main.rs"].contains(&file) || file.starts_with("bin/");
        if file.ends_with(".rs") && !file.contains("tests") && !is_root {
            add_uses(&mut modules, file, &read(&path).unwrap_or_default());
        }
    }
    modules
}

/// Adds the uses of one file, whose path is relative to the crate's `src`.
fn add_uses(modules: &mut ModuleUses, file: &str, text: &str) {
    let path = file.trim_end_matches(".rs").trim_end_matches("/mod");
    let (top, depth) = (path.split('/').next().unwrap_or(path), path.split('/').count());
    let code = text.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
    let code: Vec<&str> = code.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
    let code = code.join("\n");
    let path_start = Regex::new(r"\bcrate::|(?:\bsuper::)+").expect("the expression is valid");
    let used = modules.entry(top.to_owned()).or_default();
    for start in path_start.find_iter(&code) {
        if start.as_str() == "crate::" || start.as_str().matches("super").count() == depth {
            used.extend(first_names(&code[start.end()..]).filter(|name| name != top));
        }
    }
}

/// Returns the first names of a path, or of the paths in its braces: `a` and `d` of
/// `{a::{b, c}, d}`.
fn first_names(path: &str) -> impl Iterator<Item = String> {
    let mut depth = 0_u32;
    let mut names = vec![String::new()];
    let mut is_open = true;
    for char in path.chars() {
        match char {
            '{' => depth += 1,
            '}' => depth = depth.saturating_sub(1),
            ',' if depth == 1 => {
                names.push(String::new());
                is_open = true;
            }
            ' ' | '\n' if depth == 1 && names.last().is_some_and(String::is_empty) => {}
            _ if char.is_alphanumeric() || char == '_' => {
                if is_open && depth <= 1 {
                    names.last_mut().expect("there is one").push(char);
                }
            }
            _ => is_open = false,
        }
        if depth == 0 && (!is_open || char == '}') {
            break;
        }
    }
    names.into_iter().filter(|name| !name.is_empty())
}

/// Returns the groups of modules that use each other, directly or through others of the group.
fn circles(modules: &ModuleUses) -> Vec<Vec<String>> {
    let reached: ModuleUses = modules.keys().map(|module| (module.clone(), reachable(modules, module))).collect();
    let mut found: Vec<Vec<String>> = reached
        .iter()
        .filter(|(module, from)| from.contains(*module))
        .map(|(module, from)| {
            let returns = |other: &&String| reached.get(*other).is_some_and(|back| back.contains(module));
            from.iter().filter(returns).cloned().collect()
        })
        .collect();
    found.dedup();
    found.sort();
    found.dedup();
    found
}

fn reachable(modules: &ModuleUses, from: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut next: Vec<&String> = modules[from].iter().collect();
    while let Some(module) = next.pop() {
        if found.insert(module.clone()) {
            next.extend(modules.get(module).into_iter().flatten());
        }
    }
    found
}
