//! Where the lab keeps its files: below the build directory, never anywhere else but one short link in the temporary
//! directory for Unix sockets, whose paths may not exceed 107 bytes.

use std::env;
use std::path::{Path, PathBuf};

use super::error::{Context, Error, Result};

/// Returns the build directory: the nearest ancestor of the running program that cargo marked with CACHEDIR.TAG.
///
/// # Errors
/// Where the program does not run from a build directory.
pub fn target() -> Result<PathBuf> {
    let exe = env::current_exe().context("find the running program")?;
    exe.ancestors()
        .find(|dir| dir.join("CACHEDIR.TAG").is_file())
        .map(Path::to_path_buf)
        .ok_or_else(|| Error::failed(format!("{} is not below a cargo build directory", exe.display())))
}

/// Returns the lab's own directory, `lab/` below the build directory.
///
/// # Errors
/// As [`target`].
pub fn lab() -> Result<PathBuf> {
    Ok(target()?.join("lab"))
}

/// Returns a program built by the same cargo run as the running test or example, such as `meshd`.
///
/// # Errors
/// NOT RUN where it was not built.
pub fn binary(name: &str) -> Result<PathBuf> {
    let exe = env::current_exe().context("find the running program")?;
    // Tests lie in <profile>/deps, examples in <profile>/examples, programs in <profile>.
    let found = exe.ancestors().skip(1).take(2).map(|dir| dir.join(name)).find(|path| path.is_file());
    found.ok_or_else(|| Error::not_run(format!("the program {name} is not built beside {}", exe.display())))
}
