//! The command.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    meshd::cli::run(meshd::cli::args::MeshctlArgs::parse())
}
