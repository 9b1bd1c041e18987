//! The daemon.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    meshd::cli::run_daemon(&meshd::cli::args::MeshdArgs::parse())
}
