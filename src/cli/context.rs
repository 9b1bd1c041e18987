//! What every command needs: where to write, which configuration, which daemon.

use std::path::{Path, PathBuf};

use super::args::GlobalArgs;
use super::exit::Failure;
use super::output::Output;
use crate::api::Client;
use crate::config::{Config, Files};
use crate::daemon::config_files::{self, ConfigError};
use crate::platform::file;

/// What is true for every command.
#[derive(Clone, Debug)]
pub struct Context {
    /// Where to write.
    pub output: Output,
    /// The daemon's configuration file.
    pub config: PathBuf,
    socket: Option<PathBuf>,
}

impl Context {
    /// Takes the global arguments.
    pub fn new(args: &GlobalArgs) -> Self {
        Context { output: Output::new(args.color, args.json), config: args.config.clone(), socket: args.socket.clone() }
    }

    /// Returns a client of the daemon: at `--socket`, else where the configuration says, else where a configuration there
    /// would put it, so that a reader who may not see the configuration can still see the status.
    ///
    /// # Errors
    /// The configuration is invalid, and there is no socket where it says.
    pub fn client(&self) -> Result<Client, Failure> {
        if let Some(socket) = &self.socket {
            return Ok(Client::new(socket));
        }
        match read_config(&self.config) {
            Ok(config) => Ok(Client::new(config.files.socket)),
            // A daemon that refused a changed configuration goes on with the one before: it is asked all the same.
            Err(failure) if failure.problems.is_some() => match config_files::socket(&self.config) {
                Ok(socket) if socket.exists() => Ok(Client::new(socket)),
                _ => Err(failure),
            },
            Err(_) => Ok(Client::new(Files::beside(&self.config).socket)),
        }
    }

    /// Returns the configuration file of a command that writes to `--dir`, or to the configuration's directory.
    pub fn config_in(&self, directory: Option<&Path>) -> PathBuf {
        directory.map_or_else(|| self.config.clone(), |directory| directory.join("meshd.toml"))
    }
}

/// Reads a configuration with its drop-ins.
///
/// # Errors
/// A file cannot be read, or the whole is invalid: then with every problem.
pub fn read_config(path: &Path) -> Result<Config, Failure> {
    config_files::read(path).map_err(|error| match error {
        ConfigError::File(error) => Failure::from(error),
        ConfigError::Invalid(problems) => Failure::from(problems),
        other => Failure::failed(other.to_string()),
    })
}

/// Reads a public text file.
///
/// # Errors
/// The file cannot be read, is too large or no UTF-8.
pub fn read_text(path: &Path, limit: u64) -> Result<String, Failure> {
    let bytes = file::read(&file::resolve(path)?, limit)?;
    String::from_utf8(bytes).map_err(|_| Failure::failed(format!("{} is no UTF-8 text", path.display())))
}

#[cfg(test)]
mod tests {
    use super::super::args::Color;
    use super::super::exit::Exit;
    use super::*;

    fn context(config: &Path, socket: Option<&Path>) -> Context {
        Context::new(&GlobalArgs {
            config: config.to_path_buf(),
            socket: socket.map(Path::to_path_buf),
            color: Color::Never,
            json: false,
        })
    }

    #[test]
    fn the_socket_is_the_argument_s_then_the_file_s_then_the_default() {
        let directory = tempfile::tempdir().unwrap();
        let config = directory.path().join("meshd.toml");
        assert_eq!(context(&config, None).client().unwrap().socket(), directory.path().join("meshd.sock"));
        let example = include_str!("../../examples/meshd.toml").replace("/run/meshd/meshd.sock", "/tmp/other.sock");
        std::fs::write(&config, example).unwrap();
        assert_eq!(context(&config, None).client().unwrap().socket(), Path::new("/tmp/other.sock"));
        assert_eq!(context(&config, Some(Path::new("/x"))).client().unwrap().socket(), Path::new("/x"));
        std::fs::write(&config, "nod = 1").unwrap();
        assert_eq!(context(&config, None).client().unwrap_err().exit, Exit::InvalidConfig);
        assert_eq!(context(&config, Some(Path::new("/x"))).client().unwrap().socket(), Path::new("/x"));
    }

    #[test]
    fn a_running_daemon_is_found_however_wrong_its_configuration_is_by_now() {
        let directory = tempfile::tempdir().unwrap();
        let (config, socket) = (directory.path().join("meshd.toml"), directory.path().join("other.sock"));
        for wrong in ["[files]\nsocket = \"other.sock\"\nsockett = 1\n", "[files]\nsocket = \"other.sock\"\n[mesh\n"] {
            std::fs::write(&config, wrong).unwrap();
            assert_eq!(context(&config, None).client().unwrap_err().exit, Exit::InvalidConfig);
            std::fs::write(&socket, "").unwrap();
            assert_eq!(context(&config, None).client().unwrap().socket(), socket);
            std::fs::remove_file(&socket).unwrap();
        }
    }
}
