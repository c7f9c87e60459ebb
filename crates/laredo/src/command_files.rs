//! The files that a package installs with each program: completions for shells, and pages of the
//! manual. They are made from the definitions of the program's arguments.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::{Args, Command};
use clap_complete::Shell;

/// Arguments of the command `completions`.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub(crate) struct CompletionsArguments {
    /// The shell.
    shell: Shell,
}

/// Arguments of the command `man`.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub(crate) struct ManualArguments {
    /// The folder, which is created if it is missing.
    #[arg(value_name = "FOLDER")]
    pub(crate) folder: PathBuf,
}

impl CompletionsArguments {
    /// Prints the completions of a program.
    ///
    /// # Errors
    /// When standard output cannot be written.
    pub(crate) fn print(&self, mut program: Command) -> io::Result<()> {
        let name = program.get_name().to_owned();
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut program, name, &mut script);
        let mut out = io::stdout().lock();
        out.write_all(&script)?;
        out.flush()
    }
}

impl ManualArguments {
    /// Writes the pages of a program and of its commands: `laredo.1`, `laredo-tail.1`.
    ///
    /// # Errors
    /// When the folder or a file cannot be written.
    pub(crate) fn write(&self, program: Command) -> io::Result<()> {
        write_pages(program, &self.folder)
    }
}

fn write_pages(program: Command, folder: &Path) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    clap_mangen::generate_to(program, folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program() -> Command {
        Command::new("tool").about("Does it.").subcommand(Command::new("look").about("Looks."))
    }

    #[test]
    fn each_command_has_a_page() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("share/man1");
        write_pages(program(), &folder).unwrap();
        let page = fs::read_to_string(folder.join("tool-look.1")).unwrap();
        assert!(page.contains(".TH") && page.contains("Looks."), "{page}");
        assert!(folder.join("tool.1").is_file());
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_an_error() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(write_pages(program(), file.path()).is_err());
    }
}
