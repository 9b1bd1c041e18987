//! What an operator asks of the running daemon.

use std::path::Path;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::backend::call;
use super::driver::{Command, Driver, Pong};
use crate::api::{
    Answer, ApiError, ErrorKind, InviteList, InviteRequest, InviteRevokeRequest, InviteRevoked, InviteState,
    InviteSummary, Invited, LossRatio, PingLine, PingMode, PingRequest, Renewed, RevokeRequest, Revoked, SCHEMA,
    Timestamp,
};
use crate::config::ledger_lock;
use crate::control::CommandError;
use crate::identity::{
    self, Admission, Invite, InviteId, InviteSecret, Ledger, NodeId, NodeName, Priority, Shares, SignedCertificate,
    SignedDelegation, Tag, Token, Wish,
};
use crate::platform::file::FileError;
use crate::platform::{clock, file, random};
use crate::telemetry::{Jitter, LossEstimate};
use crate::time::UnixTime;
use crate::wire::overlay;
use base64::Engine as _;
use rand_chacha::ChaCha12Rng;
use rand_core::SeedableRng;

/// How long a ping waits for its answer.
const PING_PATIENCE: Duration = Duration::from_secs(2);
/// How long a renewal may take: one exchange with an authority node.
const RENEWAL_PATIENCE: Duration = Duration::from_secs(5);
/// Bytes of a ledger at most: 16,384 entries of 512 bytes.
const LEDGER_LIMIT: u64 = 16 << 20;
/// How often and how long the ledger's lock is waited for: 100 ms in all, which this task can be late.
const LOCK_ATTEMPTS: u32 = 20;
const LOCK_PAUSE: Duration = Duration::from_millis(5);

fn bad(message: impl Into<String>) -> ApiError {
    ApiError::new(ErrorKind::BadRequest, message)
}

fn conflict(message: impl ToString) -> ApiError {
    ApiError::new(ErrorKind::Conflict, message.to_string())
}

fn internal(message: impl ToString) -> ApiError {
    ApiError::new(ErrorKind::Internal, message.to_string())
}

impl From<CommandError> for ApiError {
    fn from(error: CommandError) -> Self {
        let kind = match &error {
            CommandError::NoSuchMember(_) => ErrorKind::NotFound,
            CommandError::NotAuthority
            | CommandError::NoSigner
            | CommandError::NotDue(_)
            | CommandError::Refused { .. }
            | CommandError::Invite(_) => ErrorKind::Conflict,
        };
        let advice = match &error {
            CommandError::NotAuthority => {
                Some("run it where the authority's key is, or name its file: --authority FILE")
            }
            CommandError::NoSuchMember(_) => Some("see who is: meshctl members"),
            _ => None,
        };
        let api = ApiError::new(kind, error.to_string());
        if let Some(advice) = advice { api.advise(advice) } else { api }
    }
}

/// Finds a peer by name, identifier or overlay address.
pub(super) fn find_peer(driver: &Driver, text: &str) -> Answer<NodeId> {
    if let Some((_, _, stock)) = driver.links.stocks().find(|(_, _, stock)| stock.declared.name.as_str() == text) {
        let address = stock.declared.addresses.first().map_or(String::new(), |net| net.addr().to_string());
        let message = format!("{text} is a stock WireGuard peer, which answers no probes of the mesh");
        return Err(bad(message).advise(format!("ask its own system: ping {address}")));
    }
    let found = driver.engine.membership().members().find(|(node, member)| {
        let certificate = member.certificate();
        certificate.name.as_str() == text
            || node.to_string() == text
            || certificate.address_v4.to_string() == text
            || certificate.address_v6.to_string() == text
    });
    match found {
        Some((node, _)) if node == driver.engine.node() => Err(bad(format!("{text} is this node itself"))),
        Some((node, _)) => Ok(node),
        None => Err(ApiError::new(ErrorKind::NotFound, format!("no member is named {text}"))
            .advise("see who is: meshctl members")),
    }
}

/// Where a ping goes.
pub(super) struct PingTarget {
    node: NodeId,
    start: PingLine,
    size: usize,
}

/// Checks a ping's request.
pub(super) fn ping_target(driver: &mut Driver, request: &PingRequest) -> Answer<PingTarget> {
    let node = find_peer(driver, &request.node)?;
    let now = clock::now();
    let view = driver.engine.view(now).peers.into_iter().find(|peer| peer.node == node);
    let Some(view) = view else { return Err(internal("the peer is gone")) };
    let size = match request.mode {
        PingMode::Tunnel => overlay::HEADER_LEN + crate::wire::probe::PROBE_LEN,
        PingMode::FullSize => {
            let mtu = driver.links.get(node).map_or(driver.config.interface.mtu, |link| link.peer.mtu());
            usize::from(mtu)
        }
    };
    let path = view.endpoint.filter(|_| view.session_for.is_some());
    let start = PingLine::Start {
        schema: SCHEMA,
        node: view.name.to_string(),
        address: view.address_v4.to_string(),
        path: driver.path_status(path, view.via),
        size_bytes: u32::try_from(size).unwrap_or(u32::MAX),
    };
    Ok(PingTarget { node, start, size })
}

/// Sends a ping's probes at its interval and writes its lines until it is done or nobody reads any more.
pub(super) async fn ping(
    commands: mpsc::Sender<Command>,
    target: PingTarget,
    request: PingRequest,
    lines: mpsc::Sender<PingLine>,
) {
    if lines.send(target.start.clone()).await.is_err() {
        return;
    }
    let (mut paths, mut overheads, mut sent) = (Vec::new(), Vec::new(), 0);
    let mut jitter = Jitter::default();
    let interval = Duration::from_secs_f64(request.interval_seconds);
    let mut ticks = tokio::time::interval(interval);
    for sequence in 1..=request.count {
        ticks.tick().await;
        let (node, size) = (target.node, target.size);
        let asked = call(&commands, move |driver| send_ping(driver, node, size)).await;
        let line = match asked {
            Ok(Some(waiting)) => {
                sent += 1;
                match timeout(PING_PATIENCE, waiting).await {
                    Ok(Ok((path, tunnel))) => {
                        paths.push(path);
                        overheads.push(tunnel.saturating_sub(path));
                        jitter.record(i64::try_from(path.as_nanos()).unwrap_or(i64::MAX));
                        PingLine::Reply {
                            sequence,
                            path_seconds: path.as_secs_f64(),
                            tunnel_seconds: tunnel.as_secs_f64(),
                            host_seconds: tunnel.saturating_sub(path).as_secs_f64(),
                        }
                    }
                    _ => PingLine::Lost { sequence },
                }
            }
            Ok(None) => PingLine::Failed { sequence, reason: "no session stands with the peer".into() },
            Err(error) => PingLine::Failed { sequence, reason: error.message },
        };
        if lines.send(line).await.is_err() {
            return;
        }
    }
    paths.sort_unstable();
    overheads.sort_unstable();
    let seconds = |of: Option<&Duration>| of.map(Duration::as_secs_f64);
    let received = u32::try_from(paths.len()).unwrap_or(u32::MAX);
    let loss = LossEstimate::new(u64::from(sent - received), u64::from(sent));
    let summary = PingLine::Summary {
        sent,
        received,
        loss: loss.map(|l| LossRatio { lost: l.lost, sent: l.sent, ratio: l.ratio(), low: l.low, high: l.high }),
        path_min_seconds: seconds(paths.first()),
        path_p50_seconds: seconds(paths.get(paths.len() / 2)),
        path_max_seconds: seconds(paths.last()),
        path_jitter_seconds: (!paths.is_empty()).then(|| jitter.estimate().as_secs_f64()),
        tunnel_adds_p50_seconds: seconds(overheads.get(overheads.len() / 2)),
    };
    let _ = lines.send(summary).await;
}

fn send_ping(driver: &mut Driver, node: NodeId, size: usize) -> Option<oneshot::Receiver<Pong>> {
    let number = driver.engine.ping(node, size, clock::now())?;
    let (pong, waiting) = oneshot::channel();
    // Those that nobody waits for any more make room.
    driver.pongs.retain(|_, sender| !sender.is_closed());
    driver.pongs.insert(number, pong);
    driver.drain();
    Some(waiting)
}

/// Makes an invite: enters it into the ledger (or takes what the authority delegated), keeps it, and prints its token.
pub(super) fn invite(driver: &mut Driver, request: &InviteRequest) -> Answer<Invited> {
    let wall = clock::wall();
    let name: NodeName = request.name.parse().map_err(|error| bad(format!("{error}")))?;
    let tags: Vec<Tag> =
        request.tags.iter().map(|tag| tag.parse().map_err(|error| bad(format!("{error}")))).collect::<Answer<_>>()?;
    let seed = random::seed().map_err(internal)?;
    let mut rng = ChaCha12Rng::from_seed(*seed);
    let expires = wall + Duration::from_secs(request.lifetime_seconds);
    let endpoints: Vec<_> = driver.engine.endpoints().iter().copied().take(Token::MAX_ENDPOINTS).collect();
    if endpoints.is_empty() {
        return Err(conflict("this node announces no endpoint at which a new host could reach it")
            .advise("set underlay.endpoints in meshd.toml and restart meshd"));
    }
    let (admission, delegation) = match &request.delegated {
        Some(delegated) => delegated_admission(driver, request, delegated, &name, &tags)?,
        None => {
            let wish = Wish {
                name: name.clone(),
                address_v4: request.address,
                prefixes: request.prefixes.clone(),
                shares: shares(request)?,
                tags,
                permissions: permissions(request),
                keys: None,
                replace_keys: request.replace,
                not_after: wall + identity::Term::ONLINE,
            };
            if !driver.engine.is_authority() {
                return Err(CommandError::NotAuthority.into());
            }
            (enter_wish(driver, &wish, NodeId::generate(&mut rng), wall)?, None)
        }
    };
    let anchor = driver.engine.membership().anchor().clone();
    let id = InviteId::generate(&mut rng);
    let secret = InviteSecret::generate(&mut rng);
    let address = admission.address_v4;
    let token = Token {
        mesh: anchor.mesh,
        mesh_name: anchor.mesh_name.clone(),
        overlay_v4: anchor.overlay_v4,
        authorities: anchor.authorities.clone(),
        contact: driver.engine.certificate().certificate().wireguard_key,
        endpoints,
        invite: id,
        secret,
        name: name.clone(),
        expires,
    };
    token.check().map_err(|error| bad(error.to_string()))?;
    let state = identity::InviteState::Open;
    driver.engine.invite(Invite { id, key: token.key(), admission, delegation, expires, state }, wall)?;
    driver.drain();
    Ok(Invited {
        schema: SCHEMA,
        invite: id.to_string(),
        name: name.to_string(),
        address,
        expires: Timestamp(expires),
        token: token.to_text().to_string(),
    })
}

/// What of the prefixes of an invite is shared.
fn shares(request: &InviteRequest) -> Answer<Shares> {
    let Some(number) = request.shared_priority else { return Ok(Shares::default()) };
    let priority = Priority::new(number).ok_or_else(|| bad("shared_priority lies between 1 and 255"))?;
    Ok(Shares::all(&request.prefixes, priority))
}

fn permissions(request: &InviteRequest) -> identity::Permissions {
    identity::Permissions { relay: request.relay, ..identity::Permissions::default() }
}

/// The admission that an authority elsewhere delegated to this node.
fn delegated_admission(
    driver: &Driver,
    request: &InviteRequest,
    delegated: &crate::api::DelegatedInvite,
    name: &NodeName,
    tags: &[Tag],
) -> Answer<(Admission, Option<SignedDelegation>)> {
    let address_v4 = request.address.ok_or_else(|| bad("a delegated invite names its address"))?;
    let node: NodeId = delegated.node_id.parse().map_err(|error| bad(format!("node_id: {error}")))?;
    let bytes = base64::engine::general_purpose::STANDARD
        .decode(&delegated.delegation)
        .map_err(|error| bad(format!("delegation: {error}")))?;
    let anchor = driver.engine.membership().anchor();
    let delegation =
        SignedDelegation::verify(&bytes, anchor).map_err(|error| conflict(format!("the delegation: {error}")))?;
    let (name, prefixes, tags) = (name.clone(), request.prefixes.clone(), tags.to_vec());
    let (permissions, shares) = (permissions(request), shares(request)?);
    let admission =
        Admission { node, name, address_v4, prefixes, tags, permissions, serial: delegated.serial, shares }.ordered();
    if delegation.delegation().delegate != driver.engine.certificate().certificate().verifying_key {
        return Err(conflict("the delegation is for another node: make it with this node's daemon at hand"));
    }
    Ok((admission, Some(delegation)))
}

/// Changes the ledger under its lock: read, change, write, or nothing.
fn with_ledger<T>(
    driver: &Driver,
    change: impl FnOnce(&mut Ledger, &identity::TrustAnchor) -> Result<T, identity::LedgerError>,
) -> Answer<T> {
    let path = driver.config.files.ledger_path().ok_or_else(|| internal("no ledger is configured"))?;
    let anchor = driver.engine.membership().anchor();
    let _lock = lock_ledger(&path)?;
    let mut ledger = match file::read(&path, LEDGER_LIMIT) {
        Ok(bytes) => {
            let text = String::from_utf8(bytes).map_err(|_| internal("the ledger is not text"))?;
            Ledger::parse(&text, anchor).map_err(internal)?
        }
        Err(error) if error.is_missing() => Ledger::new(anchor),
        Err(error) => return Err(internal(error)),
    };
    let result = change(&mut ledger, anchor).map_err(conflict)?;
    file::atomic_write(&path, ledger.to_text().as_bytes(), 0o600).map_err(internal)?;
    Ok(result)
}

/// Takes the lock that `meshctl` takes too. Whoever holds it writes one file, so a short wait is enough.
fn lock_ledger(ledger: &Path) -> Answer<file::Lock> {
    let path = ledger_lock(ledger);
    for _ in 0..LOCK_ATTEMPTS {
        match file::Lock::acquire(&path) {
            Err(FileError::Locked { .. }) => std::thread::sleep(LOCK_PAUSE),
            result => return result.map_err(conflict),
        }
    }
    Err(conflict(format!("another process keeps the ledger {}", ledger.display()))
        .advise("wait for the other `meshctl` to end, then run the same command again"))
}

fn enter_wish(driver: &Driver, wish: &Wish, fresh: NodeId, wall: UnixTime) -> Answer<Admission> {
    // What the mesh already uses is taken, also where another copy of the ledger granted it.
    let mut wish = wish.clone();
    loop {
        let admission = with_ledger(driver, |ledger, anchor| ledger.admit(&wish, fresh, anchor, wall))?;
        let holder =
            driver.engine.membership().members().find(|(node, member)| {
                *node != admission.node && member.certificate().address_v4 == admission.address_v4
            });
        match holder {
            None => return Ok(admission),
            Some((_, member)) if wish.address_v4.is_some() => {
                return Err(conflict(format!("{} belongs to {}", admission.address_v4, member.certificate().name)));
            }
            Some(_) => wish.address_v4 = next_free(driver, &admission),
        }
    }
}

/// The lowest address above an admission's that no member has.
fn next_free(driver: &Driver, admission: &Admission) -> Option<std::net::Ipv4Addr> {
    let anchor = driver.engine.membership().anchor();
    let taken: std::collections::BTreeSet<_> =
        driver.engine.membership().members().map(|(_, member)| member.certificate().address_v4).collect();
    anchor.overlay_v4.hosts().find(|address| *address > admission.address_v4 && !taken.contains(address))
}

/// Enters a certificate this node issued into its ledger.
pub(super) fn enter_issued(driver: &mut Driver, certificate: &SignedCertificate) {
    tracing::info!(name = %certificate.certificate().name, "certificate issued");
    if !driver.engine.is_authority() {
        return;
    }
    let wall = clock::wall();
    if let Err(error) = with_ledger(driver, |ledger, _| ledger.issued(certificate, wall)) {
        tracing::warn!("the ledger was not updated: {error}");
    }
}

/// Lists the invites.
pub(super) fn invites(driver: &mut Driver) -> InviteList {
    let wall = clock::wall();
    let mut invites: Vec<InviteSummary> = driver.engine.invites().iter().map(|invite| summary(invite, wall)).collect();
    invites.sort_by(|a, b| a.expires.0.cmp(&b.expires.0).then_with(|| a.name.cmp(&b.name)));
    InviteList { schema: SCHEMA, invites }
}

fn summary(invite: &Invite, wall: UnixTime) -> InviteSummary {
    let state = match &invite.state {
        identity::InviteState::Withdrawn => InviteState::Revoked,
        identity::InviteState::Bound { .. } => InviteState::Used,
        identity::InviteState::Open if invite.expires <= wall => InviteState::Expired,
        identity::InviteState::Open => InviteState::Open,
    };
    InviteSummary {
        invite: invite.id.to_string(),
        name: invite.admission.name.to_string(),
        address: invite.admission.address_v4,
        state,
        expires: Timestamp(invite.expires),
    }
}

/// Makes an invite useless.
pub(super) fn revoke_invite(driver: &mut Driver, request: &InviteRevokeRequest) -> Answer<InviteRevoked> {
    let wall = clock::wall();
    let wanted = &request.invite;
    let mut found: Vec<Invite> = driver
        .engine
        .invites()
        .iter()
        .filter(|invite| invite.id.to_string() == *wanted || invite.admission.name.as_str() == *wanted)
        .cloned()
        .collect();
    // Of several for one name the open one is meant.
    found.sort_by_key(|invite| invite.state != identity::InviteState::Open);
    let Some(invite) = found.first() else {
        return Err(ApiError::new(ErrorKind::NotFound, format!("no invite is for {wanted}"))
            .advise("see them: meshctl invite --list"));
    };
    if !driver.engine.withdraw_invite(invite.id) {
        let message = format!("the invite for {} was already used or withdrawn", invite.admission.name);
        return Err(conflict(message).advise("take the node itself out: meshctl revoke NODE"));
    }
    driver.drain();
    let withdrawn = driver.engine.invites().get(invite.id).cloned().unwrap_or_else(|| invite.clone());
    Ok(InviteRevoked { schema: SCHEMA, invite: summary(&withdrawn, wall) })
}

/// Takes a node out of the mesh.
pub(super) fn revoke(driver: &mut Driver, request: &RevokeRequest) -> Answer<Revoked> {
    let (now, wall) = (clock::now(), clock::wall());
    if let Some(encoded) = &request.revocation {
        return spread_revocation(driver, encoded);
    }
    let found =
        driver.engine.membership().members().find(|(node, member)| {
            node.to_string() == request.node || member.certificate().name.as_str() == request.node
        });
    let Some((node, member)) = found else {
        return Err(ApiError::new(ErrorKind::NotFound, format!("no member is named {}", request.node))
            .advise("see who is: meshctl members"));
    };
    if node == driver.engine.node() {
        return Err(bad("a node does not revoke itself: run it on another authority node"));
    }
    let certificate = member.certificate().clone();
    driver.engine.revoke(&certificate.name, now, wall)?;
    if let Err(error) = with_ledger(driver, |ledger, _| {
        ledger.mark_revoked(node, wall);
        Ok(())
    }) {
        tracing::warn!("the ledger was not updated: {error}");
    }
    driver.drain();
    Ok(Revoked {
        schema: SCHEMA,
        name: certificate.name.to_string(),
        node_id: node.to_string(),
        addresses: vec![certificate.address_v4.into(), certificate.address_v6.into()],
        sent_to: live_peers(driver),
    })
}

/// Spreads a revocation that the authority signed elsewhere.
fn spread_revocation(driver: &mut Driver, encoded: &str) -> Answer<Revoked> {
    let bytes = base64::engine::general_purpose::STANDARD
        .decode(encoded)
        .map_err(|error| bad(format!("revocation: {error}")))?;
    let anchor = driver.engine.membership().anchor();
    let signed = identity::SignedRevocation::verify(&bytes, anchor)
        .map_err(|error| conflict(format!("the revocation: {error}")))?;
    let revocation = signed.revocation();
    let addresses = driver.engine.membership().get(revocation.node).map(|member| {
        let certificate = member.certificate();
        vec![certificate.address_v4.into(), certificate.address_v6.into()]
    });
    driver.engine.accept_revocation(&bytes, clock::now())?;
    driver.drain();
    Ok(Revoked {
        schema: SCHEMA,
        name: revocation.name.to_string(),
        node_id: revocation.node.to_string(),
        addresses: addresses.unwrap_or_default(),
        sent_to: live_peers(driver),
    })
}

fn live_peers(driver: &Driver) -> u32 {
    let now = clock::now();
    let members = driver.links.iter().filter(|(_, link)| link.stock.is_none());
    let live = members.filter(|(_, link)| link.peer.tunnel().status(now).session.is_some()).count();
    u32::try_from(live).unwrap_or(u32::MAX)
}

/// Asks an authority node for a fresh certificate, or makes one here, and waits for it.
pub(super) async fn renew(commands: &mpsc::Sender<Command>) -> Answer<Renewed> {
    let before = call(commands, |driver| {
        let before = driver.engine.certificate().certificate().issued;
        let asked = driver.engine.renew(clock::now(), clock::wall());
        driver.drain();
        asked.map(|()| before)
    });
    let before = before.await??;
    let deadline = tokio::time::Instant::now() + RENEWAL_PATIENCE;
    let mut look = tokio::time::interval(Duration::from_millis(50));
    while tokio::time::Instant::now() < deadline {
        look.tick().await;
        let renewed = call(commands, move |driver| {
            let certificate = driver.engine.certificate().clone();
            (certificate.certificate().issued > before).then_some(certificate)
        });
        if let Some(certificate) = renewed.await? {
            let issuer = match certificate.issuer() {
                identity::Issuer::Authority(key) => format!("authority {key}"),
                identity::Issuer::Delegate(key) => format!("delegate {key}"),
            };
            let certificate_expires = Timestamp(certificate.certificate().not_after);
            return Ok(Renewed { schema: SCHEMA, certificate_expires, issuer });
        }
    }
    Err(ApiError::new(ErrorKind::TimedOut, "no authority node has answered").advise("try again, or sign one offline"))
}
