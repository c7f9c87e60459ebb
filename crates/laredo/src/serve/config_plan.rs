//! The plan of a reload: the differences between the running configuration and the one that was
//! read, and their effects.

use std::collections::BTreeMap;

use laredo_server::{ConfigChange, ConfigEffect, ListenAddress};

use crate::config::ServerConfig;
use crate::config::server::{AccessConfig, ServedTableConfig};

/// The key of the log level.
const LEVEL: &str = "observability.logging.level";
/// The key of the audit's file, in the block `access`.
const AUDIT_FILE: &str = "audit.file";
/// The text in place of a secret that has changed.
const HIDDEN: &str = "a secret";
/// The keys of a table that concern its clients alone. A key ends here or continues with a dot.
const CLIENT_KEYS: [&str; 6] = [
    "targets[0].grpc.max_clients",
    "targets[0].grpc.port",
    "targets[0].grpc.address",
    "targets[0].client_buffer",
    "targets[0].heartbeat_interval",
    // The server does not read archives yet.
    "targets[0].archive",
];

/// The changes from a running configuration to one that was read.
pub(super) struct ConfigPlan {
    pub(super) changes: Vec<ConfigChange>,
    /// The tables that end, as they run. One that begins again is in `added`, too.
    pub(super) removed: Vec<ServedTableConfig>,
    /// The tables that begin.
    pub(super) added: Vec<ServedTableConfig>,
    /// The tables of which only the limits of clients change.
    pub(super) limited: Vec<ServedTableConfig>,
    /// The running configuration once everything is applied that does not need a restart.
    pub(super) next: ServerConfig,
}

impl ConfigPlan {
    /// Compares two configurations. `is_open` returns true for the ports that the server listens
    /// on. No others can be opened while it runs.
    pub(super) fn new(
        running: &ServerConfig,
        read: &ServerConfig,
        is_open: impl Fn(&ListenAddress, u16) -> bool,
    ) -> ConfigPlan {
        let (changes, removed, added, limited) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let next = ServerConfig { tables: Vec::new(), ..running.clone() };
        let mut plan = ConfigPlan { changes, removed, added, limited, next };
        plan.compare_server(running, read);
        plan.compare_access(running.access.as_ref(), read.access.as_ref());
        for old in running.tables.iter().filter(|old| find(&read.tables, old).is_none()) {
            plan.change(ConfigEffect::TableRemoved, Some(old), KeyChange::default());
            plan.removed.push(old.clone());
        }
        for new in &read.tables {
            let obstacle = obstacle(running, new, &is_open);
            plan.compare_table(find(&running.tables, new), new, obstacle);
        }
        plan
    }

    /// Returns the keys that need a restart, each with its table.
    pub(super) fn restart_keys(&self) -> Vec<String> {
        let keys = self.changes.iter().filter(|change| change.effect == ConfigEffect::NeedsRestart);
        keys.map(|change| match &change.table {
            Some(table) => format!("{} of table {table}", change.key),
            None => change.key.clone(),
        })
        .collect()
    }

    fn compare_server(&mut self, running: &ServerConfig, read: &ServerConfig) {
        let mut keys = differences(running.settings(), read.settings());
        for (name, source) in &read.sources {
            let is_other = running.sources.get(name).is_some_and(|before| before != source);
            keys.extend(hidden_change(&keys, &format!("sources.{name}"), is_other));
        }
        keys.extend(hidden_change(&keys, "credentials", running.credentials != read.credentials));
        for change in keys {
            let effect = if change.key == LEVEL { ConfigEffect::AtOnce } else { ConfigEffect::NeedsRestart };
            self.change(effect, None, change);
        }
        self.next.observability.logging.level = read.observability.logging.level;
    }

    /// Compares the access rules. A server that has some takes all changes at once, except where
    /// its audit is written.
    fn compare_access(&mut self, running: Option<&AccessConfig>, read: Option<&AccessConfig>) {
        let (running, read) = match (running, read) {
            (None, None) => return,
            (Some(running), Some(read)) => (running, read),
            (running, read) => {
                let said = |access: Option<&AccessConfig>| access.map_or_else(String::new, |_| "{ … }".to_owned());
                let change = KeyChange { key: "access".to_owned(), before: said(running), after: said(read) };
                return self.change(ConfigEffect::NeedsRestart, None, change);
            }
        };
        let mut keys = differences(running.settings(), read.settings());
        keys.extend(hidden_change(&keys, "", running != read));
        for change in keys {
            let effect = match change.key == AUDIT_FILE {
                true => ConfigEffect::NeedsRestart,
                false => ConfigEffect::AtOnce,
            };
            let key = format!("access.{}", change.key).trim_end_matches('.').to_owned();
            self.change(effect, None, KeyChange { key, ..change });
        }
        self.next.access = Some(AccessConfig { audit: running.audit.clone(), ..read.clone() });
    }

    /// Compares a table with its running configuration, if it is running. `obstacle` is the key
    /// that needs a restart first.
    fn compare_table(
        &mut self,
        running: Option<&ServedTableConfig>,
        read: &ServedTableConfig,
        obstacle: Option<&'static str>,
    ) {
        let settings = running.map(ServedTableConfig::settings).unwrap_or_default();
        let mut keys = differences(settings, read.settings());
        if let Some(key) = obstacle {
            let blocked = match running {
                Some(_) => keys,
                None => keys.into_iter().filter(|change| change.key == key).collect(),
            };
            for change in blocked {
                self.change(ConfigEffect::NeedsRestart, Some(read), change);
            }
            self.next.tables.extend(running.cloned());
            return;
        }
        self.next.tables.push(read.clone());
        let Some(running) = running else {
            self.change(ConfigEffect::TableAdded, Some(read), KeyChange::default());
            self.added.push(read.clone());
            return;
        };
        keys.extend(hidden_change(&keys, "targets[0]", running != read));
        let begins_again = keys.iter().any(|change| !is_client_key(&change.key));
        match begins_again {
            true => {
                self.removed.push(running.clone());
                self.added.push(read.clone());
            }
            false if running != read => self.limited.push(read.clone()),
            false => {}
        }
        for change in keys {
            let effect = match is_client_key(&change.key) {
                true => ConfigEffect::AtOnce,
                false => ConfigEffect::TableRestarted,
            };
            self.change(effect, Some(read), change);
        }
    }

    fn change(&mut self, effect: ConfigEffect, table: Option<&ServedTableConfig>, change: KeyChange) {
        let KeyChange { key, before, after } = change;
        self.changes.push(ConfigChange {
            effect,
            table: table.map(|table| table.name().to_string()),
            key,
            before,
            after,
        });
    }
}

/// A key whose value differs.
#[derive(Default)]
struct KeyChange {
    key: String,
    before: String,
    after: String,
}

/// Returns the keys whose values differ.
fn differences(running: BTreeMap<String, String>, read: BTreeMap<String, String>) -> Vec<KeyChange> {
    let value = |settings: &BTreeMap<String, String>, key: &String| settings.get(key).cloned().unwrap_or_default();
    let mut keys: Vec<&String> = running.keys().chain(read.keys()).collect();
    keys.sort_unstable();
    keys.dedup();
    let changes = keys.into_iter().map(|key| KeyChange {
        key: key.clone(),
        before: value(&running, key),
        after: value(&read, key),
    });
    changes.filter(|change| change.before != change.after).collect()
}

/// Returns the change of a block that differs although none of its shown keys do: a secret has
/// changed.
fn hidden_change(shown: &[KeyChange], block: &str, is_other: bool) -> Option<KeyChange> {
    let is_shown = shown.iter().any(|change| change.key.starts_with(block));
    let text = || HIDDEN.to_owned();
    (is_other && !is_shown).then(|| KeyChange {
        key: block.to_owned(),
        before: text(),
        after: "another one".to_owned(),
    })
}

/// Returns the key because of which a table cannot be served before a restart, if there is one.
fn obstacle(
    running: &ServerConfig,
    table: &ServedTableConfig,
    is_open: impl Fn(&ListenAddress, u16) -> bool,
) -> Option<&'static str> {
    let port = &table.fanout.grpc;
    if !running.sources.contains_key(&table.source) {
        return Some("source");
    }
    (!is_open(&port.address, port.port)).then_some("targets[0].grpc.port")
}

fn is_client_key(key: &str) -> bool {
    let is_part = |rest: &str| rest.is_empty() || rest.starts_with('.');
    CLIENT_KEYS.iter().any(|known| key.strip_prefix(known).is_some_and(is_part))
}

fn find<'a>(tables: &'a [ServedTableConfig], like: &ServedTableConfig) -> Option<&'a ServedTableConfig> {
    tables.iter().find(|table| (&table.schema, &table.table) == (&like.schema, &like.table))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ConfigLoader;

    const SOURCES: &str = "sources { pg { type = postgresql, connection = \"postgresql://u:one@h/d\" } }";

    /// Loads a configuration of these tables, each with more keys of its target.
    fn config(tables: &[(&str, &str)], extra: &str) -> ServerConfig {
        let table = |(name, keys): &(&str, &str)| {
            format!(
                "{{ source = pg, schema = public, table = {name}, targets = [{{ type = replication-fanout\n{keys} }}] }}"
            )
        };
        let tables = tables.iter().map(table).collect::<Vec<_>>().join(", ");
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("laredo.conf");
        std::fs::write(&file, format!("{SOURCES}\ntables = [{tables}]\n{extra}")).unwrap();
        let loader = ConfigLoader::new([]).file(file).conf_dir(folder.path()).init_dir(folder.path());
        ServerConfig::load(&loader).unwrap_or_else(|report| panic!("{report}"))
    }

    fn plan(running: &ServerConfig, read: &ServerConfig) -> ConfigPlan {
        let ports = running.row_ports();
        ConfigPlan::new(running, read, |address, port| {
            ports.iter().any(|open| open.address.is_same(open.port, address, port))
        })
    }

    fn effects(plan: &ConfigPlan) -> Vec<(ConfigEffect, &str, &str)> {
        plan.changes.iter().map(|c| (c.effect, c.table.as_deref().unwrap_or(""), c.key.as_str())).collect()
    }

    #[test]
    fn an_equal_configuration_changes_nothing() {
        let config = config(&[("a", ""), ("b", "filters = []")], "");
        let plan = plan(&config, &config);
        assert!(plan.changes.is_empty() && plan.next == config);
    }

    #[test]
    fn each_change_has_its_effect() {
        use ConfigEffect::*;
        let running = config(&[("a", ""), ("b", ""), ("c", ""), ("d", "")], "");
        let read = config(
            &[
                ("b", "journal.max_entries = 7"),
                ("c", "max_clients = 3, heartbeat_interval = 1s"),
                ("e", ""),
                ("f", "grpc.port = 4999"),
                ("d", ""),
            ],
            "observability.logging.level = debug\nhealth.http_port = 8099",
        );
        let plan = plan(&running, &read);
        let expected = [
            (NeedsRestart, "", "health.http_port"),
            (AtOnce, "", "observability.logging.level"),
            (TableRemoved, "public.a", ""),
            (TableRestarted, "public.b", "targets[0].journal.max_entries"),
            (AtOnce, "public.c", "targets[0].grpc.max_clients"),
            (AtOnce, "public.c", "targets[0].heartbeat_interval"),
            (TableAdded, "public.e", ""),
            (NeedsRestart, "public.f", "targets[0].grpc.port"),
        ];
        assert_eq!(effects(&plan), expected);
        assert_eq!(plan.restart_keys(), ["health.http_port", "targets[0].grpc.port of table public.f"]);
        let names = |tables: &[ServedTableConfig]| tables.iter().map(|t| t.table.clone()).collect::<Vec<_>>();
        assert_eq!(names(&plan.removed), ["a", "b"]);
        assert_eq!(names(&plan.added), ["b", "e"]);
        assert_eq!(names(&plan.limited), ["c"]);
        assert_eq!(names(&plan.next.tables), ["b", "c", "e", "d"]);
        // Everything but the keys that need a restart is then running.
        let left = super::tests::plan(&plan.next, &read);
        assert_eq!(effects(&left), [expected[0], expected[7]]);
    }

    #[test]
    fn a_secret_that_changes_is_noticed_and_not_shown() {
        let running = config(
            &[("a", "transforms = [{ type = hash, fields = [x], key = \"0123456789abcdef0123456789abcdef\" }]")],
            "",
        );
        let mut read = running.clone();
        read.sources.get_mut("pg").unwrap().connection = crate::config::ConfigSecret::new("postgresql://u:two@h/d");
        let changes = plan(&running, &read).changes;
        assert_eq!((changes[0].effect, changes[0].key.as_str()), (ConfigEffect::NeedsRestart, "sources.pg"));
        assert!(!format!("{changes:?}").contains("two"), "{changes:?}");
        let read = config(
            &[("a", "transforms = [{ type = hash, fields = [x], key = \"1123456789abcdef0123456789abcdef\" }]")],
            "",
        );
        let changed = plan(&running, &read);
        assert_eq!(effects(&changed), [(ConfigEffect::TableRestarted, "public.a", "targets[0]")]);
        assert!(!format!("{:?}", changed.changes).contains("23456789"), "{:?}", changed.changes);
    }

    #[test]
    fn access_rules_change_at_once_but_do_not_appear() {
        let access = |max: u32| format!("access.identities.a {{ certificates = [x], limits.streams = {max} }}");
        let tls = "grpc.tls { enabled = true, cert_path = c, key_path = k, client_ca_path = a }\n";
        let [none, one, two] = [tls.to_owned(), format!("{tls}{}", access(1)), format!("{tls}{}", access(2))]
            .map(|e| config(&[("a", "")], &e));
        assert_eq!(effects(&plan(&one, &two)), [(ConfigEffect::AtOnce, "", "access.identities.a.limits.streams")]);
        assert_eq!(plan(&one, &two).next, two);
        assert_eq!(effects(&plan(&none, &one)), [(ConfigEffect::NeedsRestart, "", "access")]);
        assert_eq!(plan(&none, &one).next, none);
    }
}
