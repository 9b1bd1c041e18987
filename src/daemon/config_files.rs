//! The files of a configuration: `meshd.toml`, and `conf.d/*.toml` beside it.

use std::path::{Path, PathBuf};

use crate::config::{Config, Layer, Problems, directory_of};
use crate::platform::file::{self, FileError};

/// Bytes of one file at most; the parser has the same limit for all of them.
const LIMIT: u64 = 256 * 1024;

/// The directory of drop-ins, beside the main file.
const DROP_INS: &str = "conf.d";

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// A file is no text.
    #[error("{} is no UTF-8 text", .0.display())]
    NotText(PathBuf),
    /// There are too many drop-ins.
    #[error("{} holds {count} files; at most {} can be one configuration", directory.display(), Layer::LIMIT - 1)]
    TooMany {
        /// The directory.
        directory: PathBuf,
        /// How many it holds.
        count: usize,
    },
    /// They say something wrong.
    #[error("{0}")]
    Invalid(Problems),
}

/// Returns the files that are the configuration at `config`: that file, then the drop-ins by name.
///
/// # Errors
/// The directory of drop-ins cannot be read, or holds too many.
pub fn paths(config: &Path) -> Result<Vec<PathBuf>, ConfigError> {
    let directory = directory_of(config).join(DROP_INS);
    let mut drop_ins = file::list(&directory, "toml").or_else(|error| match error.is_missing() {
        true => Ok(Vec::new()),
        false => Err(error),
    })?;
    if drop_ins.len() >= Layer::LIMIT {
        return Err(ConfigError::TooMany { directory, count: drop_ins.len() });
    }
    drop_ins.insert(0, config.to_path_buf());
    Ok(drop_ins)
}

/// Reads a configuration with its drop-ins.
///
/// # Errors
/// A file cannot be read, or the whole is invalid: then with every problem.
pub fn read(config: &Path) -> Result<Config, ConfigError> {
    Config::parse_layers(&layers(&texts(config)?)).map_err(ConfigError::Invalid)
}

/// Finds the socket of the daemon that a configuration is for, however much else is wrong with it.
///
/// # Errors
/// A file cannot be read.
pub fn socket(config: &Path) -> Result<PathBuf, ConfigError> {
    Ok(Config::files_of(&layers(&texts(config)?)).socket)
}

fn texts(config: &Path) -> Result<Vec<(PathBuf, String)>, ConfigError> {
    let mut texts = Vec::new();
    for path in paths(config)? {
        // A file may be a link, as into a store of generations; what it leads to must still be a regular file.
        let bytes = file::read(&file::resolve(&path)?, LIMIT)?;
        let text = String::from_utf8(bytes).map_err(|_| ConfigError::NotText(path.clone()))?;
        texts.push((path, text));
    }
    Ok(texts)
}

fn layers(texts: &[(PathBuf, String)]) -> Vec<Layer<'_>> {
    texts.iter().map(|(path, text)| Layer { path, text }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn drop_ins_are_read_by_name_and_errors_name_their_file() {
        let directory = tempfile::tempdir().unwrap();
        let (main, drop_ins) = (directory.path().join("meshd.toml"), directory.path().join("conf.d"));
        fs::write(&main, include_str!("../../examples/meshd.toml")).unwrap();
        assert_eq!(paths(&main).unwrap(), std::slice::from_ref(&main));
        fs::create_dir(&drop_ins).unwrap();
        fs::write(drop_ins.join("20-late.toml"), "[log]\nlevel = \"warn\"\n").unwrap();
        fs::write(drop_ins.join("10-early.toml"), "[log]\nlevel = \"debug\"\n[interface]\nmtu = 1400\n").unwrap();
        for ignored in ["30-other.toml.bak", ".hidden.toml", "README"] {
            fs::write(drop_ins.join(ignored), "rubbish").unwrap();
        }
        let config = read(&main).unwrap();
        assert_eq!((config.log.level, config.interface.mtu), (crate::config::Level::Warn, 1400));
        fs::write(drop_ins.join("10-early.toml"), "\n[interface]\nmtu = 14\n").unwrap();
        let told = read(&main).unwrap_err().to_string();
        assert!(told.contains("conf.d/10-early.toml:3:7: interface.mtu: found the number 14"), "{told}");
        fs::write(drop_ins.join("10-early.toml"), [0xff]).unwrap();
        assert!(read(&main).unwrap_err().to_string().contains("10-early.toml is no UTF-8 text"));
        for number in 0..Layer::LIMIT {
            fs::write(drop_ins.join(format!("{number}.toml")), "").unwrap();
        }
        assert!(read(&main).unwrap_err().to_string().contains("at most 63"));
    }
}
