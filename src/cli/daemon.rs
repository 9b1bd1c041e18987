//! `meshd`'s own command line.

use std::path::Path;
use std::process::ExitCode;

use super::args::{GlobalArgs, MeshdArgs};
use super::context::{Context, read_config};
use super::exit::{Exit, Failure};
use crate::config::Config;
use crate::daemon::{self, StartError};
use crate::platform::{handover, name_service};

/// Runs `meshd`: checks the configuration, cleans up, or serves until it is told to stop.
pub fn run_daemon(args: &MeshdArgs) -> ExitCode {
    name_service::settle();
    let global = GlobalArgs { config: args.config.clone(), socket: None, color: args.color, json: false };
    let context = Context::new(&global);
    let result = if args.cleanup {
        cleanup(&context)
    } else {
        takes_over(args.handover).and_then(|()| read_config(&args.config)).and_then(|config| {
            match (args.check_config, args.handover) {
                (true, Some(_)) => fits_in(&config),
                (true, None) => Ok(()),
                (false, _) => serve(config, &args.config),
            }
        })
    };
    match result {
        Ok(()) => Exit::Good.into(),
        Err(failure) => {
            context.output.failure(&failure);
            failure.exit.into()
        }
    }
}

/// Whether this program can take over from one that hands over in the form `asked`.
fn takes_over(asked: Option<u8>) -> Result<(), Failure> {
    match asked {
        Some(form) if form != handover::VERSION => {
            let advice = "stop the daemon and start it again: `systemctl restart meshd`";
            Err(Failure::failed(format!(
                "it takes over in form {} only, not in form {form}; {advice}",
                handover::VERSION
            )))
        }
        _ => Ok(()),
    }
}

/// Whether a program with this configuration can do its work in the process of the daemon that asks.
fn fits_in(config: &Config) -> Result<(), Failure> {
    daemon::withheld(config).map_or(Ok(()), |why| Err(Failure::failed(why)))
}

fn serve(config: Config, path: &Path) -> Result<(), Failure> {
    Ok(daemon::run(config, path)?)
}

fn cleanup(context: &Context) -> Result<(), Failure> {
    let (routes, tables) = daemon::cleanup()?;
    context.output.note(&format!("{routes} routes and devices, and {tables} tables of meshd removed"));
    Ok(())
}

impl From<StartError> for Failure {
    fn from(error: StartError) -> Self {
        match error {
            StartError::File(error) => Failure::from(error),
            other => Failure::failed(other.to_string()),
        }
    }
}
