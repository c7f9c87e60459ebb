//! The fuzz target of configurations.

mod configuration {
    use laredo_fuzz::{FuzzTarget, outcome};

    use super::super::{ConfigLoader, ServerConfig, SnapshotterConfig};

    const SEEDS: [&[u8]; 5] = [
        include_bytes!("../../tests/fixtures/config/every-key.conf"),
        include_bytes!("../../tests/fixtures/config/server-full.conf"),
        include_bytes!("../../tests/fixtures/config/snapshotter-every-key.conf"),
        include_bytes!("../../tests/fixtures/config/snapshotter-tables.conf"),
        include_bytes!("../../tests/fixtures/config/snapshotter-minimal.conf"),
    ];

    /// Loads a text as the configuration of each program. A valid one is printed as another valid
    /// one, and each report can be shown.
    #[test]
    fn any_configuration_is_reported_or_printed_as_a_valid_one() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (file, empty) = (folder.path().join("laredo.conf"), folder.path().join("empty"));
        std::fs::create_dir(&empty).expect("a folder");
        let load = |text: &[u8]| {
            std::fs::write(&file, text).map_err(outcome)?;
            let loader = ConfigLoader::new([]).conf_dir(&empty).init_dir(&empty).file(&file);
            let server = ServerConfig::load(&loader).map(|config| (0, config.to_hocon()));
            let loaded = server.or_else(|report| {
                assert!(report.problem_count() > 0 && !report.render(false).is_empty());
                SnapshotterConfig::load(&loader).map(|config| (1, config.to_hocon()))
            });
            loaded.map_err(outcome)
        };
        let words =
            ["${a}", "${?a}", "+=", "\"\"\"", "${sources.", "null", "[{", "}]", "include \"laredo.conf\"", "://u:p@"];
        FuzzTarget::new("configuration", SEEDS.map(<[u8]>::to_vec).to_vec()).dictionary(&words).run(|input| {
            let (program, printed) = load(input)?;
            // Secrets are printed as a mask, which is no valid value everywhere.
            if let Ok((again, printed_again)) = load(printed.as_bytes()) {
                assert_eq!((again, printed_again), (program, printed));
            }
            Ok(program)
        });
    }
}
