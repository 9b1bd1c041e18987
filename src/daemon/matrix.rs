//! The rows of the matrix: pulled when somebody wants to see them, and this node's own, for whoever pulls.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::backend::call;
use super::driver::{Command, Driver};
use crate::api::{
    self, Answer, ApiError, ErrorKind, MatrixNode, MatrixRow, PathKind, PeerState, PeerStatus, RowMissing, SCHEMA,
    Site, SiteMatrix, Timestamp,
};
use crate::identity::NodeId;
use crate::platform::clock;
use crate::telemetry::matrix::{Matrix, Row, SitePair, is_outside};
use crate::time::Instant;
use crate::wire::row::{Cell, CellPath, CellState, short_id};

/// Rows this young are shown again without asking: several pages and terminals look at once, and medians of five minutes do
/// not move faster.
const FRESH: Duration = Duration::from_secs(5);
/// How long a caller waits for a pull. A thousand nodes 100 ms away take four seconds; whoever has not answered by then is
/// shown as he was.
const PULL_PATIENCE: Duration = Duration::from_secs(10);
/// Cells kept, 30 bytes each: all of a mesh of a thousand nodes. Of a larger one so many rows are pulled as fit.
const CELLS: usize = 1_000_000;
/// Rows that nobody has looked at for this long are forgotten.
const IDLE: Duration = Duration::from_secs(600);
/// How long this node's own row is sent again as it was: made from statistics, which must not be work for each who asks.
const OWN_FRESH: Duration = Duration::from_secs(1);

/// What was pulled, and who waits for it.
#[derive(Default)]
pub(super) struct Rows {
    matrix: Matrix,
    /// When the newest pull began, and when it was over.
    began: Option<Instant>,
    ended: Option<Instant>,
    waiting: Vec<oneshot::Sender<()>>,
    wanted: Instant,
    /// This node's own row, and when it was made.
    own: BTreeMap<NodeId, Cell>,
    own_made: Option<Instant>,
}

/// A member as the matrix places it.
struct Place {
    node: NodeId,
    shown: MatrixNode,
    missing: Option<RowMissing>,
}

/// Everything an answer is made of, so that it can be made off the control task.
struct Picture {
    now: Instant,
    at: Timestamp,
    matrix: Matrix,
    /// By site, then by name; those without a site last.
    places: Vec<Place>,
}

impl Driver {
    /// Sends this node's row to the peer that asked for it.
    pub(super) fn answer_row(&mut self, to: NodeId, number: u32) {
        let cells: Vec<Cell> = self.own_row(clock::now()).values().copied().collect();
        self.engine.answer_row(to, number, &cells);
    }

    /// Keeps a peer's row.
    pub(super) fn take_row(&mut self, from: NodeId, links: &BTreeMap<NodeId, Cell>) {
        self.rows.matrix.take(from, Row::new(links, clock::now()));
    }

    /// The pull is over: whoever waits for it can be answered.
    pub(super) fn end_pull(&mut self) {
        if self.rows.began > self.rows.ended {
            self.rows.ended = Some(clock::now());
        }
        for waiting in self.rows.waiting.drain(..) {
            // Whoever asked may have gone.
            let _ = waiting.send(());
        }
    }

    /// Forgets rows that nobody looks at.
    pub(super) fn tidy_rows(&mut self, now: Instant) {
        if self.rows.began.is_some() && now >= self.rows.wanted + IDLE {
            self.rows = Rows::default();
        }
    }

    fn own_row(&mut self, now: Instant) -> &BTreeMap<NodeId, Cell> {
        if self.rows.own_made.is_none_or(|made| now >= made + OWN_FRESH) {
            let wall = clock::wall();
            let peers = self.engine.view(now).peers;
            let said = peers.iter().map(|peer| (peer.node, cell(peer.node, &self.peer_status(peer, now, wall))));
            self.rows.own = said.collect();
            self.rows.own_made = Some(now);
        }
        &self.rows.own
    }

    /// Sees to it that the rows are fresh; returns what to wait for where they are not yet.
    fn want_rows(&mut self) -> Option<oneshot::Receiver<()>> {
        let now = clock::now();
        self.rows.wanted = now;
        let fresh = self.rows.ended.is_some_and(|ended| now < ended + FRESH);
        let under_way = self.rows.began.is_some() && self.rows.began > self.rows.ended;
        if fresh && !under_way {
            return None;
        }
        let (done, waiting) = oneshot::channel();
        self.rows.waiting.retain(|waiting| !waiting.is_closed());
        self.rows.waiting.push(done);
        if !under_way {
            self.rows.began = Some(now);
            let members = self.engine.membership().len().max(1);
            self.engine.pull_rows(CELLS / members, now);
            self.drain();
        }
        Some(waiting)
    }

    fn picture(&mut self) -> Picture {
        let (now, own) = (clock::now(), self.engine.node());
        let row = Row::new(self.own_row(now), now);
        self.rows.matrix.take(own, row);
        let membership = self.engine.membership();
        self.rows.matrix.retain(|node| membership.get(node).is_some());
        let began = self.rows.began.unwrap_or(now);
        let most = CELLS / membership.len().max(1);
        let missing = |node| {
            let answered = self.rows.matrix.row(node).is_some_and(|row| row.taken >= began);
            let session = self.links.get(node).is_some_and(|link| link.peer.tunnel().status(now).session.is_some());
            match (answered, session) {
                (true, _) => None,
                (false, false) => Some(RowMissing::NoSession),
                (false, true) if membership.len() > most => Some(RowMissing::NotAsked),
                (false, true) => Some(RowMissing::NoAnswer),
            }
        };
        let mut places: Vec<Place> = membership
            .members()
            .map(|(node, member)| {
                let certificate = member.certificate();
                let shown = MatrixNode {
                    name: certificate.name.to_string(),
                    node_id: node.to_string(),
                    site: certificate.tags.iter().find_map(|tag| tag.site()).map(str::to_owned),
                    is_self: node == own,
                };
                Place { node, shown, missing: missing(node) }
            })
            .collect();
        places.sort_by(|a, b| {
            let order =
                |place: &Place| (place.shown.site.is_none(), place.shown.site.clone(), place.shown.name.clone());
            order(a).cmp(&order(b))
        });
        Picture { now, at: Timestamp(clock::wall()), matrix: self.rows.matrix.clone(), places }
    }
}

/// Pulls the rows, where they are not fresh, and returns the matrix by node.
pub(super) async fn by_node(commands: &mpsc::Sender<Command>) -> Answer<api::Matrix> {
    let picture = pulled(commands).await?;
    if picture.places.len() > api::Matrix::NODE_LIMIT {
        let message = format!("a matrix of {} nodes is too large to be shown node by node", picture.places.len());
        return Err(ApiError::new(ErrorKind::BadRequest, message).advise("ask for sites: meshctl matrix --by site"));
    }
    elsewhere(move || picture.by_node()).await
}

/// Pulls the rows, where they are not fresh, and returns the matrix by site.
pub(super) async fn by_site(commands: &mpsc::Sender<Command>) -> Answer<SiteMatrix> {
    let picture = pulled(commands).await?;
    elsewhere(move || picture.by_site()).await
}

async fn pulled(commands: &mpsc::Sender<Command>) -> Answer<Picture> {
    if let Some(waiting) = call(commands, Driver::want_rows).await? {
        // Without the last rows the picture says of each how old it is.
        let _ = timeout(PULL_PATIENCE, waiting).await;
    }
    call(commands, Driver::picture).await
}

/// Does work on a thread where nobody waits for it: a matrix has up to a million cells.
async fn elsewhere<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Answer<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|_| ApiError::new(ErrorKind::Internal, "the matrix could not be made"))
}

impl Picture {
    fn by_node(&self) -> api::Matrix {
        api::Matrix {
            schema: SCHEMA,
            now: self.at,
            nodes: self.places.iter().map(|place| place.shown.clone()).collect(),
            rows: self.places.iter().map(|place| self.row(place)).collect(),
        }
    }

    fn row(&self, place: &Place) -> MatrixRow {
        let row = self.matrix.row(place.node);
        let cells: Vec<Option<Cell>> = self.places.iter().map(|other| row?.link(other.node)).collect();
        let seconds =
            |of: fn(&Cell) -> Option<Duration>| cells.iter().map(|cell| of(cell.as_ref()?).map(rounded)).collect();
        let places = |holds: &dyn Fn(NodeId, &Cell) -> bool| {
            let cells = (0..).zip(&cells).zip(&self.places);
            let held = cells.filter(|((_, cell), other)| cell.as_ref().is_some_and(|cell| holds(other.node, cell)));
            held.map(|((at, _), _)| at).collect()
        };
        MatrixRow {
            age_seconds: row.map(|row| rounded(self.now.saturating_since(row.taken))),
            missing: place.missing,
            rtt_seconds: seconds(|cell| cell.rtt),
            baseline_seconds: seconds(|cell| cell.baseline),
            loss_ratio: cells.iter().map(|cell| cell.as_ref()?.loss.map(|loss| (loss * 1e5).round() / 1e5)).collect(),
            jitter_seconds: seconds(|cell| cell.jitter),
            state: cells.iter().map(|cell| state(cell.as_ref()?.state)).collect(),
            path: cells.iter().map(|cell| path(cell.as_ref()?.path)).collect(),
            measured_seconds: cells.iter().map(|cell| cell.as_ref()?.age.map(|age| age.as_secs())).collect(),
            outside: places(&|_, cell| is_outside(cell)),
            disagrees: places(&|other, _| self.matrix.disagree(place.node, other)),
        }
    }

    fn by_site(&self) -> SiteMatrix {
        let mut sites: Vec<Site> = Vec::new();
        let mut site_of = BTreeMap::new();
        // They come in the order of their sites.
        for place in &self.places {
            match sites.last_mut().filter(|site| site.name == place.shown.site) {
                Some(site) => site.nodes += 1,
                None => sites.push(Site { name: place.shown.site.clone(), nodes: 1 }),
            }
            site_of.insert(place.node, sites.len() - 1);
        }
        let pairs = self.matrix.site_pairs(sites.len(), |node| site_of.get(&node).copied());
        let ages = self.places.iter().filter_map(|place| self.matrix.row(place.node)).map(|row| row.taken);
        let known = self.places.iter().filter(|place| self.matrix.row(place.node).is_some()).count();
        let missing = self.places.iter().filter(|place| place.missing.is_some()).count();
        SiteMatrix {
            schema: SCHEMA,
            now: self.at,
            nodes: count(self.places.len()),
            rows: count(known),
            missing: count(missing),
            oldest_seconds: ages.min().map(|taken| rounded(self.now.saturating_since(taken))),
            sites,
            pairs: pairs.iter().map(|line| line.iter().map(site_pair).collect()).collect(),
        }
    }
}

fn site_pair(pair: &SitePair) -> api::SitePair {
    api::SitePair {
        links: pair.links,
        troubled: pair.troubled,
        outside: pair.outside,
        disagreeing: pair.disagreeing,
        rtt_p50_seconds: pair.rtt.map(rounded),
        rtt_max_seconds: pair.rtt_max.map(rounded),
        baseline_seconds: pair.baseline.map(rounded),
        loss_max_ratio: pair.loss_max,
    }
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

/// Seconds to a tenth of a microsecond: more digits are noise, and a matrix has many.
fn rounded(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e7).round() / 1e7
}

/// What this node says of a link.
fn cell(node: NodeId, status: &PeerStatus) -> Cell {
    let seconds = |seconds: f64| Duration::try_from_secs_f64(seconds).ok();
    let state = match status.state {
        PeerState::Up => CellState::Up,
        PeerState::Degraded => CellState::Degraded,
        PeerState::Suspect => CellState::Suspect,
        PeerState::Unknown => CellState::Unknown,
        PeerState::Down => CellState::Down,
        PeerState::New => CellState::New,
        PeerState::Expired => CellState::Expired,
    };
    let path = match status.path.as_ref().map(|path| path.kind) {
        Some(PathKind::Direct) => CellPath::Direct,
        Some(PathKind::Relay) => CellPath::Relay,
        Some(PathKind::Tcp) => CellPath::Tcp,
        None => CellPath::None,
    };
    let link = status.link.as_ref();
    Cell {
        peer: short_id(node),
        rtt: link.and_then(|link| seconds(link.rtt_p50_seconds)),
        baseline: link.and_then(|link| link.rtt_baseline_seconds).and_then(seconds),
        loss: status.loss.map(|loss| loss.ratio),
        jitter: link.and_then(|link| seconds(link.jitter_seconds)),
        state,
        path,
        age: None,
    }
}

fn state(state: CellState) -> Option<PeerState> {
    match state {
        CellState::Up => Some(PeerState::Up),
        CellState::Degraded => Some(PeerState::Degraded),
        CellState::Suspect => Some(PeerState::Suspect),
        CellState::Down => Some(PeerState::Down),
        CellState::New => Some(PeerState::New),
        CellState::Expired => Some(PeerState::Expired),
        CellState::Unknown => Some(PeerState::Unknown),
    }
}

fn path(path: CellPath) -> Option<PathKind> {
    match path {
        CellPath::None => None,
        CellPath::Direct => Some(PathKind::Direct),
        CellPath::Relay => Some(PathKind::Relay),
        CellPath::Tcp => Some(PathKind::Tcp),
    }
}
