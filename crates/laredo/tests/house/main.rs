//! The project's rules that a compiler does not check. They concern dependencies between crates,
//! the lengths of files, links, and references to paths outside of the project.

mod deploy;
mod errors;
mod modules;
mod names;
mod style;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use regex::Regex;

/// The packages that a crate must not depend on, even indirectly. ARCHITECTURE.md has the
/// reasons.
const FORBIDDEN: &[(&str, &[&str])] = &[
    ("laredo-core", &["laredo-values", "postgres-types", "regex", "serde_json"]),
    ("laredo-client", &["laredo-values", "laredo-engine", "laredo-postgres", "laredo-archive", "regex"]),
    ("laredo-values", &["laredo-proto", "laredo-engine"]),
    ("laredo-engine", &["tonic", "tokio-postgres"]),
    ("laredo-archive", &["laredo-server", "laredo-engine"]),
];

/// The crates for developers, which may use everything.
const DEVELOPERS: &[&str] = &["laredo-devtools", "laredo-fuzz", "laredo-testkit"];

/// Paths that exist on one machine only. They are written in pieces, or this file would be found.
const OUTSIDE: &[&str] = &[concat!("/wo", "rk/"), concat!("../sha", "red")];

/// The maximum number of lines of a source file.
const FILE_LINES_MAX: usize = 800;

#[test]
fn no_crate_reaches_into_a_room_that_is_not_its_own() {
    let mut wrong = Vec::new();
    for name in crates() {
        let dependencies = dependencies(&name);
        let of_this_crate = FORBIDDEN.iter().filter(|(from, _)| *from == name);
        let mut forbidden: Vec<&str> = of_this_crate.flat_map(|(_, targets)| *targets).copied().collect();
        if !DEVELOPERS.contains(&name.as_str()) {
            forbidden.extend(["laredo"].iter().chain(DEVELOPERS));
        }
        forbidden.retain(|target| dependencies.contains(*target));
        wrong.extend(forbidden.into_iter().map(|target| format!("{name} -> {target}")));
    }
    assert!(wrong.is_empty(), "forbidden dependencies: {wrong:?}");
}

#[test]
fn the_dependency_checker_sees_through_other_crates() {
    let engine = dependencies("laredo-engine");
    assert!(engine.contains("laredo-core") && engine.contains("postgres-types"), "{engine:?}");
    assert!(!engine.contains("laredo-engine") && !engine.contains("proptest"), "{engine:?}");
}

#[test]
fn files_are_short() {
    let sources: Vec<_> = files()
        .into_iter()
        .filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
        .map(|path| (read(&path).expect("our sources are UTF-8").lines().count(), path))
        .collect();
    let over: Vec<_> = sources.iter().filter(|(length, _)| *length > FILE_LINES_MAX).collect();
    assert!(over.is_empty(), "over {FILE_LINES_MAX} lines: {over:?}");
    assert!(!sources.is_empty());
}

#[test]
fn links_in_markdown_lead_somewhere() {
    let dead: Vec<_> =
        markdown().iter().flat_map(|file| dead_links(file, &read(file).expect("Markdown is UTF-8"))).collect();
    assert!(dead.is_empty(), "dead links: {dead:#?}");
}

#[test]
fn each_guarantee_names_tests_that_exist() {
    let tests: BTreeSet<String> = files()
        .iter()
        .filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
        .flat_map(|path| test_names(&read(path).unwrap_or_default()))
        .collect();
    let page = read(Path::new("docs/guarantees.md")).expect("the page is there");
    for section in page.split("\n## ").skip(1) {
        let title = section.lines().next().unwrap_or_default();
        let named: Vec<&str> = code_spans(section).filter(|span| is_test_name(span)).collect();
        assert!(!named.is_empty(), "{title}: no test is named");
        let missing: Vec<_> = named.iter().filter(|name| !tests.contains(**name)).collect();
        assert!(missing.is_empty(), "{title}: these tests do not exist: {missing:?}");
    }
}

#[test]
fn nothing_points_outside_of_the_project() {
    let found: Vec<_> = files()
        .into_iter()
        .filter_map(|path| Some((read(&path)?, path)))
        .filter(|(text, _)| OUTSIDE.iter().any(|outside| text.contains(outside)))
        .map(|(_, path)| path)
        .collect();
    assert!(found.is_empty(), "these mention a path of somebody's machine: {found:?}");
}

#[test]
fn the_link_checker_finds_dead_links_only() {
    let text = "# One, `two` & 3_x\n# One, `two` & 3_x\n[a](Cargo.toml) [b](#one-two--3_x) [c](#one-two--3_x-1)\n\
                [d](https://x.org/y#z) `[no](link)` [e](crates/laredo \"title\")\n```\n[no](link)\n# no\n```\n\
                [dead](nothing.md) [dead](#no) ![dead](<no space.png>)\n[ref]: missing/file\n";
    let dead = dead_links(Path::new("X.md"), text);
    let expected = ["nothing.md", "#no", "no space.png", "missing/file"].map(|link| format!("X.md: {link}"));
    assert_eq!(dead, expected);
}

/// Returns the names of the functions of a source file that have a test attribute.
fn test_names(source: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut is_test = false;
    for line in source.lines().map(str::trim) {
        let attribute = line.strip_prefix("#[");
        is_test |= attribute.is_some_and(|rest| rest.starts_with("test") || rest.starts_with("tokio::test"));
        if let Some((_, rest)) = line.split_once("fn ").filter(|_| is_test && attribute.is_none()) {
            names.extend(rest.split('(').next().map(ToOwned::to_owned));
            is_test = false;
        }
    }
    names
}

/// Returns the texts between single backticks.
fn code_spans(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// Returns true for names of tests, and false for metrics, keys and fields.
fn is_test_name(span: &str) -> bool {
    let has_form = span.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_');
    has_form && !span.starts_with("laredo_") && (span.starts_with("with_") || span.matches('_').count() >= 3)
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Returns the names of the packages that `name` is built with: its normal dependencies and theirs.
/// Its own features are all enabled.
fn dependencies(name: &str) -> BTreeSet<String> {
    let output = Command::new(env!("CARGO"))
        .args(["tree", "--locked", "--all-features", "--edges=normal", "--target=all"])
        .args(["--prefix=none", "--format={p}", "--package", name])
        .current_dir(root())
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let tree = String::from_utf8_lossy(&output.stdout).into_owned();
    // The first line is the package itself.
    let packages = tree.lines().skip(1).filter_map(|line| line.split_whitespace().next());
    packages.map(ToOwned::to_owned).collect()
}

fn crates() -> Vec<String> {
    let manifests = files().into_iter().filter(|path| path.ends_with("Cargo.toml") && path.iter().count() == 3);
    let name = |path: PathBuf| {
        let text = read(&path)?;
        let name = text.lines().find_map(|line| line.strip_prefix("name = "))?;
        Some(name.trim_matches('"').to_owned())
    };
    manifests.filter_map(name).collect()
}

/// Returns the files of the project, relative to its root, without built or downloaded files.
fn files() -> Vec<PathBuf> {
    let root = root();
    let mut found = Vec::new();
    let mut next = vec![PathBuf::new()];
    while let Some(dir) = next.pop() {
        for entry in fs::read_dir(root.join(&dir)).expect("the project can be read") {
            let entry = entry.expect("the project can be read");
            let path = dir.join(entry.file_name());
            let kind = entry.file_type().expect("a file has a type");
            let foreign = [".git", "target", ".venv", "node_modules"].iter().any(|name| path.ends_with(name));
            if kind.is_dir() && !foreign {
                next.push(path);
            } else if kind.is_file() && !foreign {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

fn markdown() -> Vec<PathBuf> {
    let mut found = files();
    found.retain(|path| path.extension().is_some_and(|extension| extension == "md"));
    found
}

/// Returns the text of a file, or `None` if it is not text or was deleted since it was listed.
fn read(path: &Path) -> Option<String> {
    fs::read_to_string(root().join(path)).ok()
}

fn dead_links(file: &Path, text: &str) -> Vec<String> {
    let mut anchors_of: BTreeMap<PathBuf, BTreeSet<String>> = BTreeMap::new();
    anchors_of.insert(file.to_owned(), anchors(text));
    let mut dead = Vec::new();
    for link in links(text) {
        let (target, anchor) = link.split_once('#').unwrap_or((&link, ""));
        let path = match target {
            "" => file.to_owned(),
            _ => file.parent().unwrap_or(Path::new("")).join(target),
        };
        let is_markdown = path.extension().is_some_and(|extension| extension == "md");
        let leads_somewhere = match (target, anchor) {
            (_, "") => root().join(&path).exists(),
            _ if is_markdown => anchors_of
                .entry(path.clone())
                .or_insert_with(|| anchors(&read(&path).unwrap_or_default()))
                .contains(anchor),
            _ => root().join(&path).exists(),
        };
        if !leads_somewhere {
            dead.push(format!("{}: {link}", file.display()));
        }
    }
    dead
}

/// Returns the targets of a Markdown text's links that stay inside the project.
fn links(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for line in prose(text) {
        // The odd pieces are between backticks, so they are code.
        let line: String = line.split('`').step_by(2).collect();
        let inline = line.split("](").skip(1).map(|rest| match rest.strip_prefix('<') {
            Some(quoted) => quoted.split('>').next(),
            None => rest.split([')', ' ']).next(),
        });
        let definition = line.split_once("]: ").filter(|_| line.starts_with('[') && !line.starts_with("[^"));
        let definition = definition.and_then(|(_, rest)| rest.split_whitespace().next());
        found.extend(inline.flatten().chain(definition).map(ToOwned::to_owned));
    }
    found.retain(|link| !["https:", "http:", "mailto:"].iter().any(|scheme| link.starts_with(scheme)));
    found
}

/// Returns the anchors that GitHub gives to headings.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for line in prose(text).filter(|line| line.starts_with('#')) {
        let title = line.trim_start_matches('#').trim().to_lowercase();
        let slug: String = title
            .chars()
            .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'))
            .map(|c| if c == ' ' { '-' } else { c })
            .collect();
        let numbered = (1..).map(|n| format!("{slug}-{n}"));
        let free = std::iter::once(slug.clone()).chain(numbered).find(|slug| !found.contains(slug));
        found.extend(free);
    }
    found
}

/// Returns the lines outside of fenced code.
fn prose(text: &str) -> impl Iterator<Item = &str> {
    let mut fenced = false;
    text.lines().filter(move |line| {
        let fence = line.trim_start().starts_with("```");
        fenced ^= fence;
        !fenced && !fence
    })
}

/// A term whose type was renamed would mislead readers.
#[test]
fn the_glossary_is_sorted_and_names_types_that_exist() {
    let text = read(Path::new("docs/glossary.md")).expect("the page is there");
    let rows: Vec<Vec<&str>> = text
        .lines()
        .filter(|line| line.starts_with("| "))
        .map(|line| line.split('|').map(str::trim).collect())
        .collect();
    let terms: Vec<&str> = rows.iter().skip(1).map(|row| row[1]).collect();
    assert!(terms.len() > 30 && terms.is_sorted(), "{terms:?}");
    let sources: Vec<_> = files().into_iter().filter_map(|path| Some((read(&path)?, path))).collect();
    let path = Regex::new(r"`(\w+)(?:::\w+)*::(\w+)`").unwrap();
    for row in &rows[1..] {
        let found = path.captures(row[3]).unwrap_or_else(|| panic!("{} has no type", row[1]));
        let declared = Regex::new(&format!(r"(?m)^pub(\(crate\))? (struct|enum|trait|type) {}\b", &found[2])).unwrap();
        let folder = format!("crates/{}/src", &found[1]);
        let is_there =
            |(text, path): &(String, PathBuf)| path.to_string_lossy().contains(&folder) && declared.is_match(text);
        assert!(sources.iter().any(is_there), "{}: there is no {}", row[1], &found[0]);
    }
}
