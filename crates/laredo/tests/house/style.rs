//! The style of comments and documents, as far as a program can check it. CONTRIBUTING.md has the
//! rules.

use regex::Regex;

use crate::{files, read};

/// The maximum width of comments and paragraphs, in columns.
const WIDTH_MAX: usize = 100;

/// The maximum number of words in a sentence of a document.
const SENTENCE_WORDS_MAX: usize = 25;

/// Words that no doc comment begins with: its first sentence names its subject.
const FIRST_WORDS: &[&str] = &[
    "What", "How", "Whether", "Where", "It", "Its", "One", "Of", "As", "Who", "Whoever", "Nobody", "Somebody",
    "Nothing",
];

/// Words and phrases that have a more usual one.
const UNUSUAL: &str =
    r"(?i)\b(nobody|somebody|anybody|whoever|anew|told|tells|of no use|goes on|go on|stands for|beside)\b";

/// A line of a comment or of a document.
struct ProseLine<'t> {
    number: usize,
    whole: &'t str,
    /// The text without markers and code.
    text: String,
    /// True for the first line of a doc comment.
    is_summary: bool,
}

impl ProseLine<'_> {
    fn is_plain(&self, unusual: &Regex) -> bool {
        let first = self.text.split(|c: char| !c.is_alphanumeric()).find(|word| !word.is_empty());
        let begins_well = !self.is_summary || first.is_none_or(|first| !FIRST_WORDS.contains(&first));
        // The rows of a table cannot be wrapped.
        let fits = self.whole.chars().count() <= WIDTH_MAX || self.whole.starts_with('|');
        begins_well && fits && !unusual.is_match(&self.text)
    }
}

#[test]
fn comments_and_documents_are_plain() {
    let unusual = Regex::new(UNUSUAL).unwrap();
    let mut wrong = Vec::new();
    for path in files() {
        let Some(text) = read(&path) else { continue };
        let lines = match path.extension().and_then(|extension| extension.to_str()) {
            Some("rs") => comments(&text),
            // A decision is a record of its time.
            Some("md") if !path.starts_with("docs/adr") => paragraphs(&text),
            _ => continue,
        };
        let wrong_ones = lines.iter().filter(|line| !line.is_plain(&unusual));
        wrong.extend(wrong_ones.map(|line| format!("{}:{}: {}", path.display(), line.number, line.whole.trim())));
    }
    assert!(wrong.is_empty(), "{} lines are not in the style of CONTRIBUTING.md:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn functions_have_plain_names() {
    let unusual = Regex::new(UNUSUAL).unwrap();
    let mut wrong = Vec::new();
    for path in files() {
        let Some(text) = read(&path).filter(|_| path.extension().is_some_and(|extension| extension == "rs")) else {
            continue;
        };
        let names = function_names(&text).into_iter().filter(|name| unusual.is_match(&name.replace('_', " ")));
        wrong.extend(names.map(|name| format!("{}: {name}", path.display())));
    }
    assert!(
        wrong.is_empty(),
        "{} names have words for which a more usual one exists:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}

fn function_names(code: &str) -> Vec<String> {
    let function = Regex::new(r"(?m)^\s*(?:pub(?:\([a-z]+\))? )?(?:const )?(?:async )?fn ([a-z0-9_]+)").unwrap();
    function.captures_iter(code).map(|found| found[1].to_owned()).collect()
}

#[test]
fn names_of_functions_are_found() {
    let code = "fn a_b() {}\n    async fn c(x: fn(u8)) {}\npub(crate) const fn d<T>() {}\n// fn e() {}\n";
    assert_eq!(function_names(code), ["a_b", "c", "d"]);
}

#[test]
fn what_is_not_plain_is_found() {
    let unusual = Regex::new(UNUSUAL).unwrap();
    let wrong = |lines: Vec<ProseLine<'_>>| {
        lines.iter().filter(|line| !line.is_plain(&unusual)).map(|line| line.number).collect::<Vec<_>>()
    };
    let code = "/// Whether it is.\n/// Where it goes on.\n/// It may.\nlet told = \"anew\";\n// It is plain.\n//! Its name.\n";
    assert_eq!(wrong(comments(code)), [1, 2, 6]);
    let wide = "x".repeat(WIDTH_MAX + 1);
    let document = format!("It is plain.\n{wide}\n|{wide}\n`nobody` nobody\n```\nnobody\n```\nNobody.\n");
    assert_eq!(wrong(paragraphs(&document)), [2, 4, 8]);
}

#[test]
fn messages_are_plain() {
    let unusual = Regex::new(UNUSUAL).unwrap();
    let mut wrong = Vec::new();
    for path in files() {
        let name = path.to_string_lossy();
        let is_program = name.ends_with(".rs") && name.contains("/src/") && !name.contains("tests");
        let Some(text) = read(&path).filter(|_| is_program) else { continue };
        let unusual_ones = messages(&text).into_iter().filter(|message| unusual.is_match(message));
        wrong.extend(unusual_ones.map(|message| format!("{name}: {message}")));
    }
    assert!(wrong.is_empty(), "{} messages use unusual words:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn messages_are_found() {
    let code = "/// A \"first told\" one.\nlet a = \"told \\\"once\\\" only\";\nlet b = '\"'; // \"no more\"\n\
                let c = \"told\";\nwarn!(\n    \"a b \\\n     c\"\n);\n#[cfg(test)]\nmod tests {\n    let d = \"d e\";\n}\n";
    assert_eq!(messages(code), [r#"told \"once\" only"#, "a b \\\n     c"]);
}

#[test]
fn sentences_of_documents_are_short() {
    let mut wrong = Vec::new();
    for path in files() {
        let is_document = path.extension().is_some_and(|extension| extension == "md");
        let Some(text) = read(&path).filter(|_| is_document) else { continue };
        let long = sentences(&text).into_iter().filter(|sentence| words(sentence) > SENTENCE_WORDS_MAX);
        wrong.extend(long.map(|sentence| format!("{}: {sentence}", path.display())));
    }
    assert!(
        wrong.is_empty(),
        "{} sentences have more than {SENTENCE_WORDS_MAX} words:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}

#[test]
fn sentences_are_separated() {
    let document = "# A heading of five words\n\nOne, `a b. c` two. Is it\nthree? See [the four](x.md):\n\n* five (six.) Seven\n\
                    * eight\n\n```\nnot this. one\n```\n| nor | this. One |\n<!-- Nor this. -->\n";
    let found = sentences(document);
    assert_eq!(found, ["One, x two.", "Is it three?", "See the four:", "* five (six.)", "Seven", "* eight"]);
    assert_eq!(words("One, x two."), 3);
}

fn words(sentence: &str) -> usize {
    sentence.split_whitespace().count()
}

/// Returns the sentences of a Markdown document. Headings, tables and code have none, and a link
/// counts as its text.
fn sentences(document: &str) -> Vec<String> {
    let replaced =
        |text: String, pattern: &str, by: &str| Regex::new(pattern).unwrap().replace_all(&text, by).into_owned();
    let text = replaced(document.to_owned(), r"(?s)```.*?```|<!--.*?-->", "\n\n");
    let text = replaced(text, r"\[([^\]]*)\]\([^)]*\)", "$1");
    let text = replaced(text, "`[^`]*`", "x");
    // Each paragraph, item, heading and row begins after an empty line.
    let text = replaced(text, r"\n[ \t]*(#|\||[*-] |\d+\. )", "\n\n$1");
    let paragraphs = text.split("\n\n").map(|paragraph| paragraph.split_whitespace().collect::<Vec<_>>().join(" "));
    let prose: Vec<String> = paragraphs.filter(|paragraph| !paragraph.starts_with(['#', '|'])).collect();
    let lines = replaced(prose.join("\n"), r#"([.!?:][)"*_]?) "#, "$1\n");
    lines.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect()
}

/// Returns the string literals of a source file that have more than one word, without its tests.
fn messages(source: &str) -> Vec<String> {
    let code = source.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
    let code: Vec<&str> = code.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
    // The first two alternatives keep a quote in a character or a comment from opening a literal.
    let literal = Regex::new(r#"'\\?"'|// .*|"((?:[^"\\]|\\(?s:.))*)""#).unwrap();
    let code = code.join("\n");
    let texts = literal.captures_iter(&code).filter_map(|found| found.get(1)).map(|text| text.as_str().to_owned());
    texts.filter(|text| text.contains(' ')).collect()
}

/// Returns the lines of a source file that are comments.
fn comments(source: &str) -> Vec<ProseLine<'_>> {
    let mut lines = Vec::new();
    let mut before = "";
    for (index, whole) in source.lines().enumerate() {
        let comment = whole.trim_start();
        let marker = ["///", "//!", "//"].into_iter().find(|marker| comment.starts_with(marker)).unwrap_or_default();
        if !marker.is_empty() {
            let (text, is_summary) = (comment[marker.len()..].to_owned(), marker.len() == 3 && before != marker);
            lines.push(ProseLine { number: index + 1, whole, text, is_summary });
        }
        before = marker;
    }
    lines
}

/// Returns the lines of a Markdown document that are not code.
fn paragraphs(document: &str) -> Vec<ProseLine<'_>> {
    let (mut lines, mut is_code) = (Vec::new(), false);
    for (index, whole) in document.lines().enumerate() {
        let is_fence = whole.trim_start().starts_with("```");
        is_code ^= is_fence;
        if !is_code && !is_fence {
            // The odd pieces are between backticks.
            let text = whole.split('`').step_by(2).collect();
            lines.push(ProseLine { number: index + 1, whole, text, is_summary: false });
        }
    }
    lines
}
