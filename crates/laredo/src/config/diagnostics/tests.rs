use super::*;

#[test]
fn columns_count_characters() {
    let mut sources = ConfigTexts::default();
    let source = sources.add("x.conf".to_owned(), "a = 1\nb { \"ü\" = 1, wrong = 2 }\n");
    let place = ConfigPlace::File { source, line: 2, column: 14 };
    let report =
        ConfigReport::new(sources, vec![ConfigProblem::new(&place, &KeyPath::default().key("b"), "no").help("so")]);
    assert_eq!(report.to_string(), "x.conf:2:14: b: no (so)");
    let shown = report.render(false);
    assert!(shown.contains("[x.conf:2:14]"), "{shown}");
    assert!(shown.contains("help: so"), "{shown}");
}
