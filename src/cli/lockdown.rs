//! `meshctl lockdown`.

use std::path::Path;
use std::time::Duration;

use clap::{Args, Subcommand};
use serde::Serialize;

use super::context::{Context, read_config};
use super::exit::Failure;
use super::output::{BAD, GOOD, HEADING};
use super::quantity;
use super::table::{Align, Cell, Table};
use crate::api::{ClientError, LockdownInfo, LockdownPhase, LockdownTrialRequest, SCHEMA};
use crate::config::{Config, Lockdown, Service, duration};
use crate::platform::file;
use crate::platform::listeners::{Listener, listeners};
use crate::platform::nftables::Nft;
use crate::policy::{self, Arrival, Dropper, PublicSide, TCP, UDP, droppers};

/// What the packaged unit loads at boot.
const LOADED: &str = "/var/lib/meshd/lockdown.nft";
/// What is there where that unit is enabled.
const ENABLED: &str = "/etc/systemd/system/sysinit.target.wants/meshd-lockdown.service";

/// `meshctl lockdown`.
#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Examples:\n  meshctl lockdown            how far it has come, and what was refused\n  \
                  meshctl lockdown plan       what would be closed, and who listens there; changes nothing\n  \
                  meshctl lockdown trial      closes it for a minute\n  meshctl lockdown confirm    … and for good, at boot as well\n  \
                  meshctl lockdown off        opens everything again\n\n\
                  What stays open is `allow` of [lockdown] in meshd.toml. Try a new connection from outside before you confirm:\n\
                  one that is open already goes on whatever the rules are."
)]
pub struct LockdownArgs {
    /// What to do; nothing shows how far it has come.
    #[command(subcommand)]
    pub command: Option<LockdownCommand>,
    /// The same as `plan`.
    #[arg(long)]
    pub dry_run: bool,
}

/// What `meshctl lockdown` can do.
#[derive(Debug, Subcommand)]
pub enum LockdownCommand {
    /// Shows the rules, who listens where, and which tables of others drop what these would leave open; as root.
    #[command(after_help = "Example:\n  meshctl lockdown plan")]
    Plan,
    /// Puts the rules in force; they vanish by themselves, also with the daemon, unless they are confirmed.
    #[command(after_help = "Examples:\n  meshctl lockdown trial\n  meshctl lockdown trial --for 5m")]
    Trial {
        /// How long, 1s to 10m.
        #[arg(long = "for", value_name = "DURATION", default_value = "1m", value_parser = duration::parse)]
        length: Duration,
    },
    /// Keeps the rules that are on trial: from now on, while the daemon is stopped, and from the next boot on.
    #[command(after_help = "Example:\n  meshctl lockdown confirm")]
    Confirm,
    /// Opens everything again; works without the daemon, too.
    #[command(after_help = "Example:\n  meshctl lockdown off")]
    Off,
}

/// Shows or moves the lock-down.
pub async fn run(context: &Context, args: &LockdownArgs) -> Result<(), Failure> {
    let info = match &args.command {
        None if args.dry_run => return plan(context).await,
        Some(LockdownCommand::Plan) => return plan(context).await,
        None => context.client()?.lockdown().await?,
        Some(LockdownCommand::Trial { length }) => {
            context.client()?.try_lockdown(&LockdownTrialRequest { seconds: length.as_secs_f64() }).await?
        }
        Some(LockdownCommand::Confirm) => context.client()?.confirm_lockdown().await?,
        Some(LockdownCommand::Off) => match context.client()?.lift_lockdown().await {
            Err(ClientError::NotRunning { .. }) => return lift(context).await,
            told => told?,
        },
    };
    if matches!(args.command, Some(LockdownCommand::Confirm)) {
        tell_of_boot(context);
    }
    if context.output.json {
        return context.output.json(&info);
    }
    context.output.data(&render(&info))
}

/// Says where nothing would load the rules at boot, as far as that can be seen.
fn tell_of_boot(context: &Context) {
    let Ok(config) = read_config(&context.config) else { return };
    let is_packaged = config.files.lockdown_path() == Path::new(LOADED);
    if !is_packaged {
        context.output.note(&format!(
            "no packaged unit loads {} at boot: the rules hold from then on only when meshd starts",
            config.files.lockdown_path().display()
        ));
    } else if !Path::new(ENABLED).exists() {
        context.output.note("for the rules to be loaded at boot: systemctl enable meshd-lockdown");
    }
}

/// Lifts it where no daemon does.
async fn lift(context: &Context) -> Result<(), Failure> {
    let config = read_config(&context.config)?;
    let nft = Nft::find().ok_or_else(no_nft)?;
    nft.apply(&policy::lift(&config.interface.name)).await.map_err(|error| Failure::failed(error.to_string()))?;
    file::remove(&config.files.lockdown_path())?;
    if context.output.json {
        return context.output.json(&serde_json::json!({ "schema": SCHEMA, "phase": "off" }));
    }
    context.output.data("no daemon runs; the lock-down is lifted\n")
}

fn no_nft() -> Failure {
    Failure::failed(format!("this host has no `nft`; apt-get install {}", Nft::PACKAGE))
}

fn render(info: &LockdownInfo) -> String {
    let mut out = match (info.phase, info.trial_ends_seconds) {
        (LockdownPhase::Off, _) => "off: the configuration has no [lockdown]\n".to_owned(),
        (LockdownPhase::Open, _) => {
            "configured, and nothing is closed yet: `meshctl lockdown plan`, then `trial` and `confirm`\n".to_owned()
        }
        (LockdownPhase::Trial, ends) => format!(
            "on trial: over in {:.0} s unless you run `meshctl lockdown confirm`; try a new connection from outside first\n",
            ends.unwrap_or_default()
        ),
        (LockdownPhase::Confirmed, _) => "confirmed: in force, and loaded at boot\n".to_owned(),
        (LockdownPhase::Outdated, _) => {
            "confirmed, but [lockdown] says something else by now: `meshctl lockdown trial`, or `off`\n".to_owned()
        }
    };
    let mut list = |what: &str, openings: &Option<Vec<String>>| {
        if let Some(openings) = openings {
            let shown = if openings.is_empty() { "nothing else".to_owned() } else { openings.join(", ") };
            out.push_str(&format!("{what}: the mesh's port, {shown}\n"));
        }
    };
    match info.phase {
        LockdownPhase::Confirmed => list("open", &info.confirmed),
        _ => {
            list("open, as configured", &info.configured);
            list("open, as confirmed", &info.confirmed);
        }
    }
    if !info.tables.is_empty() {
        let closed = quantity::count(info.closed_packets, "packet");
        out.push_str(&format!("refused: {closed} (nft table inet {})\n", info.tables.join(", inet ")));
    }
    if let Some(failure) = &info.failure {
        out.push_str(&format!("failed: {failure}\n"));
    }
    out
}

/// What a lock-down would do.
#[derive(Serialize)]
struct Plan {
    schema: u32,
    /// What stays open.
    open: Vec<String>,
    /// Who listens on the public side.
    listening: Vec<Listening>,
    /// Chains of others that drop what stays open here.
    others: Vec<Other>,
    /// The rules.
    script: String,
}

#[derive(Serialize)]
struct Listening {
    protocol: &'static str,
    address: std::net::SocketAddr,
    program: Option<String>,
    /// By whom it is still reached; by nobody where empty.
    reached_from: Vec<String>,
}

/// A chain of somebody else's that drops something that stays open, or may.
#[derive(Debug, PartialEq, Serialize)]
pub(super) struct Other {
    pub(super) opening: String,
    pub(super) table: String,
    pub(super) chain: String,
    pub(super) certain: bool,
}

async fn plan(context: &Context) -> Result<(), Failure> {
    let config = read_config(&context.config)?;
    let Some(lockdown) = &config.lockdown else {
        return Err(Failure::failed("the configuration has no [lockdown]; begin with `allow = [\"tcp/22\"]` there"));
    };
    if !policy::is_nameable(&config.interface.name) {
        return Err(Failure::failed(format!("nftables cannot name the interface `{}`", config.interface.name)));
    }
    let nft = Nft::find().ok_or_else(no_nft)?;
    let failed = |error: crate::platform::nftables::NftError| Failure::failed(error.to_string());
    let rules = rules(&config, lockdown);
    nft.check(&rules.script()).await.map_err(failed)?;
    let others = others(&rules, &ruleset(&nft).await.map_err(Failure::failed)?);
    let listening = listeners().map_err(|error| Failure::failed(format!("who listens is not told: {error}")))?;
    let plan = Plan {
        schema: SCHEMA,
        open: openings(&rules).into_iter().map(|(shown, _)| shown).collect(),
        listening: listening
            .into_iter()
            .filter(|one| is_public(&config, one))
            .map(|one| reached(&rules, one))
            .collect(),
        others,
        script: rules.script(),
    };
    if context.output.json {
        return context.output.json(&plan);
    }
    context.output.data(&render_plan(&plan, &config.interface.name))
}

/// What the tables of others drop of what must or may come in: the mesh's port, and what `[lockdown]` leaves open.
///
/// # Errors
/// Says why they are not known.
pub(super) async fn dropped_by_others(config: &Config, nft: &Nft) -> Result<Vec<Other>, String> {
    let nothing = Lockdown { allow: Vec::new() };
    let rules = rules(config, config.lockdown.as_ref().unwrap_or(&nothing));
    Ok(others(&rules, &ruleset(nft).await?))
}

async fn ruleset(nft: &Nft) -> Result<serde_json::Value, String> {
    let text = nft.ruleset().await.map_err(|error| error.to_string())?;
    serde_json::from_str(&text).map_err(|error| format!("what nft prints cannot be read: {error}"))
}

fn rules(config: &Config, lockdown: &Lockdown) -> PublicSide {
    let port = config.underlay.listen.first().map_or(0, std::net::SocketAddr::port);
    PublicSide { interface: config.interface.name.clone(), port, allow: lockdown.allow.clone() }
}

/// What stays open, each with a packet that should get in, where that is of one protocol.
fn openings(rules: &PublicSide) -> Vec<(String, Option<(u8, u16)>)> {
    let mesh = (format!("udp/{} (the mesh)", rules.port), Some((UDP, rules.port)));
    let rest = rules.allow.iter().map(|opening| {
        let packet = match opening.service {
            Service::Tcp(first, _) => Some((TCP, first)),
            Service::Udp(first, _) => Some((UDP, first)),
            Service::Any | Service::Icmp => None,
        };
        (opening.to_string(), packet)
    });
    [mesh].into_iter().chain(rest).collect()
}

fn others(rules: &PublicSide, ruleset: &serde_json::Value) -> Vec<Other> {
    let mut others = Vec::new();
    for (opening, packet) in openings(rules) {
        let Some((protocol, port)) = packet else { continue };
        let arrival = Arrival { protocol, port, interface: &rules.interface };
        let found = droppers(ruleset, &arrival).into_iter();
        others.extend(found.map(|Dropper { table, chain, is_certain }| Other {
            opening: opening.clone(),
            table,
            chain,
            certain: is_certain,
        }));
    }
    others
}

/// Whether a socket takes what arrives on the underlay.
fn is_public(config: &Config, listener: &Listener) -> bool {
    let address = listener.local.ip();
    let anchor = config.mesh.trust_anchor().ok();
    let of_the_mesh = match address {
        std::net::IpAddr::V4(v4) => config.mesh.overlay.contains(&v4),
        std::net::IpAddr::V6(v6) => anchor.is_some_and(|anchor| anchor.overlay_v6.contains(&v6)),
    };
    !address.is_loopback() && !of_the_mesh
}

fn reached(rules: &PublicSide, listener: Listener) -> Listening {
    let port = listener.local.port();
    let mut from = Vec::new();
    if !listener.is_tcp && port == rules.port {
        from.push("everybody".to_owned());
    }
    for opening in &rules.allow {
        let open = match opening.service {
            Service::Tcp(first, last) => listener.is_tcp && (first..=last).contains(&port),
            Service::Udp(first, last) => !listener.is_tcp && (first..=last).contains(&port),
            Service::Any => true,
            Service::Icmp => false,
        };
        if open {
            from.push(opening.from.map_or("everybody".to_owned(), |from| from.to_string()));
        }
    }
    if from.iter().any(|one| one == "everybody") {
        from = vec!["everybody".to_owned()];
    }
    let protocol = if listener.is_tcp { "tcp" } else { "udp" };
    Listening { protocol, address: listener.local, program: listener.program, reached_from: from }
}

fn render_plan(plan: &Plan, interface: &str) -> String {
    let mut out = format!(
        "Nothing is changed. On every interface but lo and {interface}, these would stay open:\n  {}\nAnswers, echoes, what \
         else of ICMP a host needs, and DHCP always pass.\n\n",
        plan.open.join("\n  ")
    );
    let mut table = Table::new(&[
        ("LISTENING", Align::Left),
        ("ADDRESS", Align::Left),
        ("PROGRAM", Align::Left),
        ("REACHED FROM", Align::Left),
    ]);
    let mut listening: Vec<&Listening> = plan.listening.iter().collect();
    // Trouble first.
    listening.sort_by_key(|one| !one.reached_from.is_empty());
    for one in listening {
        let from = match one.reached_from.is_empty() {
            true => Cell::styled("nobody".to_owned(), BAD),
            false => Cell::styled(one.reached_from.join(", "), GOOD),
        };
        let program = one.program.clone().unwrap_or_else(|| "-".to_owned());
        table.row([one.protocol.into(), one.address.to_string().into(), program.into(), from]);
    }
    out.push_str(&table.render(HEADING));
    if !plan.others.is_empty() {
        out.push_str("\nTables of others, which no rule here opens:\n");
    }
    for other in &plan.others {
        let drops = if other.certain { "drops" } else { "may drop" };
        out.push_str(&format!("  table {} (chain {}) {drops} {}\n", other.table, other.chain, other.opening));
    }
    out.push_str(&format!("\n{}", plan.script));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn side(allow: &[&str]) -> PublicSide {
        let allow = allow.iter().map(|opening| opening.parse().unwrap()).collect();
        PublicSide { interface: "mesh0".to_owned(), port: 7655, allow }
    }

    #[test]
    fn a_plan_says_who_becomes_unreachable() {
        let rules = side(&["tcp/22 from 203.0.113.0/24", "tcp/80", "any from 198.51.100.7"]);
        let from = |is_tcp, local: &str| {
            let listener = Listener { is_tcp, local: local.parse().unwrap(), program: Some("postgres".to_owned()) };
            reached(&rules, listener).reached_from
        };
        assert_eq!(from(true, "0.0.0.0:5432"), ["198.51.100.7/32"]);
        assert_eq!(from(true, "[::]:22"), ["203.0.113.0/24", "198.51.100.7/32"]);
        assert_eq!(from(true, "0.0.0.0:80"), ["everybody"]);
        assert_eq!(from(false, "[::]:7655"), ["everybody"]);
        assert_eq!(from(true, "0.0.0.0:7655"), ["198.51.100.7/32"]);
        let none = reached(&side(&[]), Listener { is_tcp: true, local: "[::]:5432".parse().unwrap(), program: None });
        let ruleset = serde_json::json!({ "nftables": [{ "chain": { "family": "ip", "table": "filter", "name": "INPUT",
            "type": "filter", "hook": "input", "policy": "drop" } }] });
        let plan = Plan {
            schema: SCHEMA,
            open: openings(&rules).into_iter().map(|(shown, _)| shown).collect(),
            listening: vec![none],
            others: others(&rules, &ruleset),
            script: String::new(),
        };
        let text = render_plan(&plan, "mesh0");
        for line in [
            "udp/7655 (the mesh)",
            "tcp/22 from 203.0.113.0/24",
            "nobody",
            "table ip filter (chain INPUT) drops tcp/80",
        ] {
            assert!(text.contains(line), "{line}: {text}");
        }
    }

    #[test]
    fn what_is_in_force_is_told() {
        let info = |phase, ends| LockdownInfo {
            schema: SCHEMA,
            phase,
            configured: Some(vec!["tcp/22".to_owned()]),
            confirmed: (phase != LockdownPhase::Open).then(Vec::new),
            trial_ends_seconds: ends,
            tables: vec!["meshd-trial_mesh0".to_owned()],
            closed_packets: 1,
            failure: None,
        };
        let trial = render(&info(LockdownPhase::Trial, Some(41.6)));
        assert!(trial.contains("over in 42 s") && trial.contains("the mesh's port, tcp/22"), "{trial}");
        assert!(trial.contains("1 packet (nft table inet meshd-trial_mesh0)"), "{trial}");
        assert!(render(&info(LockdownPhase::Confirmed, None)).contains("open: the mesh's port, nothing else"));
        assert!(render(&info(LockdownPhase::Open, None)).contains("nothing is closed yet"));
    }
}
