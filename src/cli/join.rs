//! `meshctl join`.

use std::io::Read;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rand_core::OsRng;
use tokio::net::UdpSocket;
use tokio::time::{Instant, sleep_until};
use zeroize::Zeroizing;

use super::args::JoinArgs;
use super::context::Context;
use super::exit::{Exit, Failure};
use super::init::{listen, mesh_of};
use super::new_files::NewFiles;
use super::request::keys_at;
use crate::api::SCHEMA;
use crate::config::{Bootstrap, Config, Files};
use crate::identity::{NodeKeys, Token, Validity};
use crate::platform::clock;
use crate::time::UnixTime;
use crate::wire::join::{JoinAttempt, JoinReply, Joined, LENGTH};

/// Bytes of a token at most.
const TOKEN_LIMIT: u64 = 4_096;
/// Time between the first two attempts; each further pause is twice as long, up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(4);
/// Attempts whose answer is still understood: two minutes of them, far beyond any round trip.
const ATTEMPTS_KEPT: usize = 32;
/// How far this host's clock may be from the inviting node's before its owner should know.
const CLOCK_TOLERANCE: Duration = Duration::from_secs(60);

/// Joins this host to the mesh of a token.
pub async fn run(context: &Context, args: &JoinArgs) -> Result<(), Failure> {
    let token = read_token(&args.token)?;
    let config_path = context.config_in(args.dir.as_deref());
    let files = Files::beside(&config_path);
    // Before the mesh is asked: what stands there already would be in the way afterwards.
    let mut new = NewFiles::start(&[&files.certificate, &config_path])?;
    let (keys, _) = keys_at(&files.identity)?;
    // Everything but the bootstrap members is known: what would make the file invalid is told before the token is used.
    let mut config = configuration(&token, args, &config_path)?;
    Config::parse(&config.to_toml(&config_path), &config_path)?;

    let reply = exchange(&token, &keys, args).await?;
    warn_of_clock(context, reply.now);
    let joined = reply.outcome.map_err(|refusal| Failure::failed(format!("not admitted: {refusal}")))?;
    let member = |member: &crate::wire::join::JoinMember| Bootstrap {
        name: member.name.clone(),
        key: member.wireguard_key,
        endpoint: member.endpoint,
    };
    config.bootstrap = joined.members.iter().map(member).collect();
    if config.bootstrap.is_empty() {
        return Err(Failure::failed(
            "the inviting node named no member to speak to; look at its log, then run this again",
        ));
    }
    new.public(&files.certificate, joined.certificate.to_armor().as_bytes())?;
    new.public(&config_path, config.to_toml(&config_path).as_bytes())?;
    let mut written = new.keep();
    written.insert(0, files.identity);
    report(context, &config, &joined, &config_path, &written)
}

fn read_token(argument: &str) -> Result<Token, Failure> {
    let mut text = Zeroizing::new(String::new());
    if argument == "-" {
        std::io::stdin()
            .take(TOKEN_LIMIT)
            .read_to_string(&mut text)
            .map_err(|error| Failure::failed(format!("cannot read the token from standard input: {error}")))?;
    } else {
        text.push_str(argument);
    }
    text.trim().parse().map_err(|error| Failure::new(Exit::Usage, format!("the token cannot be used: {error}")))
}

fn configuration(token: &Token, args: &JoinArgs, path: &Path) -> Result<Config, Failure> {
    let anchor = token.anchor().map_err(|error| Failure::failed(format!("the token cannot be used: {error}")))?;
    let mut config = Config::new(token.name.clone(), mesh_of(&anchor), path);
    config.underlay.endpoints.clone_from(&args.endpoint);
    config.underlay.listen = listen(args.listen, &args.endpoint);
    Ok(config)
}

/// Asks the inviting node, again and again until it answers or the time is over.
async fn exchange(token: &Token, keys: &NodeKeys, args: &JoinArgs) -> Result<JoinReply, Failure> {
    let sockets = Sockets::open(&token.endpoints).await?;
    let end = Instant::now() + args.timeout;
    let mut pause = FIRST_PAUSE;
    // One for each attempt, because an answer opens only with what its own request was sealed with.
    let mut attempts: Vec<JoinAttempt> = Vec::new();
    while Instant::now() < end {
        let made = JoinAttempt::new(token, keys, &args.endpoint, clock::wall(), &mut OsRng);
        let Some((datagram, attempt)) = made else {
            return Err(Failure::new(
                Exit::Usage,
                "the endpoints cannot be used: give at most four that others can reach",
            ));
        };
        if attempts.len() == ATTEMPTS_KEPT {
            attempts.remove(0);
        }
        attempts.push(attempt);
        sockets.send(&datagram, &token.endpoints).await;
        let wait_until = end.min(Instant::now() + pause);
        pause = (pause * 2).min(LONGEST_PAUSE);
        let mut buffer = [0; LENGTH + 1];
        loop {
            let received = tokio::select! {
                received = sockets.receive(&mut buffer) => received,
                () = sleep_until(wait_until) => break,
            };
            // Whatever else arrives here was sent by a stranger, or damaged on the way.
            if let Some(reply) = attempts.iter().find_map(|attempt| attempt.open(&buffer[..received]).ok()) {
                return Ok(reply);
            }
        }
    }
    let endpoints: Vec<String> = token.endpoints.iter().map(ToString::to_string).collect();
    Err(Failure::new(
        Exit::NotReachable,
        format!(
            "no answer from {} within {} s; see that UDP reaches it and that meshd runs there, then run this again: this \
             host's keys are kept, and the token works for them until {}",
            endpoints.join(", "),
            args.timeout.as_secs(),
            token.expires
        ),
    ))
}

/// A socket for each address family the inviting node has.
struct Sockets {
    v4: Option<UdpSocket>,
    v6: Option<UdpSocket>,
}

impl Sockets {
    async fn open(endpoints: &[SocketAddr]) -> Result<Self, Failure> {
        let v4 =
            UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await.ok().filter(|_| endpoints.iter().any(|e| e.is_ipv4()));
        let v6 =
            UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).await.ok().filter(|_| endpoints.iter().any(|e| e.is_ipv6()));
        if v4.is_none() && v6.is_none() {
            return Err(Failure::failed("this host has no address of a family the inviting node can be reached by"));
        }
        Ok(Sockets { v4, v6 })
    }

    /// Sends to every endpoint; one that cannot be reached is no reason to leave the others out.
    async fn send(&self, datagram: &[u8], endpoints: &[SocketAddr]) {
        for endpoint in endpoints {
            if let Some(socket) = if endpoint.is_ipv4() { &self.v4 } else { &self.v6 } {
                let _ = socket.send_to(datagram, endpoint).await;
            }
        }
    }

    /// Waits for the next datagram; an error of the network, such as a refused port, is as good as none.
    async fn receive(&self, buffer: &mut [u8]) -> usize {
        loop {
            let ready = |socket: &'_ Option<UdpSocket>| socket.is_some();
            let (has_v4, has_v6) = (ready(&self.v4), ready(&self.v6));
            tokio::select! {
                _ = readable(&self.v4), if has_v4 => {}
                _ = readable(&self.v6), if has_v6 => {}
            }
            for socket in [&self.v4, &self.v6].into_iter().flatten() {
                if let Ok((length, _)) = socket.try_recv_from(buffer) {
                    return length;
                }
            }
        }
    }
}

async fn readable(socket: &Option<UdpSocket>) {
    if let Some(socket) = socket {
        // An error shows when the datagram is taken.
        let _ = socket.readable().await;
    }
}

fn warn_of_clock(context: &Context, theirs: UnixTime) {
    let ours = clock::wall();
    let off = ours.saturating_since(theirs).max(theirs.saturating_since(ours));
    if off > CLOCK_TOLERANCE {
        context.output.note(&format!(
            "warning: this host's clock is {} off the inviting node's; certificates need the right time",
            super::quantity::age(off.as_secs())
        ));
    }
}

fn report(
    context: &Context,
    config: &Config,
    joined: &Joined,
    config_path: &Path,
    written: &[PathBuf],
) -> Result<(), Failure> {
    let certificate = joined.certificate.certificate();
    if joined.certificate.validity(clock::wall()) != Validity::Valid {
        context.output.note("warning: by this host's clock the new certificate is not valid now; set the clock first");
    }
    if context.output.json {
        return context.output.json(&serde_json::json!({
            "schema": SCHEMA,
            "mesh_name": config.mesh.name,
            "mesh_id": config.mesh.id.to_string(),
            "node": config.node.to_string(),
            "node_id": certificate.node.to_string(),
            "address_v4": certificate.address_v4,
            "address_v6": certificate.address_v6,
            "certificate_expires": certificate.not_after.to_string(),
            "members": config.bootstrap.iter().map(|member| member.name.to_string()).collect::<Vec<_>>(),
            "files": written.iter().map(|path| path.display().to_string()).collect::<Vec<_>>(),
        }));
    }
    let mut text = format!(
        "{} is {} in mesh {}, certificate until {}\n",
        config.node, certificate.address_v4, config.mesh.name, certificate.not_after
    );
    for path in written {
        text.push_str(&format!("  {}\n", path.display()));
    }
    context.output.data(&text)?;
    context.output.note(&format!(
        "Next:\n  meshd --config {0}      or: systemctl enable --now meshd\n  meshctl --config {0} status",
        config_path.display()
    ));
    Ok(())
}
