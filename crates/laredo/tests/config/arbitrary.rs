//! No input makes the loader panic, and every report can be shown.

use laredo::config::{ServerConfig, SnapshotterConfig};
use proptest::prelude::*;

use super::{ConfigFolder, fixture};

fn load_bytes(bytes: &[u8], setting: &str) {
    let folder = ConfigFolder::new(&[]);
    folder.write("laredo.conf", bytes);
    let loader = folder
        .loader_with(&[
            ("LAREDO_SOURCES_A_CONNECTION", setting),
            ("LAREDO_TABLES", setting),
            ("LAREDO_SNAPSHOTTER_SOURCE_SERVER", setting),
            ("LAREDO_SNAPSHOTTER_FORMATS_DIFF", setting),
        ])
        .file(folder.path("laredo.conf"))
        .set(setting);
    let shown = [
        ServerConfig::load(&loader).map(|config| config.to_hocon()),
        SnapshotterConfig::load(&loader).map(|config| config.to_hocon() + &config.warnings().concat()),
    ];
    for report in shown.into_iter().filter_map(Result::err) {
        assert!(report.problem_count() > 0);
        assert!(!report.to_string().is_empty());
        assert!(!report.render(false).is_empty());
    }
}

/// Generates pieces of the language and of laredo's keys, which get much further than random bytes.
fn soup() -> impl Strategy<Value = String> {
    let piece = prop::sample::select(vec![
        "sources",
        "tables",
        "targets",
        "grpc",
        "journal",
        "port",
        "a",
        "type",
        "pg",
        "connection",
        "store",
        "local",
        "store_config",
        "filters",
        "snapshot",
        "replication-fanout",
        "snapshotter",
        "source",
        "server",
        "\"h:1\"",
        "tls",
        "destinations",
        "path",
        "formats",
        "jsonl",
        "credentials",
        "base",
        ".",
        "..",
        " ",
        " = ",
        " : ",
        " += ",
        "{",
        "}",
        "[",
        "]",
        ",",
        "\n",
        "\"",
        "\"\"\"",
        "\\",
        "${a}",
        "${?a}",
        "${",
        "${sources.a}",
        "#",
        "//",
        "include ",
        "include \"laredo.conf\"",
        "required(",
        "file(",
        ")",
        "null",
        "true",
        "-1",
        "1e999",
        "5m",
        "4GiB",
        "ü",
        "\u{feff}",
        "\u{0}",
        "$",
        "+",
        "'",
        "://u:p@",
    ]);
    prop::collection::vec(piece, 0..60).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes_are_no_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), setting in any::<String>()) {
        load_bytes(&bytes, &setting);
    }

    #[test]
    fn random_configuration_is_no_panic(text in soup(), setting in soup()) {
        load_bytes(text.as_bytes(), &setting);
    }

    /// Replaces a piece of a valid file, to cause errors deep inside.
    #[test]
    fn a_mutilated_configuration_is_no_panic(
        of in prop::sample::select(vec!["every-key.conf", "snapshotter-every-key.conf"]),
        at in 0.0..1.0f64,
        length in 0usize..30,
        piece in soup(),
    ) {
        let text = std::fs::read_to_string(fixture(of)).expect("a fixture");
        let chars: Vec<char> = text.chars().collect();
        let start = (chars.len() as f64 * at) as usize;
        let end = (start + length).min(chars.len());
        let mutilated: String = chars[..start].iter().copied().chain(piece.chars()).chain(chars[end..].iter().copied()).collect();
        load_bytes(mutilated.as_bytes(), "grpc.port=1");
    }
}

#[test]
fn a_long_chain_of_substitutions_is_no_stack_overflow() {
    for length in [999, 2_000] {
        let chain: String = (0..length).map(|i| format!("a{i} = ${{a{}}}\n", i + 1)).collect();
        load_bytes(chain.as_bytes(), &format!("a{length}=1"));
    }
}

#[test]
fn deep_nesting_is_no_stack_overflow() {
    for opening in ["{", "[", "a{", "a=["] {
        load_bytes(opening.repeat(100_000).as_bytes(), &opening.repeat(1_000));
    }
    let setting = format!("{}=1", vec!["a"; 100_000].join("."));
    load_bytes(b"", &setting);
    let indexed = format!("{}=1", vec!["0"; 100_000].join("."));
    load_bytes(b"", &indexed);
}
