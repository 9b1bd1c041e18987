//! The arguments of both binaries, and everything `meshctl` does: one file per command.
#![forbid(unsafe_code)]

mod alerts;
pub mod args;
mod authority;
mod bugreport;
mod check;
mod context;
mod daemon;
mod dbcost;
mod doctor;
mod drain;
mod events;
mod exit;
mod forward;
mod gateways;
mod generate;
mod grant;
mod history;
mod init;
mod invite;
mod join;
mod ledger;
mod lockdown;
mod matrix;
mod members;
mod names;
mod new_files;
mod output;
mod passphrase;
mod past;
mod paths;
mod ping;
mod plan;
mod policy;
mod quantity;
mod request;
mod restart;
mod revoke;
mod schema;
mod sign;
mod sparkline;
mod status;
mod table;
mod top;
mod trust;
mod underlay;
mod wait;
mod when;
mod wireguard;

use std::process::ExitCode;

use args::{Command, MeshctlArgs};
use clap::CommandFactory;
use context::Context;

use crate::platform::name_service;

pub use daemon::run_daemon;
pub use exit::{Exit, Failure};

/// Runs `meshctl`.
pub fn run(args: MeshctlArgs) -> ExitCode {
    name_service::settle();
    let context = Context::new(&args.global);
    let Some(command) = args.command else {
        context.output.help(&MeshctlArgs::command().render_help());
        return Exit::Usage.into();
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result = match runtime {
        Ok(runtime) => runtime.block_on(dispatch(&context, &command)),
        Err(error) => Err(Failure::failed(format!("cannot start: {error}"))),
    };
    match result {
        Ok(()) => Exit::Good.into(),
        Err(failure) => {
            context.output.failure(&failure);
            failure.exit.into()
        }
    }
}

async fn dispatch(context: &Context, command: &Command) -> Result<(), Failure> {
    match command {
        Command::Init(args) => init::run(context, args),
        Command::Invite(args) => invite::run(context, args).await,
        Command::Join(args) => join::run(context, args).await,
        Command::Request(args) => request::run(context, args),
        Command::Sign(args) => sign::run(context, args),
        Command::Revoke(args) => revoke::run(context, args).await,
        Command::Authority(args) => trust::run(context, args).await,
        Command::Renew => members::renew(context).await,
        Command::Plan(args) => plan::run(context, args).await,
        Command::Reload => plan::reload(context).await,
        Command::Restart(args) => restart::run(context, args).await,
        Command::Status(args) => status::run(context, args).await,
        Command::Ping(args) => ping::run(context, args).await,
        Command::Alerts(args) => alerts::run(context, args).await,
        Command::Matrix(args) => matrix::run(context, args).await,
        Command::History(args) => history::run(context, args).await,
        Command::Events(args) => events::run(context, args).await,
        Command::Top(args) => top::run(context, args).await,
        Command::Dbcost(args) => dbcost::run(context, args).await,
        Command::Paths(args) => paths::run(context, args).await,
        Command::Ledger(args) => ledger::run(context, args).await,
        Command::Gateways(args) => gateways::run(context, args).await,
        Command::Drain(args) => drain::run(context, args).await,
        Command::Policy(args) => policy::run(context, args).await,
        Command::Lockdown(args) => lockdown::run(context, args).await,
        Command::Forward(args) => forward::run(context, args).await,
        Command::Names(args) => names::run(context, args).await,
        Command::Wait(args) => wait::run(context, args).await,
        Command::Doctor(args) => doctor::run(context, args).await,
        Command::Bugreport(args) => bugreport::run(context, args).await,
        Command::Members => members::run(context).await,
        Command::Wireguard(args) => wireguard::run(context, args).await,
        Command::Check(args) => check::run(context, args),
        Command::Version => members::version(context).await,
        Command::Completions { shell } => generate::completions(context, *shell),
        Command::Gen { directory } => generate::run(context, directory),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use clap::Parser;

    use super::*;
    use crate::api::Server;
    use crate::api::fake::{Fake, healthy_status, ping_lines, troubled_status};
    use crate::api::{PingLine, Status};

    /// Runs commands against a daemon in this state; returns how each ends.
    async fn exits(status: Status, ping: Vec<PingLine>, commands: &[&str]) -> Vec<Exit> {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("meshd.sock");
        let server = Server::bind(&socket, None).unwrap();
        let serving = tokio::spawn(server.serve(Arc::new(Fake { status, ping }), std::future::pending()));
        let mut exits = Vec::new();
        for command in commands {
            // JSON, so that nothing but the answers is written.
            let global = ["meshctl", "--json", "--socket", socket.to_str().unwrap()];
            let args = MeshctlArgs::parse_from(global.into_iter().chain(command.split(' ')));
            let result = dispatch(&Context::new(&args.global), &args.command.unwrap()).await;
            exits.push(result.map_or_else(|failure| failure.exit, |()| Exit::Good));
        }
        serving.abort();
        exits
    }

    #[tokio::test]
    async fn commands_end_as_the_manual_says() {
        let commands = [
            ("status", Exit::Good),
            ("status --check", Exit::Failed),
            ("status --check db-par-17", Exit::Good),
            ("status db-par-22", Exit::Good),
            ("status db-par-99x", Exit::NotFound),
            ("ping db-par-17 --interval 10ms", Exit::Good),
            ("ping nobody", Exit::NotFound),
            ("alerts", Exit::Good),
            ("alerts test ops", Exit::Good),
            ("alerts test nobody", Exit::NotFound),
            ("ping nobody --underlay", Exit::NotFound),
            ("history db-par-17 --since 90d --step 1d", Exit::Good),
            ("history nobody", Exit::NotFound),
            ("events db-par-17 --since 2026-11-20", Exit::Good),
            ("members", Exit::Good),
            ("top", Exit::Usage),
            ("dbcost db-par-17 --queries 90", Exit::Good),
            ("dbcost nobody", Exit::NotFound),
            ("matrix", Exit::Good),
            ("paths", Exit::Good),
            ("paths db1", Exit::Good),
            ("paths nobody", Exit::NotFound),
            ("ledger", Exit::Good),
            ("ledger db-old --since 7d", Exit::Good),
            ("ledger db-old --check", Exit::Failed),
            ("ledger web9 --check", Exit::Good),
            ("ledger nobody", Exit::NotFound),
            ("gateways", Exit::Good),
            ("drain", Exit::Good),
            ("drain web1 --undo", Exit::Good),
            ("drain web9", Exit::NotFound),
            ("drain --wait 0s", Exit::Failed),
            ("policy", Exit::Good),
            ("policy denied", Exit::Good),
            ("policy check web1 db1 tcp/3306", Exit::Good),
            ("policy check web1 db1 tcp/22", Exit::Failed),
            ("lockdown", Exit::Good),
            ("lockdown trial --for 5s", Exit::Good),
            ("lockdown confirm", Exit::Failed),
            ("lockdown off", Exit::Good),
            ("policy check web1 db1 tcp/3306 --trace", Exit::Good),
            ("forward", Exit::Good),
            ("forward orders", Exit::Good),
            ("forward nobody", Exit::NotFound),
            ("forward switch orders --to db2 --close", Exit::Good),
            ("forward switch orders --back --wait 0s", Exit::Failed),
            ("forward switch nobody --back", Exit::NotFound),
            ("names", Exit::Good),
            ("names orders", Exit::Good),
            ("names nowhere", Exit::NotFound),
            ("wait", Exit::Good),
            ("wait db-par-17", Exit::Good),
            ("wait nobody --timeout 0s", Exit::Failed),
            ("matrix --by site --loss", Exit::Good),
            ("version", Exit::Good),
            ("wireguard phone", Exit::Good),
            ("wireguard nobody", Exit::NotFound),
            ("wireguard --new tablet --address 10.78.0.3", Exit::Good),
            ("wireguard --new phone --address 10.78.0.3", Exit::Failed),
            ("status phone", Exit::Good),
            ("status --check phone", Exit::Good),
            ("authority", Exit::Good),
            ("renew", Exit::Failed),
            ("restart", Exit::Failed),
            ("plan", Exit::Good),
            ("plan --detailed-exitcode", Exit::RestartNeeded),
            ("reload", Exit::Failed),
            ("invite web9", Exit::Good),
            ("invite --list", Exit::Good),
            ("invite --revoke db1", Exit::Good),
            ("invite --revoke nobody", Exit::NotFound),
            ("revoke old1 --yes", Exit::Good),
        ];
        let texts = commands.map(|(command, _)| command);
        let expected = commands.map(|(_, exit)| exit);
        assert_eq!(exits(troubled_status(), ping_lines(), &texts).await, expected);
        assert_eq!(exits(healthy_status(), ping_lines(), &["status --check"]).await, [Exit::Good]);
    }

    #[tokio::test]
    async fn a_ping_without_any_answer_fails() {
        let mut lines = ping_lines();
        if let Some(PingLine::Summary { received, .. }) = lines.last_mut() {
            *received = 0;
        }
        assert_eq!(exits(healthy_status(), lines, &["ping db-par-17"]).await, [Exit::Failed]);
    }

    #[test]
    fn refusals_of_the_daemon_become_exit_codes() {
        use crate::api::{ApiError, ClientError, ErrorKind};
        let exit = |kind| Failure::from(ClientError::Refused(ApiError::new(kind, "x"))).exit;
        assert_eq!(exit(ErrorKind::Forbidden), Exit::Forbidden);
        assert_eq!(exit(ErrorKind::NotFound), Exit::NotFound);
        assert_eq!(exit(ErrorKind::Busy), Exit::NotReachable);
        assert_eq!(exit(ErrorKind::Conflict), Exit::Failed);
        let forbidden = ClientError::Forbidden { socket: "/run/meshd/meshd.sock".into() };
        assert_eq!(Failure::from(forbidden).exit, Exit::Forbidden);
    }
}
