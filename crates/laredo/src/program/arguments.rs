//! Command-line arguments that all programs share.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::command_files::{CompletionsArguments, ManualArguments};
use crate::config::ConfigLoader;

/// The place of the configuration, and its check.
#[derive(Debug, Args)]
pub(crate) struct ConfigArguments {
    #[command(flatten)]
    place: ConfigPlaceArguments,
    /// Check the configuration and exit.
    #[arg(long)]
    pub(super) check: bool,
}

/// The place of the configuration.
#[derive(Debug, Args)]
pub(crate) struct ConfigPlaceArguments {
    /// The configuration file (HOCON).
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// A folder of *.conf files that are merged over it by name [default: /etc/laredo/conf.d].
    #[arg(long, global = true, value_name = "FOLDER")]
    conf_dir: Option<PathBuf>,
    /// Another such folder, merged last [default: /docker-entrypoint-init.d].
    #[arg(long, global = true, value_name = "FOLDER")]
    init_dir: Option<PathBuf>,
    /// Sets one key, by its whole path, over files and environment. May be repeated.
    #[arg(long, global = true, value_name = "KEY=VALUE")]
    set: Vec<String>,
}

/// Commands other than running.
#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub(crate) enum ProgramCommand {
    /// Check the configuration and exit, as `--check` does.
    Validate,
    /// Print the effective configuration, secrets masked.
    Config,
    /// Check whether the program that runs on this machine with this configuration is ready: exit
    /// code 0 if it is.
    Healthcheck(HealthcheckArguments),
    /// Print the completions of this program for a shell.
    Completions(CompletionsArguments),
    /// Write the pages of the manual, for this program and its commands, to a folder.
    Man(ManualArguments),
    /// Print the version.
    Version,
}

/// The arguments of a health check.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
pub(crate) struct HealthcheckArguments {
    /// A file with the token of an observer, for a server whose health is not for everyone. The
    /// variable LAREDO_TOKEN may hold the token instead.
    #[arg(long, value_name = "FILE")]
    pub(super) token_file: Option<PathBuf>,
}

impl ConfigArguments {
    /// Returns a loader of the layers that the arguments name, and of the process's environment.
    pub(crate) fn loader(&self) -> ConfigLoader {
        self.place.loader()
    }
}

impl ConfigPlaceArguments {
    /// Returns a loader of the layers that the arguments name, and of the process's environment.
    pub(crate) fn loader(&self) -> ConfigLoader {
        let mut loader = ConfigLoader::from_process();
        if let Some(file) = &self.config {
            loader = loader.file(file);
        }
        if let Some(folder) = &self.conf_dir {
            loader = loader.conf_dir(folder);
        }
        if let Some(folder) = &self.init_dir {
            loader = loader.init_dir(folder);
        }
        self.set.iter().fold(loader, |loader, assignment| loader.set(assignment))
    }
}
