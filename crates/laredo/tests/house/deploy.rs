//! The files in `deploy/` and the programs agree: configurations load, and flags, variables, ports,
//! paths, metrics and versions exist.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use clap::Parser;
use laredo::config::{ConfigLoader, ServerConfig, SnapshotterConfig};
use laredo::serve::ServerArguments;
use laredo::snapshotter::SnapshotterArguments;
use laredo_server::ServerTimeLimits;
use regex::Regex;

use super::{files, read, root};

/// The configurations of the server. Those with two files are merged as the chart does it.
const SERVER: &[&[&str]] = &[
    &["deploy/systemd/laredo.conf"],
    &["deploy/containers/compose/laredo.conf"],
    &["deploy/kubernetes/laredo.conf"],
    &["deploy/helm/laredo/files/laredo.conf", "deploy/helm/laredo/examples/laredo.conf"],
];

/// The configurations of the snapshotter.
const SNAPSHOTTER: &[&str] = &[
    "deploy/systemd/snapshotter.conf",
    "deploy/containers/compose/snapshotter.conf",
    "deploy/kubernetes/snapshotter.conf",
    "deploy/helm/laredo/examples/snapshotter.conf",
];

/// The variables that the manifests set for the configurations.
const POD: [(&str, &str); 3] = [("POD_INDEX", "1"), ("POD_NAMESPACE", "data"), ("PODS_SERVICE", "laredo-pods")];

/// Variables that set no key.
const OTHER_VARIABLES: &[&str] = &["LAREDO_CONFIG", "LAREDO_SNAPSHOTTER_CONFIG", "LAREDO_OAM"];

/// The time that a server needs to stop after its drain and the last status of its clients.
const STOP_MARGIN_S: u64 = 20;

#[test]
fn every_configuration_in_deploy_loads() {
    for files in SERVER {
        let config = load_server(files, &POD);
        assert_eq!(config.sources.len(), 1, "{files:?}");
    }
    for file in SNAPSHOTTER {
        let (loader, _folder) = loader(&[file], &POD);
        let config = SnapshotterConfig::load(&loader);
        let config = config.unwrap_or_else(|report| panic!("{file}\n{}", report.render(false)));
        assert_eq!(config.warnings(), [""; 0], "{file}");
    }
    let named: BTreeSet<&str> = SERVER.iter().copied().flatten().chain(SNAPSHOTTER).copied().collect();
    let found: Vec<String> =
        deployed().into_iter().map(|(path, _)| path).filter(|path| path.ends_with(".conf")).collect();
    assert_eq!(found.iter().map(String::as_str).collect::<BTreeSet<_>>(), named, "name each configuration here");
}

#[test]
fn the_chart_s_configuration_is_merged_with_the_operator_s() {
    let config = load_server(SERVER[3], &POD);
    assert_eq!(config.allowed_hosts, ["*.data", "*.svc", "*.laredo-pods"]);
    assert_eq!(config.grpc.address.to_string(), "unix:/run/laredo/operators.sock");
    assert!(config.to_hocon().contains("laredo_1"), "each pod has a slot of its own");
}

#[test]
fn the_programs_take_every_argument_in_deploy() {
    let mut taken = 0;
    for (path, text) in deployed() {
        for words in commands(&path, &text) {
            let parsed = match words[0].rsplit('/').next() {
                Some("laredo-server") => ServerArguments::try_parse_from(&words).err(),
                Some("laredo-snapshotter") => SnapshotterArguments::try_parse_from(&words).err(),
                other => panic!("{path}: {other:?} is not a program of laredo"),
            };
            if let Some(error) = parsed {
                panic!("{path}: {words:?}\n{error}");
            }
            taken += 1;
        }
    }
    assert_eq!(taken, 9, "the patterns find all commands");
}

#[test]
fn every_stop_leaves_time_for_the_drain() {
    let last_status = ServerTimeLimits::default().stop.as_secs();
    let pairs = [
        ("deploy/systemd/laredo-server.service", r"--drain-grace (\d+)s", r"TimeoutStopSec=(\d+)s"),
        ("deploy/containers/compose.yaml", r"--drain-grace=(\d+)s", r"stop_grace_period: (\d+)s"),
        ("deploy/kubernetes/server.yaml", r"--drain-grace=(\d+)s", r"terminationGracePeriodSeconds: (\d+)"),
    ];
    for (path, drain, stop) in pairs {
        let text = read(Path::new(path)).unwrap();
        let (drain, stop) = (number(drain, &text), number(stop, &text));
        assert!(stop >= drain + last_status + STOP_MARGIN_S, "{path}: {drain} s of drain, and {stop} s in all");
    }
    let chart = read(Path::new("deploy/helm/laredo/templates/server-statefulset.yaml")).unwrap();
    let added = number(r"terminationGracePeriodSeconds: \{\{ add \$server.drainGraceSeconds (\d+) \}\}", &chart);
    assert!(added >= last_status + STOP_MARGIN_S, "the chart adds {added} s");
}

#[test]
fn every_variable_in_deploy_is_known() {
    let variable = Regex::new(r"\bLAREDO_[A-Z0-9_]+").unwrap();
    let mut found = BTreeSet::new();
    for (_, text) in deployed().into_iter().chain(pages()) {
        found.extend(variable.find_iter(&text).map(|name| name.as_str().to_owned()));
    }
    assert!(OTHER_VARIABLES.iter().all(|name| found.contains(*name)), "{found:?}");
    for name in found.iter().filter(|name| !OTHER_VARIABLES.contains(&name.as_str())) {
        let (loader, _folder) = loader(SERVER[1], &[(name, "1")]);
        // The value may be wrong, and the name not.
        let report = ServerConfig::load(&loader).err().map(|report| report.render(false)).unwrap_or_default();
        assert!(!report.contains("sets no known key"), "{report}");
    }
}

#[test]
fn every_port_and_path_in_deploy_is_the_programs_own() {
    let (config, snapshotter) = (load_server(SERVER[1], &[]), SnapshotterConfig::default());
    let clients = config.tables[0].fanout.grpc.port;
    let server = [config.grpc.port, clients, config.health.http_port, config.observability.metrics.port];
    let ports: BTreeSet<String> =
        server.into_iter().chain([snapshotter.http.port]).map(|port| port.to_string()).collect();
    let health = [&config.health.liveness_path, &config.health.readiness_path, &config.observability.metrics.path];
    let port =
        Regex::new(r#"(?m)(?:\bport|containerPort): (\d+)|EXPOSE ([\d ]+)|"(?:server|snapshotter|laredo):(\d+)""#)
            .unwrap();
    let path = Regex::new(r"\bpath: (/(?:health|metrics)[^ ,}\n]*)|metrics_path: (\S+)").unwrap();
    let (mut ports_found, mut paths_found) = (0, 0);
    for (file, text) in deployed() {
        for group in port.captures_iter(&text).flat_map(|found| found.iter().skip(1).flatten().collect::<Vec<_>>()) {
            for word in group.as_str().split(' ') {
                assert!(ports.contains(word), "{file}: port {word}");
                ports_found += 1;
            }
        }
        for group in path.captures_iter(&text).flat_map(|found| found.iter().skip(1).flatten().collect::<Vec<_>>()) {
            assert!(health.iter().any(|path| *path == group.as_str()), "{file}: path {}", group.as_str());
            paths_found += 1;
        }
    }
    assert!(ports_found > 20 && paths_found > 10, "{ports_found} ports, {paths_found} paths");
}

#[test]
fn every_metric_in_deploy_exists() {
    let metric = Regex::new(r"\b(?:laredo|snapshotter)_[a-z_]+").unwrap();
    let sources: Vec<String> = files()
        .iter()
        .filter(|path| path.starts_with("crates") && path.components().any(|part| part.as_os_str() == "src"))
        .filter_map(|path| read(path))
        .collect();
    let monitoring: String = deployed()
        .into_iter()
        .filter(|(path, _)| path.starts_with("deploy/monitoring/"))
        .map(|(_, text)| text)
        .collect();
    let named: BTreeSet<&str> = metric.find_iter(&monitoring).map(|name| name.as_str()).collect();
    // The definition of a histogram does not name its parts.
    let is_defined = |name: &str| sources.iter().any(|source| source.contains(&format!("\"{name}\"")));
    let parts = ["_bucket", "_sum", "_count"];
    let is_part = |name: &str| parts.iter().any(|part| name.strip_suffix(part).is_some_and(is_defined));
    let is_missing = |name: &&&str| !is_defined(name) && !is_part(name);
    let missing: Vec<_> = named.iter().filter(is_missing).collect();
    assert!(named.len() > 30 && missing.is_empty(), "{missing:?} of {}", named.len());
}

#[test]
fn versions_and_users_in_deploy_agree() {
    let toolchain = first(r#"channel = "(.+)""#, &read(Path::new("rust-toolchain.toml")).unwrap());
    let image = read(Path::new("deploy/containers/Dockerfile")).unwrap();
    assert_eq!(first("(?m)^ARG RUST=(.+)$", &image), toolchain);
    let version = Regex::new(
        r"(?:^|\n)(?:appVersion|version): (\d\S+)|newTag: (\S+)|laredo-(?:server|snapshotter):(\d[0-9.]*[0-9])",
    )
    .unwrap();
    let user = Regex::new(r"(?:runAs(?:User|Group)|fsGroup): (\d+)|USER (\d+:\d+)|\buser=(\d+)").unwrap();
    let (mut versions, mut users) = (0, BTreeSet::new());
    for (file, text) in deployed().into_iter().chain(pages()) {
        for found in version.captures_iter(&text) {
            let found = found.iter().skip(1).flatten().next().unwrap().as_str();
            assert_eq!(found, env!("CARGO_PKG_VERSION"), "{file}");
            versions += 1;
        }
        let found = user.captures_iter(&text).flat_map(|found| found.iter().skip(1).flatten().collect::<Vec<_>>());
        users.extend(found.flat_map(|group| group.as_str().split(':')).map(str::to_owned));
    }
    assert!(versions >= 6, "{versions}");
    assert_eq!(users.len(), 1, "{users:?}");
}

/// Systemd passes the password under the name that the configuration reads, and the folders of the
/// configuration are those that the unit makes.
#[test]
fn the_unit_provides_what_its_configuration_names() {
    let unit = read(Path::new("deploy/systemd/laredo-server.service")).unwrap();
    let config = read(Path::new("deploy/systemd/laredo.conf")).unwrap();
    let credential = first("(?m)^LoadCredential=([^:]+):", &unit);
    assert_eq!(
        first("password_file = \"(.+)\"", &config),
        format!("/run/credentials/laredo-server.service/{credential}")
    );
    let folder = |key: &str| first(&format!("(?m)^{key}=([^ \n]+)"), &unit);
    assert!(
        first("store_config.path = \"(.+)\"", &config).starts_with(&format!("/var/lib/{}/", folder("StateDirectory")))
    );
    assert!(first("unix:(/[^\"]+)", &config).starts_with(&format!("/run/{}/", folder("RuntimeDirectory"))));
}

/// The folders that the package makes have the owners and modes with which the units make them.
#[test]
fn the_folders_of_the_package_are_those_of_the_units() {
    let folders = read(Path::new("deploy/systemd/laredo.tmpfiles")).unwrap();
    for unit in ["deploy/systemd/laredo-server.service", "deploy/systemd/laredo-snapshotter.service"] {
        let text = read(Path::new(unit)).unwrap();
        let of = |key: &str| first(&format!("(?m)^{key}=(.+)$"), &text);
        for folder in of("StateDirectory").split(' ') {
            let line = format!("d /var/lib/{folder} {} {} {} -", of("StateDirectoryMode"), of("User"), of("Group"));
            assert!(folders.lines().any(|found| found == line), "{unit}: {line}");
        }
    }
}

/// The package names files that exist, and all that systemd needs.
#[test]
fn the_package_has_every_file_of_systemd() {
    let manifest = read(Path::new("crates/laredo/Cargo.toml")).unwrap();
    let asset = Regex::new(r#"(?m)^  \["\.\./\.\./([^"]+)", "#).unwrap();
    let assets: Vec<&str> = asset.captures_iter(&manifest).map(|found| found.extract::<1>().1[0]).collect();
    for path in assets.iter().filter(|path| !path.starts_with("target/")) {
        let fixed = path.split('*').next().unwrap_or_default();
        assert!(root().join(fixed).exists(), "{path}");
    }
    for (path, _) in deployed().into_iter().filter(|(path, _)| path.starts_with("deploy/systemd/")) {
        // ./dev writes the units with the path of the package's programs.
        let is_packed = assets.contains(&path.as_str()) || path.ends_with(".service");
        assert!(is_packed, "{path} is no asset in crates/laredo/Cargo.toml");
    }
    assert!(assets.len() > 10, "{assets:?}");
}

/// Returns the text files in `deploy/` with their paths.
fn deployed() -> Vec<(String, String)> {
    let files = files().into_iter().filter(|path| path.starts_with("deploy"));
    files.filter_map(|path| Some((path.to_string_lossy().into_owned(), read(&path)?))).collect()
}

/// Returns the pages about `deploy/`.
fn pages() -> Vec<(String, String)> {
    ["docs/install.md", "docs/kubernetes.md"].map(|page| (page.to_owned(), read(Path::new(page)).unwrap())).into()
}

/// Returns a loader of files that sees these variables alone. All but the first file are in a
/// configuration folder, which the loader needs.
fn loader(files: &[&str], variables: &[(&str, &str)]) -> (ConfigLoader, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    for name in ["conf.d", "init.d"] {
        fs::create_dir(folder.path().join(name)).unwrap();
    }
    for (i, file) in files.iter().enumerate().skip(1) {
        fs::copy(root().join(file), folder.path().join(format!("conf.d/{i}.conf"))).unwrap();
    }
    let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    let loader = ConfigLoader::new(variables).file(root().join(files[0]));
    (loader.conf_dir(folder.path().join("conf.d")).init_dir(folder.path().join("init.d")), folder)
}

fn load_server(files: &[&str], variables: &[(&str, &str)]) -> ServerConfig {
    let (loader, _folder) = loader(files, variables);
    ServerConfig::load(&loader).unwrap_or_else(|report| panic!("{files:?}\n{}", report.render(false)))
}

/// Returns the commands of laredo's programs in a file, as words. The values of the chart are
/// numbers.
fn commands(path: &str, text: &str) -> Vec<Vec<String>> {
    let split = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let values = Regex::new(r"\{\{[^}]*\}\}").unwrap();
    let mut found = Vec::new();
    for line in text.lines().map(str::trim) {
        if let Some(command) = line.strip_prefix("ExecStart=") {
            found.push(split(command));
        }
        let json = line.strip_prefix("ENTRYPOINT ").or_else(|| Some(line.split_once(" CMD ")?.1));
        if let Some(json) = json.filter(|_| path.ends_with("Dockerfile")) {
            found.push(serde_json::from_str(json).expect("a command is a list in JSON"));
        }
        // Those of other programs have other flags.
        let list = line.strip_prefix("args: [").or_else(|| line.strip_prefix("command: [--drain"));
        if let Some(list) = list {
            let list = if line.starts_with("args") { list.to_owned() } else { format!("--drain{list}") };
            let list = values.replace_all(list.trim_end_matches(']'), "15");
            let arguments = list.split(", ").map(str::to_owned);
            found.push(["laredo-server".to_owned()].into_iter().chain(arguments).collect());
        }
    }
    found
}

/// Returns the first group of the pattern's first match.
fn first(pattern: &str, text: &str) -> String {
    let found = Regex::new(pattern).unwrap().captures(text).unwrap_or_else(|| panic!("nothing is like {pattern}"));
    found[1].to_owned()
}

fn number(pattern: &str, text: &str) -> u64 {
    first(pattern, text).parse().unwrap()
}
