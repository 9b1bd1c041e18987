//! The arguments of both binaries.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use ipnet::{IpNet, Ipv4Net};

use super::events::EventsArgs;
use super::forward::ForwardArgs;
use super::grant::GrantArgs;
use super::paths::PathsArgs;
use super::policy::PolicyArgs;
use crate::config::{DEFAULT_PATH, duration};
use crate::identity::NodeName;

/// When output is coloured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Color {
    /// On a terminal, unless NO_COLOR is set.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// The daemon.
#[derive(Debug, Parser)]
#[command(
    name = "meshd",
    version,
    about = "Joins this host to a mesh: one encrypted private network between servers on the public internet",
    after_help = "Examples:\n  meshd                              run with /etc/meshd/meshd.toml\n  \
                  meshd --config /srv/mesh/meshd.toml\n  meshd --check-config               read the configuration and say what is wrong\n  \
                  meshd --cleanup                    remove interface, addresses and routes a crash left behind\n\n\
                  Signals: HUP reloads the configuration, TERM and INT stop.\n\
                  Everyday work is done with meshctl."
)]
pub struct MeshdArgs {
    /// The configuration file.
    #[arg(long, short, value_name = "FILE", env = "MESHD_CONFIG", default_value = DEFAULT_PATH)]
    pub config: PathBuf,
    /// Reads the configuration, says what is wrong, and exits: 0 good, 6 invalid.
    #[arg(long, conflicts_with = "cleanup")]
    pub check_config: bool,
    /// With --check-config, whether this program takes over from a running one that hands over in this form.
    #[arg(long, hide = true, value_name = "VERSION", requires = "check_config")]
    pub handover: Option<u8>,
    /// Removes what a crashed or stopped daemon left in the kernel, and exits.
    #[arg(long)]
    pub cleanup: bool,
    /// When log output is coloured.
    #[arg(long, value_name = "WHEN", default_value = "auto")]
    pub color: Color,
}

/// The command.
#[derive(Debug, Parser)]
#[command(
    name = "meshctl",
    version,
    about = "Runs and watches a mesh: one encrypted private network between servers on the public internet",
    disable_help_subcommand = true,
    after_help = "Examples:\n  meshctl init --mesh example --overlay 10.77.0.0/16 --node web1 --endpoint 203.0.113.5:7655\n  \
                  meshctl invite web2                print a token; on web2: meshctl join TOKEN\n  \
                  meshctl status                     the links of this node, trouble first\n  meshctl ping web2\n\n\
                  Exit codes: 0 good, 1 failed or degraded, 2 wrong usage, 3 daemon not reachable, 4 no such peer or key,\n\
                  5 not permitted, 6 invalid configuration; 7 and 8 are those of meshctl plan."
)]
pub struct MeshctlArgs {
    /// What is true for every command.
    #[command(flatten)]
    pub global: GlobalArgs,
    /// What to do; nothing shows the help.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// What is true for every command.
#[derive(Clone, Debug, Args)]
pub struct GlobalArgs {
    /// The daemon's configuration file.
    // No `-c`: to fingers that know ping, `meshctl ping db1 -c 3` means a count.
    #[arg(long, value_name = "FILE", env = "MESHD_CONFIG", default_value = DEFAULT_PATH, global = true)]
    pub config: PathBuf,
    /// The daemon's socket; the configuration names it otherwise.
    #[arg(long, value_name = "PATH", env = "MESHD_SOCKET", global = true)]
    pub socket: Option<PathBuf>,
    /// When output is coloured.
    #[arg(long, value_name = "WHEN", default_value = "auto", global = true)]
    pub color: Color,
    /// Prints JSON with `"schema": 1`, for programs.
    #[arg(long, global = true)]
    pub json: bool,
}

/// meshctl's commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Starts a new mesh on this host: authority, keys, certificate and configuration.
    Init(InitArgs),
    /// Makes a one-line token with which a new host joins, or lists and revokes such tokens.
    Invite(InviteArgs),
    /// Joins this host to a mesh with a token.
    Join(JoinArgs),
    /// Makes this host's keys and prints a request for a certificate.
    Request(RequestArgs),
    /// Signs a request and prints the certificate.
    Sign(SignArgs),
    /// Takes a node out of the mesh for good.
    Revoke(RevokeArgs),
    /// Shows who rests on which authority; makes another one, and certifies everybody by it.
    Authority(super::trust::TrustArgs),
    /// Renews this node's certificate now.
    #[command(after_help = "Example:\n  meshctl renew")]
    Renew,
    /// Says what the changed configuration would do to the running daemon, and changes nothing.
    Plan(super::plan::PlanArgs),
    /// Has the running daemon take its changed configuration over, or nothing of it.
    #[command(after_help = "Examples:\n  meshctl reload\n  meshctl check && meshctl reload\n\n\
                            Does what meshctl plan says and tells it; ends with 1 where it is refused, with the reason, and everything goes\n\
                            on as it was. `systemctl reload meshd` runs this; HUP does the same, with the log as its answer.")]
    Reload,
    /// Restarts the daemon in its process, device and port left open: after an upgrade, or a change that needs it.
    Restart(super::restart::RestartArgs),
    /// Shows this node's links, trouble first.
    Status(StatusArgs),
    /// Measures the link to a node through its tunnel.
    Ping(PingArgs),
    /// Shows the alerts that fire or are about to, and how their receivers do; tries a receiver.
    Alerts(AlertsArgs),
    /// Shows the latency between all nodes, as each of them says.
    Matrix(super::matrix::MatrixArgs),
    /// Shows what the link to a node was like, up to years ago.
    History(super::history::HistoryArgs),
    /// Shows what happened.
    Events(EventsArgs),
    /// Watches the links live, the worst first.
    Top(super::top::TopArgs),
    /// Tells what a link costs a page whose database queries go one after the other.
    Dbcost(super::dbcost::DbcostArgs),
    /// Shows every path to a node, what is known of it, and why the one in use was chosen.
    Paths(PathsArgs),
    /// Shows which gateway carries each shared prefix, and why.
    Gateways(super::gateways::GatewaysArgs),
    /// Moves flows away from this gateway, and says when nothing passes it any more.
    Drain(super::drain::DrainArgs),
    /// Shows which connections use which link, and whether it can go.
    Ledger(super::ledger::LedgerArgs),
    /// Shows what may come in from the mesh, what was refused, and what the rules make of something.
    Policy(PolicyArgs),
    /// Closes the public side of this host but for what the configuration allows: shows, tries, confirms, lifts.
    Lockdown(super::lockdown::LockdownArgs),
    /// Shows the forwards and their connections, and switches one to another target.
    Forward(ForwardArgs),
    /// Shows the names of members and forwards, and how they are answered.
    Names(super::names::NamesArgs),
    /// Waits until the mesh, or the links to some nodes, are up.
    Wait(super::wait::WaitArgs),
    /// Looks for what is wrong with this host and says what to do about it.
    Doctor(super::doctor::DoctorArgs),
    /// Writes what others need to help: this host, its daemon and its mesh, without secrets.
    Bugreport(super::bugreport::BugreportArgs),
    /// Lists the members this node knows.
    #[command(after_help = "Examples:\n  meshctl members\n  meshctl --json members")]
    Members,
    /// Prints the configuration of a stock WireGuard peer of this node: a phone, a router.
    Wireguard(WireguardArgs),
    /// Reads a configuration file and says everything that is wrong with it.
    Check(super::check::CheckArgs),
    /// Prints the versions of meshctl and of the running daemon.
    #[command(after_help = "Example:\n  meshctl version")]
    Version,
    /// Prints the completions of a shell.
    #[command(
        after_help = "Examples:\n  meshctl completions bash > /usr/share/bash-completion/completions/meshctl\n  \
                            meshctl completions zsh > /usr/share/zsh/vendor-completions/_meshctl"
    )]
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Writes the manual pages, completions and the schema a package ships.
    #[command(hide = true)]
    Gen {
        /// The directory they go to.
        directory: PathBuf,
    },
}

/// `meshctl alerts`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  meshctl alerts\n  meshctl alerts test ops            sends a test, and says whether it arrived\n  \
                        meshctl --json alerts | jq '.alerts[] | select(.phase == \"firing\")'"
)]
pub struct AlertsArgs {
    /// What to do; nothing lists the alerts.
    #[command(subcommand)]
    pub command: Option<AlertsCommand>,
}

/// What `meshctl alerts` can do.
#[derive(Debug, Subcommand)]
pub enum AlertsCommand {
    /// Sends a test to a receiver, the way alerts go, and waits for the outcome.
    #[command(after_help = "Example:\n  meshctl alerts test ops")]
    Test {
        /// The receiver's name in the configuration.
        #[arg(value_name = "RECEIVER")]
        receiver: String,
    },
}

/// `meshctl init`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  meshctl init --mesh example --overlay 10.77.0.0/16 --node web1 --endpoint 203.0.113.5:7655\n  \
                        meshctl init --mesh trial --overlay 10.9.0.0/24 --node a --endpoint 192.0.2.1:7700 --dir ./trial\n\n\
                        Writes meshd.toml, identity.key, node.cert, authority.key and authority.ledger; if one of them is there\n\
                        already, nothing is written. Keep a copy of authority.key and authority.ledger off this host."
)]
pub struct InitArgs {
    /// The mesh's name: 1 to 63 of a-z, 0-9 and -.
    #[arg(long, value_name = "NAME")]
    pub mesh: NodeName,
    /// The range of the nodes' addresses, between /8 and /29.
    #[arg(long, value_name = "CIDR", default_value = "10.77.0.0/16")]
    pub overlay: Ipv4Net,
    /// This node's name: 1 to 63 of a-z, 0-9 and -.
    #[arg(long, value_name = "NAME")]
    pub node: NodeName,
    /// Where the others reach this node; may be given several times.
    #[arg(long, value_name = "ADDRESS:PORT", required = true)]
    pub endpoint: Vec<SocketAddr>,
    /// Where the daemon listens; every address, on the endpoint's port, unless given.
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub listen: Option<SocketAddr>,
    /// Lets other nodes send through this one, sealed, where they do not reach each other.
    #[arg(long)]
    pub relay: bool,
    /// The directory to write to; the configuration file's directory unless given.
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// Encrypts the authority's key with the first line of this file; the daemon reads it from there too.
    #[arg(long, value_name = "FILE", conflicts_with = "ask_passphrase")]
    pub authority_passphrase_file: Option<PathBuf>,
    /// Encrypts the authority's key with a passphrase asked for here; the daemon then cannot use the key.
    #[arg(long)]
    pub ask_passphrase: bool,
    /// Leaves the authority's key out of the configuration, so that it can be kept elsewhere.
    #[arg(long)]
    pub offline_authority: bool,
}

/// Where the authority's key is.
#[derive(Clone, Debug, Default, Args)]
pub struct AuthorityArgs {
    /// The authority's key; its ledger lies beside it.
    #[arg(long, value_name = "FILE")]
    pub authority: Option<PathBuf>,
    /// A file whose first line is the key's passphrase; asked for on the terminal unless given.
    #[arg(long, value_name = "FILE", requires = "authority")]
    pub passphrase_file: Option<PathBuf>,
}

/// `meshctl invite`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  meshctl invite web2                                    token on standard output\n  \
                        meshctl invite db1 --tag db --route 192.0.2.0/24 --expires 24h\n  \
                        meshctl invite web3 --authority /media/stick/authority.key   where this node has no authority's key\n  \
                        meshctl invite --list\n  meshctl invite --revoke web2\n\n\
                        A token works once. Whoever has it first can join: hand it over as you would a password."
)]
pub struct InviteArgs {
    /// The new node's name.
    #[arg(value_name = "NODE", required_unless_present_any = ["list", "revoke"], conflicts_with_all = ["list", "revoke"])]
    pub node: Option<NodeName>,
    /// What the node is granted.
    #[command(flatten)]
    pub grant: GrantArgs,
    /// How long the token works, at most 30d.
    #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = duration::parse)]
    pub expires: Duration,
    /// Where the authority's key is, if not with the daemon.
    #[command(flatten)]
    pub authority: AuthorityArgs,
    /// Lists the invites.
    #[arg(long, conflicts_with = "revoke")]
    pub list: bool,
    /// Makes an invite useless; named by its node or identifier.
    #[arg(long, value_name = "INVITE")]
    pub revoke: Option<String>,
}

/// `meshctl join`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  meshctl join meshd1-… --endpoint 198.51.100.7:7655\n  \
                        meshctl invite web2 | ssh web2 meshctl join - --endpoint 198.51.100.7:7655\n\n\
                        Writes meshd.toml, identity.key and node.cert. If the mesh does not answer, run it again: the keys are\n\
                        kept, and the token works again for them until it expires.")]
pub struct JoinArgs {
    /// The token; `-` reads it from standard input, which keeps it out of the process list.
    #[arg(value_name = "TOKEN")]
    pub token: String,
    /// Where the others reach this node; may be given several times.
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub endpoint: Vec<SocketAddr>,
    /// Where the daemon listens; every address, on the endpoint's port, unless given.
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub listen: Option<SocketAddr>,
    /// The directory to write to; the configuration file's directory unless given.
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// How long to try.
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = duration::parse)]
    pub timeout: Duration,
}

/// `meshctl request`.
#[derive(Debug, Args)]
#[command(after_help = "Example, for hosts that configuration management sets up:\n  \
                        meshctl request --node web2 --endpoint 198.51.100.7:7655 > web2.request\n  \
                        meshctl sign web2.request --authority authority.key > web2.cert      where the authority is\n  \
                        install -m 644 web2.cert /etc/meshd/node.cert                        on web2 again\n\n\
                        The private keys stay in identity.key on this host; a second request uses the same keys.")]
pub struct RequestArgs {
    /// This node's name.
    #[arg(long, value_name = "NAME")]
    pub node: NodeName,
    /// Where the others reach this node; may be given several times.
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub endpoint: Vec<SocketAddr>,
    /// The directory of identity.key; the configuration file's directory unless given.
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
}

/// `meshctl sign`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  meshctl sign web2.request --authority authority.key > web2.cert\n  \
                        ssh web2 meshctl request --node web2 | meshctl sign - --authority authority.key --tag web --days 90\n\n\
                        What was issued is kept in the ledger beside the key (authority.ledger).")]
pub struct SignArgs {
    /// The request; `-` reads it from standard input.
    #[arg(value_name = "REQUEST")]
    pub request: PathBuf,
    /// The authority's key; its ledger lies beside it.
    #[arg(long, value_name = "FILE")]
    pub authority: PathBuf,
    /// A file whose first line is the key's passphrase; asked for on the terminal unless given.
    #[arg(long, value_name = "FILE")]
    pub passphrase_file: Option<PathBuf>,
    /// What the node is granted.
    #[command(flatten)]
    pub grant: GrantArgs,
    /// Days the certificate is valid.
    #[arg(long, value_name = "DAYS", default_value_t = 365, value_parser = clap::value_parser!(u32).range(1..=3650))]
    pub days: u32,
}

/// `meshctl revoke`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  meshctl revoke web2\n  meshctl revoke web2 --authority /media/stick/authority.key\n\n\
                        It spreads to every member in seconds and cannot be undone: the host needs new keys to come back."
)]
pub struct RevokeArgs {
    /// The node's name or identifier.
    #[arg(value_name = "NODE")]
    pub node: String,
    /// Where the authority's key is, if not with the daemon.
    #[command(flatten)]
    pub authority: AuthorityArgs,
    /// Does not ask.
    #[arg(long, short)]
    pub yes: bool,
}

/// `meshctl status`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  meshctl status\n  meshctl status db1                 everything about one link\n  \
                        meshctl status --watch\n  meshctl status --check             for monitors: exit code 1 if something is wrong\n  \
                        meshctl --json status | jq '.peers[] | select(.state != \"up\") | .name'"
)]
pub struct StatusArgs {
    /// One node, by name, identifier or overlay address.
    #[arg(value_name = "NODE")]
    pub node: Option<String>,
    /// Draws it anew each second until interrupted.
    #[arg(long, short)]
    pub watch: bool,
    /// Exits with 1 if a peer is not up or there is a problem worth a warning.
    #[arg(long, conflicts_with = "watch")]
    pub check: bool,
}

/// `meshctl ping`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  meshctl ping db1\n  meshctl ping db1 --count 100 --interval 100ms\n  \
                        meshctl ping db1 --full-size       packets as large as the link carries\n  \
                        meshctl ping db1 --underlay        and ICMP beside them: what does the tunnel add?\n\n\
                        path: between the kernels of both hosts; tunnel: between the daemons; host: the other daemon's own time.\n\
                        Exits with 1 if no probe was answered.")]
pub struct PingArgs {
    /// The node, by name, identifier or overlay address.
    #[arg(value_name = "NODE")]
    pub node: String,
    /// How many probes.
    #[arg(long, short, short_alias = 'n', value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=3600))]
    pub count: u32,
    /// Time between two probes, 10ms to 60s.
    #[arg(long, short, value_name = "DURATION", default_value = "1s", value_parser = duration::parse)]
    pub interval: Duration,
    /// Pads the probes to the link's full packet size.
    #[arg(long)]
    pub full_size: bool,
    /// Sends ICMP echoes of the same size to the node's endpoint as well, outside the tunnel.
    #[arg(long)]
    pub underlay: bool,
}

/// `meshctl wireguard`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  meshctl wireguard --new phone --address 10.78.0.2 --address fd78::2\n  \
                        meshctl wireguard phone            for wg-quick, with a QR code for a telephone\n  \
                        meshctl wireguard phone > phone.conf\n\n\
                        --new makes a key pair, prints the peer's configuration once, and the [[wireguard]] entry for this\n\
                        node's meshd.toml. The private key is written nowhere. A peer reaches the whole mesh with addresses\n\
                        that this node's certificate carries, and this node alone with any other.")]
pub struct WireguardArgs {
    /// The peer's name, as the configuration declares it.
    #[arg(value_name = "NODE")]
    pub node: NodeName,
    /// Makes a new peer of that name.
    #[arg(long, requires = "address")]
    pub new: bool,
    /// An address for the new peer; may be given several times.
    #[arg(long, value_name = "ADDRESS", requires = "new", value_parser = address_or_prefix)]
    pub address: Vec<IpNet>,
    /// Where the peer reaches this node; its first announced endpoint unless given.
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub endpoint: Option<SocketAddr>,
    /// Prints the QR code also where the output is no terminal.
    #[arg(long)]
    pub qr: bool,
}

/// Reads an address, or a prefix without host bits.
fn address_or_prefix(text: &str) -> Result<IpNet, String> {
    let address = text.parse::<std::net::IpAddr>().map(IpNet::from);
    let network =
        address.or_else(|_| text.parse::<IpNet>()).map_err(|_| "expected an address or a prefix".to_owned())?;
    if network.trunc() == network { Ok(network) } else { Err(format!("did you mean {}?", network.trunc())) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definitions_are_sound() {
        MeshctlArgs::command().debug_assert();
        MeshdArgs::command().debug_assert();
    }

    #[test]
    fn every_visible_command_has_an_example() {
        for command in MeshctlArgs::command().get_subcommands().filter(|command| !command.is_hide_set()) {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.starts_with("Example"), "{}", command.get_name());
        }
    }

    #[test]
    fn secrets_are_no_arguments() {
        for command in MeshctlArgs::command().get_subcommands() {
            for argument in command.get_arguments().filter(|argument| argument.get_action().takes_values()) {
                let name = argument.get_id().as_str();
                assert!(!name.contains("passphrase") || name.ends_with("file"), "{} {name}", command.get_name());
            }
        }
    }
}
