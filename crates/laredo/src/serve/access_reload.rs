//! The access rules while the server runs: they are read again when the configuration changes, and
//! when it is reloaded.

use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::Arc;

use laredo_server::{AccessOptions, AccessRules};
use tokio::sync::{Notify, watch};
use tokio::time::{MissedTickBehavior, interval};

use super::access::read_access;
use super::jwt_keys::JwtKeySources;
use crate::config::{ConfigReport, ServerConfig};
use crate::program::READ_INTERVAL;

/// Loads the configuration in the same way as at the start.
pub(super) type ConfigReload = Arc<dyn Fn() -> Result<ServerConfig, ConfigReport> + Send + Sync>;

/// The access rules of the server, and the configuration that they come from.
pub(super) struct AccessReloader {
    /// The rules and what they were last set to; `None` for a server without access rules.
    rules: Option<(AccessRules, AccessOptions)>,
    reload: ConfigReload,
    key_sources: Arc<JwtKeySources>,
    /// The running configuration.
    running: watch::Receiver<Arc<ServerConfig>>,
    /// The result of the last reading, so that the same one is logged once.
    last: ConfigReading,
}

/// The configuration with the rules in it, or its problems.
type ConfigReading = Result<(ServerConfig, Option<AccessOptions>), Vec<String>>;

/// The settings that no reading of access rules changes: everything without the rules, and the file
/// of the audit.
type StartSettings = (ServerConfig, Option<PathBuf>);

impl AccessReloader {
    /// Returns the rules of a server that has started with the running configuration.
    pub(super) fn new(
        running: watch::Receiver<Arc<ServerConfig>>,
        rules: Option<(AccessRules, AccessOptions)>,
        reload: ConfigReload,
        key_sources: JwtKeySources,
    ) -> AccessReloader {
        let options = rules.as_ref().map(|(_, options)| options.clone());
        let key_sources = Arc::new(key_sources);
        let config = ServerConfig::clone(&running.borrow());
        AccessReloader { rules, reload, key_sources, running, last: Ok((config, options)) }
    }

    /// Reads the rules again when the configuration changes, and at each notification. Without
    /// access rules, it reads the configuration at notifications alone. Never returns.
    pub(super) async fn keep_current(mut self, notified: Arc<Notify>) -> Infallible {
        let mut ticks = interval(READ_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick(), if self.rules.is_some() => {}
                () = notified.notified() => {}
            }
            let (reload, key_sources) = (self.reload.clone(), self.key_sources.clone());
            // Files may be on a slow or a remote disk.
            let reading = tokio::task::spawn_blocking(move || read(&*reload, &key_sources)).await;
            self.update(reading.unwrap_or_else(|panic| Err(vec![format!("reading the configuration: {panic}")])));
        }
    }

    /// Applies the rules of a reading, if it differs from the last one.
    fn update(&mut self, reading: ConfigReading) {
        if reading == self.last {
            return;
        }
        match &reading {
            Ok((config, options)) => {
                self.apply(options.as_ref());
                if start_settings(config) != start_settings(&self.running.borrow()) {
                    tracing::warn!(
                        event = "config_change_postponed",
                        "the configuration has changes outside the access rules; `laredo config diff` shows them, and \
                         `laredo config reload` or the next start applies them"
                    );
                }
            }
            Err(problems) => problems.iter().for_each(|problem| {
                tracing::error!(
                    event = "access_rules_refused",
                    "{problem}; the access rules remain as they were until the configuration is right"
                );
            }),
        }
        self.last = reading;
    }

    fn apply(&mut self, options: Option<&AccessOptions>) {
        match (&mut self.rules, options) {
            (Some((_, current)), Some(options)) if current == options => {}
            (Some((rules, current)), Some(options)) => {
                rules.replace(options.clone());
                *current = options.clone();
                let identities = options.identities.len();
                tracing::info!(event = "access_rules_replaced", identities, "the access rules were replaced");
            }
            (Some(_), None) => tracing::warn!(
                event = "access_block_removed",
                "the configuration has no block `access` any more; the rules remain until the server starts again"
            ),
            (None, Some(_)) => tracing::warn!(
                event = "access_block_added",
                "the configuration has a block `access` now; everyone may do everything until the server starts again"
            ),
            (None, None) => {}
        }
    }
}

fn read(reload: &dyn Fn() -> Result<ServerConfig, ConfigReport>, key_sources: &JwtKeySources) -> ConfigReading {
    let config = reload().map_err(|report| report.to_string().lines().map(str::to_owned).collect::<Vec<_>>())?;
    let options = read_access(&config, key_sources)?;
    Ok((config, options))
}

fn start_settings(config: &ServerConfig) -> StartSettings {
    let audit_file = config.access.as_ref().and_then(|access| access.audit.file.clone());
    (ServerConfig { access: None, ..config.clone() }, audit_file)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use laredo_core::CommitTime;
    use laredo_server::TokenHash;

    use super::*;
    use crate::config::ConfigLoader;

    const SOURCE: &str = "sources { pg { type = postgresql, connection = \"postgresql://u@h/d\" } }
        tables = [{ source = pg, schema = public, table = t, targets = [{ type = replication-fanout }] }]\n";

    /// Returns a reloader that has started with the file of a folder.
    fn reloader(folder: &Path) -> AccessReloader {
        let loader = ConfigLoader::new([]).file(folder.join("laredo.conf")).conf_dir(folder).init_dir(folder);
        let reload: ConfigReload = Arc::new(move || ServerConfig::load(&loader));
        let (key_sources, _) = JwtKeySources::new();
        let (config, options) = read(&*reload, &key_sources).unwrap();
        let rules = options.map(|options| (AccessRules::new(options.clone(), Arc::new(|| CommitTime(0))), options));
        AccessReloader::new(watch::channel(Arc::new(config)).1, rules, reload, key_sources)
    }

    /// Reads the configuration again. Returns the hashes of the rules that then apply.
    fn hashes_after_reading(reloader: &mut AccessReloader) -> Vec<TokenHash> {
        reloader.update(read(&*reloader.reload, &reloader.key_sources));
        let options = reloader.rules.iter().map(|(_, options)| options);
        options.flat_map(|options| &options.identities).flat_map(|i| &i.tokens).map(|token| token.hash).collect()
    }

    fn write_access(folder: &Path, access: &str) {
        std::fs::write(folder.join("laredo.conf"), format!("{SOURCE}{access}")).unwrap();
    }

    #[test]
    fn the_rules_are_those_of_the_last_right_configuration() {
        let folder = tempfile::tempdir().unwrap();
        let write = |access: &str| write_access(folder.path(), access);
        let [one, two] = ["one", "two"].map(TokenHash::of);
        let of = |token: TokenHash| format!("access {{ identities {{ a {{ tokens = [{{ sha256 = {token} }}] }} }} }}");
        write(&of(one));
        let mut reloader = reloader(folder.path());
        assert_eq!(hashes_after_reading(&mut reloader), [one]);
        write(&of(two));
        assert_eq!(hashes_after_reading(&mut reloader), [two]);
        for wrong in [&of(one).replace("tokens", "tokns")[..], &of(one)[1..], "access {}", ""] {
            write(wrong);
            assert_eq!(hashes_after_reading(&mut reloader), [two], "{wrong}");
        }
        let problems = {
            write("access { identities { a { } } }");
            read(&*reloader.reload, &reloader.key_sources).unwrap_err()
        };
        assert!(problems[0].contains("laredo.conf:3:"), "the error has its file and line: {problems:?}");
        write(&of(one));
        assert_eq!(hashes_after_reading(&mut reloader), [one]);
        // Another key that is wrong keeps the rules, too. One that is right does not change them.
        write(&format!("{}\ngrpc.prot = 1", of(two)));
        assert_eq!(hashes_after_reading(&mut reloader), [one]);
        write(&format!("{}\ngrpc.port = 1", of(two)));
        assert_eq!(hashes_after_reading(&mut reloader), [two]);
    }

    #[test]
    fn a_block_that_appears_does_not_change_a_running_server() {
        let folder = tempfile::tempdir().unwrap();
        write_access(folder.path(), "");
        let mut reloader = reloader(folder.path());
        let hash = TokenHash::of("one");
        write_access(folder.path(), &format!("access.identities.a.tokens = [{{ sha256 = {hash} }}]"));
        assert!(hashes_after_reading(&mut reloader).is_empty() && reloader.rules.is_none());
    }

    #[test]
    fn files_of_hashes_are_read_each_time() {
        let folder = tempfile::tempdir().unwrap();
        let [one, two, three] = ["one", "two", "three"].map(TokenHash::of);
        let file = folder.path().join("hashes");
        write_access(
            folder.path(),
            &format!(
                "access.identities {{ a {{ token_hashes_file = \"{}\" }}, b {{ tokens = [{{ sha256 = {three} }}] }} }}",
                file.display()
            ),
        );
        std::fs::write(&file, one.to_string()).unwrap();
        let mut reloader = reloader(folder.path());
        std::fs::write(&file, format!("{one}\n{two}\n")).unwrap();
        assert_eq!(hashes_after_reading(&mut reloader), [one, two, three]);
        for (text, problem) in [
            (format!("{two}\nno hash\n"), "hashes:2: it is not 64 hexadecimal digits"),
            (format!("{two}\n{three}\n"), "access.identities: a and b have the same token; give each its own"),
        ] {
            std::fs::write(&file, &text).unwrap();
            assert_eq!(hashes_after_reading(&mut reloader), [one, two, three], "{text}");
            let problems = reloader.last.clone().unwrap_err();
            assert!(problems[0].contains(problem), "{problems:?}");
        }
        std::fs::remove_file(&file).unwrap();
        assert_eq!(hashes_after_reading(&mut reloader), [one, two, three]);
        std::fs::write(&file, two.to_string()).unwrap();
        assert_eq!(hashes_after_reading(&mut reloader), [two, three]);
    }
}
