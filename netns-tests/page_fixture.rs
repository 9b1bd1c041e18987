//! A daemon that is none: the real page server over a mesh of two hundred nodes that exists on paper only. What it answers
//! is made of seeded chance and has one trouble of each kind at a known place.

use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use meshd::api::{
    AlertList, AlertTestRequest, AlertTested, Answer, ApiError, Backend, Certificates, CertificatesRequest,
    CertificatesTaken, DrainRequest, ErrorKind, EventItem, Events, EventsRequest, ForwardList, GatewayList, Health,
    History, HistoryPoint, HistoryRequest, InviteList, InviteRequest, InviteRevokeRequest, InviteRevoked, Invited,
    LinkLedger, LockdownInfo, LockdownTrialRequest, LossRatio, Matrix, MatrixNode, MatrixRow, Members, NameList,
    NodeInfo, PageGuard, PageServer, PathKind, PathList, PeerState, PingLine, PingRequest, Plan, PolicyCheckRequest,
    PolicyChecked, PolicyInfo, Renewed, Restarting, RevokeRequest, Revoked, RowMissing, SCHEMA, Site, SiteMatrix,
    SitePair, Spread, Status, SwitchRequest, Switched, Timestamp, Version, web_pages,
};
use meshd::api::{PolicyTraceRequest, TraceLine};
use meshd::time::UnixTime;
use rand_chacha::ChaCha12Rng;
use rand_core::{RngCore, SeedableRng};
use serde_json::json;
use tokio::sync::{mpsc, oneshot};

use crate::lab::error::Context;
use crate::lab::{Host, Result};

/// Nodes of the mesh.
pub const NODES: usize = 200;
/// Where they stand: on a line, so many milliseconds from the first.
const SITES: [(&str, f64); 10] = [
    ("bhs", 78.0),
    ("gra", 0.0),
    ("lim", 9.0),
    ("par", 3.5),
    ("rbx", 2.0),
    ("sbg", 8.0),
    ("sgp", 160.0),
    ("syd", 240.0),
    ("vin", 84.0),
    ("waw", 30.0),
];
const PER_SITE: usize = NODES / SITES.len();

/// The node that answers.
pub const SELF: &str = "gra-01";
/// The two ends of the link that is down.
pub const CUT: (&str, &str) = ("gra-02", "waw-05");
/// The two ends of a link that is up and 4 ms slower than it was all week.
pub const SLOWED: (&str, &str) = ("par-03", "waw-04");
/// The node all of whose links are degraded.
pub const ILL: &str = "lim-07";
/// The node that gives no answer.
pub const SILENT: &str = "sbg-09";
/// The observer that is unwell.
pub const UNWELL: &str = "syd-01";
/// The link whose first end measures half as much again as the other.
pub const DISPUTED: (&str, &str) = ("bhs-02", "sgp-03");
/// Seconds ago that the round trip of every link's history went up by [`STEP`].
pub const STEP_AGO: u64 = 900;
/// By how many seconds it went up.
pub const STEP: f64 = 0.0023;
/// Seconds ago that a gap of five minutes began.
const GAP_AGO: u64 = 2_400;

/// The paper mesh, served on a host's loopback until it is dropped.
pub struct Paper {
    /// Where the page is.
    pub address: String,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Paper {
    /// Serves it.
    ///
    /// # Errors
    /// Where the host has no loopback.
    pub fn serve(host: &Host) -> Result<Paper> {
        Paper::serve_sheet(host, Sheet { by_site: false })
    }

    /// Serves it as a daemon does that knows more nodes than it shows one by one.
    ///
    /// # Errors
    /// As [`Paper::serve`].
    pub fn serve_by_site(host: &Host) -> Result<Paper> {
        Paper::serve_sheet(host, Sheet { by_site: true })
    }

    fn serve_sheet(host: &Host, sheet: Sheet) -> Result<Paper> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("a runtime")?;
        let bind = || runtime.block_on(async { PageServer::bind(([127, 0, 0, 1], 0).into()) });
        let server = host.enter(bind).context("bind the page")?;
        let address = format!("http://{}/", server.address());
        let (stop, stopped) = oneshot::channel();
        let serve = move || {
            let pages = web_pages(Arc::new(sheet));
            runtime.block_on(server.serve(pages, PageGuard::default(), async { drop(stopped.await) }));
        };
        let thread = thread::Builder::new().name("paper mesh".to_owned()).spawn(serve).context("a thread")?;
        Ok(Paper { address, stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Paper {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A node's name.
fn name(node: usize) -> String {
    format!("{}-{:02}", SITES[node / PER_SITE].0, node % PER_SITE + 1)
}

/// A number between 0 and 1, the same for the same pair.
fn chance(a: usize, b: usize) -> f64 {
    let mut generator = ChaCha12Rng::seed_from_u64((a * NODES + b) as u64);
    f64::from(generator.next_u32()) / f64::from(u32::MAX)
}

/// What a link's round trip was all week, in seconds.
fn usual(a: usize, b: usize) -> f64 {
    let apart = (SITES[a / PER_SITE].1 - SITES[b / PER_SITE].1).abs();
    (0.2 + 0.2 * chance(a.min(b), a.max(b)) + apart) / 1e3
}

fn is_link(a: &str, b: &str, ends: (&str, &str)) -> bool {
    (a, b) == ends || (b, a) == ends
}

fn row(from: usize) -> MatrixRow {
    let here = name(from);
    if here == SILENT {
        let nothing = || vec![None; NODES];
        let states = (vec![None; NODES], vec![None; NODES], vec![None; NODES]);
        return MatrixRow {
            missing: Some(RowMissing::NoAnswer),
            rtt_seconds: nothing(),
            baseline_seconds: nothing(),
            loss_ratio: nothing(),
            jitter_seconds: nothing(),
            state: states.0,
            path: states.1,
            measured_seconds: states.2,
            ..MatrixRow::default()
        };
    }
    let mut row = MatrixRow { age_seconds: Some((from % 9) as f64), ..MatrixRow::default() };
    for to in 0..NODES {
        let there = name(to);
        let known = from != to;
        let down = is_link(&here, &there, CUT);
        let state = match () {
            () if down => PeerState::Down,
            () if here == UNWELL => PeerState::Unknown,
            () if here == ILL || there == ILL => PeerState::Degraded,
            () => PeerState::Up,
        };
        let slower = if is_link(&here, &there, SLOWED) { 0.004 } else { 0.0 };
        let more = if (here.as_str(), there.as_str()) == DISPUTED { 1.5 } else { 1.0 };
        let rtt = usual(from, to) * (0.99 + 0.02 * chance(from, to)) * more + slower;
        row.state.push(known.then_some(state));
        row.rtt_seconds.push((known && !down).then_some(rtt));
        row.baseline_seconds.push(known.then(|| usual(from, to)));
        row.loss_ratio.push(known.then_some(if down { 1.0 } else { 0.0 }));
        row.jitter_seconds.push((known && !down).then_some(rtt / 100.0));
        row.path.push((known && !down).then_some(PathKind::Direct));
        row.measured_seconds.push(known.then_some(1));
    }
    row
}

fn wall() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs()
}

fn stamp(secs: u64) -> Timestamp {
    UnixTime::from_secs(secs).into()
}

fn spread(median: f64, width: f64) -> Spread {
    Spread {
        min_seconds: median - 1.5 * width,
        mean_seconds: median,
        p5_seconds: median - width,
        p25_seconds: median - 0.4 * width,
        p50_seconds: median,
        p75_seconds: median + 0.5 * width,
        p95_seconds: median + 1.4 * width,
        p99_seconds: median + 4.0 * width,
        max_seconds: median + 9.0 * width,
    }
}

/// A point that begins at `start`, in the eyes of `now`.
fn point(start: u64, step: u64, now: u64) -> Answer<HistoryPoint> {
    let probes = step.max(1);
    let in_gap = start + GAP_AGO >= now && start + step + GAP_AGO <= now + 300;
    let gap = in_gap || start + 60 * 86_400 < now;
    let noise = chance(usize::try_from(start / step).unwrap_or_default() % NODES, 7);
    let day = (start as f64 / 86_400.0 * std::f64::consts::TAU).sin();
    let stepped = if start + STEP_AGO >= now { STEP } else { 0.0 };
    let median = 0.0103 + 0.000_15 * day + 0.000_04 * noise + stepped;
    let known = |spread: Spread| (!gap).then_some(spread);
    let lost = u64::from(noise > 0.95) * probes.div_ceil(100);
    let ratio = |lost: u64| {
        let ratio = lost as f64 / probes as f64;
        (!gap).then_some(LossRatio {
            lost,
            sent: probes,
            ratio,
            low: ratio / 2.0,
            high: (ratio * 2.0).max(3.0 / probes as f64).min(1.0),
        })
    };
    let point = json!({
        "start": stamp(start),
        "gap": gap,
        "partial": false,
        "probes_sent": probes,
        "probes_answered": probes - lost,
        "probes_late": 0,
        "probes_duplicate": 0,
        "probes_reordered": 0,
        "longest_loss_run": lost.min(1),
        "path": known(spread(median, 0.000_1 + 0.000_03 * noise)),
        "tunnel": known(spread(median + 0.000_13, 0.000_1)),
        "host_delay": known(spread(0.000_12, 0.000_03)),
        "loss": ratio(lost),
        "loss_forward": ratio(0),
        "loss_reverse": ratio(lost),
        "jitter_seconds": (!gap).then_some(0.000_09),
        "states": {"up": if gap { 0 } else { step }},
        "path_changes": 0,
        "handshakes": 0,
        "rx_bytes": 0,
        "tx_bytes": 0,
    });
    serde_json::from_value(point).map_err(|error| ApiError::new(ErrorKind::Internal, error.to_string()))
}

fn not_asked<T>() -> Answer<T> {
    Err(ApiError::new(ErrorKind::Internal, "the page asks for this?"))
}

/// The answers.
struct Sheet {
    by_site: bool,
}

impl Backend for Sheet {
    async fn status(&self) -> Answer<Status> {
        let now = wall();
        let peers = NODES - 1;
        let problem = json!({"gravity": "notice", "kind": "certificate_expires",
            "message": "this node's certificate ends in 20 days", "advice": "run `meshctl renew`"});
        let certificate = json!({"expires": stamp(now + 20 * 86_400), "expires_in_seconds": 20 * 86_400, "serial": 1});
        let node = json!({"name": SELF, "node_id": "", "wireguard_key": "", "address_v4": "10.77.0.1",
            "address_v6": "fd00::1", "interface": "mesh0", "mtu_bytes": 1420, "listen": [], "endpoints": [],
            "version": "0.1.0", "started": stamp(now - 86_400), "uptime_seconds": 86_400,
            "certificate": certificate});
        let status = json!({"schema": SCHEMA, "now": stamp(now), "node": node,
            "mesh": {"name": "paper", "mesh_id": "", "members": NODES},
            "counts": {"peers": peers, "up": peers, "suspect": 0, "down": 0, "new": 0, "expired": 0},
            "problems": [problem], "peers": []});
        serde_json::from_value(status).map_err(|error| ApiError::new(ErrorKind::Internal, error.to_string()))
    }

    async fn matrix(&self) -> Answer<Matrix> {
        if self.by_site {
            return Err(ApiError::new(ErrorKind::BadRequest, "too many nodes to be shown one by one"));
        }
        let node = |node: usize| MatrixNode {
            name: name(node),
            node_id: format!("{node:032x}"),
            site: Some(SITES[node / PER_SITE].0.to_owned()),
            is_self: name(node) == SELF,
        };
        let nodes = (0..NODES).map(node).collect();
        Ok(Matrix { schema: SCHEMA, now: stamp(wall()), nodes, rows: (0..NODES).map(row).collect() })
    }

    async fn history(&self, request: HistoryRequest) -> Answer<History> {
        let now = wall();
        let secs = |time: Option<Timestamp>| time.map_or(now, |time| time.0.as_secs());
        let (since, until, step) = (secs(request.since), secs(request.until), request.step_seconds.unwrap_or(60));
        // As a daemon does.
        if step < 60 && now - since > 3_600 + step {
            return Err(ApiError::new(ErrorKind::BadRequest, "steps of 10 s exist for the last hour only"));
        }
        let points = (since..until).step_by(step as usize).map(|at| point(at, step, now)).collect::<Answer<_>>()?;
        Ok(History {
            schema: SCHEMA,
            peer: request.peer,
            node_id: "0".repeat(32),
            since: stamp(since),
            until: stamp(until),
            step_seconds: step,
            tier_seconds: 60,
            baseline_seconds: Some(0.0103),
            total: point(since, until - since, now)?,
            points,
        })
    }

    async fn events(&self, request: EventsRequest) -> Answer<Events> {
        let now = wall();
        let event = |(sequence, ago, kind, text): (u64, u64, &str, &str)| EventItem {
            sequence,
            at: stamp(now - ago),
            kind: kind.to_owned(),
            peer: request.peer.clone(),
            text: text.to_owned(),
        };
        let all = [
            (1, 30 * 86_400, "down", "does not answer"),
            (2, 30 * 86_400 - 240, "up", "answers"),
            (3, GAP_AGO - 300, "restarted", "the daemon was started"),
            (4, STEP_AGO, "latency_step", "step of +2.30 ms (was 10.30 ms)"),
        ];
        let wanted = |event: &EventItem| {
            request.since.is_none_or(|since| event.at >= since) && request.until.is_none_or(|until| event.at < until)
        };
        let events = all.into_iter().map(event).filter(wanted).collect();
        Ok(Events { schema: SCHEMA, events, truncated: false })
    }

    async fn site_matrix(&self) -> Answer<SiteMatrix> {
        let size = PER_SITE as u32;
        let site = |(name, _): (&str, f64)| Site { name: Some(name.to_owned()), nodes: size };
        let pair = |from: usize, to: usize| SitePair {
            links: if from == to { size * (size - 1) } else { size * size },
            troubled: u32::from((from, to) == (0, 3)) * 7,
            outside: 0,
            disagreeing: 0,
            rtt_p50_seconds: Some(usual(from * PER_SITE, to * PER_SITE)),
            rtt_max_seconds: Some(2.0 * usual(from * PER_SITE, to * PER_SITE)),
            baseline_seconds: Some(usual(from * PER_SITE, to * PER_SITE)),
            loss_max_ratio: Some(0.0),
        };
        let pairs = (0..SITES.len()).map(|from| (0..SITES.len()).map(|to| pair(from, to)).collect()).collect();
        Ok(SiteMatrix {
            schema: SCHEMA,
            now: stamp(wall()),
            nodes: NODES as u32,
            rows: NODES as u32,
            missing: 0,
            oldest_seconds: Some(8.0),
            sites: SITES.into_iter().map(site).collect(),
            pairs,
        })
    }

    async fn node(&self) -> Answer<NodeInfo> {
        not_asked()
    }

    async fn members(&self) -> Answer<Members> {
        not_asked()
    }

    async fn ledger(&self) -> Answer<LinkLedger> {
        not_asked()
    }

    async fn paths(&self) -> Answer<PathList> {
        not_asked()
    }

    async fn policy(&self) -> Answer<PolicyInfo> {
        not_asked()
    }

    async fn policy_check(&self, _request: PolicyCheckRequest) -> Answer<PolicyChecked> {
        not_asked()
    }

    async fn certificates(&self) -> Answer<Certificates> {
        not_asked()
    }

    async fn take_certificates(&self, _: CertificatesRequest) -> Answer<CertificatesTaken> {
        not_asked()
    }

    async fn gateways(&self) -> Answer<GatewayList> {
        not_asked()
    }

    async fn drain(&self, _: DrainRequest) -> Answer<GatewayList> {
        not_asked()
    }

    async fn lockdown(&self) -> Answer<LockdownInfo> {
        not_asked()
    }

    async fn try_lockdown(&self, _: LockdownTrialRequest) -> Answer<LockdownInfo> {
        not_asked()
    }

    async fn confirm_lockdown(&self) -> Answer<LockdownInfo> {
        not_asked()
    }

    async fn lift_lockdown(&self) -> Answer<LockdownInfo> {
        not_asked()
    }

    async fn policy_trace(&self, _: PolicyTraceRequest) -> Answer<mpsc::Receiver<TraceLine>> {
        not_asked()
    }

    async fn forwards(&self) -> Answer<ForwardList> {
        not_asked()
    }

    async fn names(&self) -> Answer<NameList> {
        not_asked()
    }

    async fn switch_forward(&self, _: SwitchRequest) -> Answer<Switched> {
        not_asked()
    }

    async fn health(&self) -> Answer<Health> {
        not_asked()
    }

    async fn version(&self) -> Answer<Version> {
        not_asked()
    }

    async fn metrics(&self, _: Option<String>) -> Answer<(&'static str, String)> {
        not_asked()
    }

    async fn alerts(&self) -> Answer<AlertList> {
        not_asked()
    }

    async fn test_alert(&self, _: AlertTestRequest) -> Answer<AlertTested> {
        not_asked()
    }

    async fn ping(&self, _: PingRequest) -> Answer<mpsc::Receiver<PingLine>> {
        not_asked()
    }

    async fn invite(&self, _: InviteRequest) -> Answer<Invited> {
        not_asked()
    }

    async fn invites(&self) -> Answer<InviteList> {
        not_asked()
    }

    async fn revoke_invite(&self, _: InviteRevokeRequest) -> Answer<InviteRevoked> {
        not_asked()
    }

    async fn revoke(&self, _: RevokeRequest) -> Answer<Revoked> {
        not_asked()
    }

    async fn renew(&self) -> Answer<Renewed> {
        not_asked()
    }

    async fn plan(&self) -> Answer<Plan> {
        not_asked()
    }

    async fn reload(&self) -> Answer<Plan> {
        not_asked()
    }

    async fn restart(&self) -> Answer<Restarting> {
        not_asked()
    }
}
