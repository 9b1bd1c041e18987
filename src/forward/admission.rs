//! How connections are admitted to a target, and how they move to another.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::net::TcpStream;
use tokio::sync::{Notify, watch};

use super::relay::{self, Moved};
use super::selection::{Choice, Health, Selection};
use super::{proxy_header, selection};
use crate::config::{self, ForwardSource, Target, TargetHost};
use crate::identity::NodeName;
use crate::platform::clock;
use crate::telemetry::DelayHistogram;
use crate::time::Instant;

/// Connect times kept of each target, for its percentiles.
const CONNECT_TIMES: usize = 1_000;
/// How long a new connection waits before it tries a target again that refused it.
const TRY_AGAIN: Duration = Duration::from_millis(100);
/// How long a switch waits for connections it closes: each ends as soon as its task runs.
const CLOSING: Duration = Duration::from_secs(2);

/// Overlay addresses of members, by name.
pub(super) type Addresses = Arc<ArcSwap<BTreeMap<NodeName, IpAddr>>>;

/// A forward at work.
#[derive(Debug)]
pub struct Forward {
    state: Mutex<State>,
    addresses: Addresses,
    /// Connections of a generation below this end.
    close_below: watch::Sender<u64>,
    /// Whether new connections wait, because a switch is about to happen.
    held: watch::Sender<bool>,
    /// Something ended.
    ended: Notify,
    /// The looks are due earlier than they were.
    look: Notify,
    /// One switch at a time.
    switching: tokio::sync::Mutex<()>,
}

#[derive(Debug)]
struct State {
    settings: Arc<config::Forward>,
    selection: Selection,
    /// Counts the times that the target in use changed, so that a connection that was being made then is made again.
    generation: u64,
    counters: BTreeMap<Target, Counters>,
    open: BTreeMap<u64, Open>,
    next: u64,
    refused: u64,
}

#[derive(Debug, Default)]
struct Counters {
    opened: u64,
    failed: u64,
    failure: Option<String>,
    to_target: u64,
    to_client: u64,
    connect_times: VecDeque<Duration>,
    connects: DelayHistogram,
}

#[derive(Debug)]
struct Open {
    client: SocketAddr,
    target: Target,
    generation: u64,
    since: Instant,
    moved: Arc<Moved>,
}

/// Whether a forward does what it should; cheap beside its [`Picture`], however many connections there are.
#[derive(Clone, Debug)]
pub struct Standing {
    /// Its settings.
    pub settings: Arc<config::Forward>,
    /// What is in use.
    pub choice: Choice,
    /// How the target in use is.
    pub health: Health,
    /// Why the last connection to it or look at it failed; `None` where it did not.
    pub failure: Option<String>,
}

/// A forward at one moment.
#[derive(Clone, Debug)]
pub struct Picture {
    /// Its settings.
    pub settings: Arc<config::Forward>,
    /// What is in use.
    pub choice: Choice,
    /// The targets, in the order of the settings.
    pub targets: Vec<TargetPicture>,
    /// The open connections, the oldest first.
    pub connections: Vec<Connection>,
    /// Connections that were refused because there were too many.
    pub refused: u64,
}

/// A target at one moment.
#[derive(Clone, Debug)]
pub struct TargetPicture {
    /// The target.
    pub target: Target,
    /// Its address; `None` while no member of that name is known.
    pub address: Option<SocketAddr>,
    /// How it is.
    pub health: Health,
    /// Why the last connection or look failed; `None` where it did not.
    pub failure: Option<String>,
    /// Connections that are open.
    pub open: u64,
    /// Connections that were made.
    pub opened: u64,
    /// Connections that could not be made, each counted once per attempt.
    pub failed: u64,
    /// Bytes from clients.
    pub to_target: u64,
    /// Bytes to clients.
    pub to_client: u64,
    /// Time to connect, the median and the 99th percentile of the last thousand.
    pub connect: Option<(Duration, Duration)>,
    /// All of them.
    pub connects: DelayHistogram,
}

/// An open connection.
#[derive(Clone, Debug)]
pub struct Connection {
    /// Where it came from.
    pub client: SocketAddr,
    /// Where it goes.
    pub target: Target,
    /// How long it has been open.
    pub age: Duration,
    /// How long nothing has gone through it.
    pub idle: Duration,
    /// Bytes from the client.
    pub to_target: u64,
    /// Bytes to the client.
    pub to_client: u64,
}

/// Why a forward was not switched; everything is as it was.
#[derive(Debug, thiserror::Error)]
pub enum SwitchError {
    /// The forward has no such target.
    #[error("{0} is no target of this forward")]
    NoTarget(Target),
    /// The target takes no connections.
    #[error("{target} takes no connections: {why}")]
    Unreachable {
        /// The target.
        target: Target,
        /// What happened.
        why: String,
    },
}

/// What a new connection is given.
struct Admission {
    settings: Arc<config::Forward>,
    place: usize,
    target: Target,
    generation: u64,
}

impl Forward {
    pub(super) fn new(settings: config::Forward, addresses: Addresses) -> Forward {
        let selection = Selection::new(settings.targets.len(), settings.failover, clock::now());
        let state = State {
            settings: Arc::new(settings),
            selection,
            generation: 0,
            counters: BTreeMap::new(),
            open: BTreeMap::new(),
            next: 0,
            refused: 0,
        };
        Forward {
            state: Mutex::new(state),
            addresses,
            close_below: watch::Sender::new(0),
            held: watch::Sender::new(false),
            ended: Notify::new(),
            look: Notify::new(),
            switching: tokio::sync::Mutex::new(()),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The settings.
    pub fn settings(&self) -> Arc<config::Forward> {
        Arc::clone(&self.state().settings)
    }

    /// Takes other settings. The target in use stays where it is still a target; open connections stay in any case.
    pub(super) fn configure(&self, settings: &config::Forward) {
        let mut state = self.state();
        if *state.settings == *settings {
            return;
        }
        let (used, choice) = (state.used(), state.selection.choice());
        let same_targets = state.settings.targets == settings.targets;
        state.settings = Arc::new(settings.clone());
        if same_targets {
            state.selection.set_failover(settings.failover);
        } else {
            state.selection = Selection::new(settings.targets.len(), settings.failover, clock::now());
            // Who had the first target in use gets the new first; who left it stays where it is.
            let left = choice.pinned || choice.target != 0;
            if let Some(target) =
                settings.targets.iter().position(|target| Some(target) == used.as_ref()).filter(|_| left)
            {
                state.selection.choose(Choice { target, pinned: choice.pinned });
            }
        }
        if state.used() != used {
            state.generation += 1;
        }
        drop(state);
        self.look.notify_one();
    }

    /// Uses a target from now on, without a look at it: what was written down holds after a restart.
    pub fn restore(&self, target: &Target, pinned: bool) -> Result<(), SwitchError> {
        self.use_target(target, pinned).map(|_| ())
    }

    /// What is in use now.
    pub fn used(&self) -> Option<(Target, bool)> {
        let state = self.state();
        state.used().map(|target| (target, state.selection.choice().pinned))
    }

    /// Sees whether a target takes connections.
    ///
    /// # Errors
    /// It is no target of this forward, or takes none.
    pub async fn probe(&self, target: &Target) -> Result<(), SwitchError> {
        let settings = self.settings();
        if !settings.targets.contains(target) {
            return Err(SwitchError::NoTarget(target.clone()));
        }
        let connected = self.connect(target, settings.connect_timeout).await;
        connected.map(|_| ()).map_err(|why| SwitchError::Unreachable { target: target.clone(), why: why.to_string() })
    }

    /// Moves new connections to a target, and returns how many old ones go on.
    ///
    /// There is one moment of the switch: whoever is connected before it stays where it is, and whoever is not goes to the
    /// new target, also where a connection to the old one was being made just then. With `close`, new connections wait
    /// until the old ones are closed; none is refused.
    ///
    /// # Errors
    /// It is no target of this forward.
    pub async fn switch(&self, target: &Target, pinned: bool, close: bool) -> Result<u64, SwitchError> {
        let _alone = self.switching.lock().await;
        // Held before anything is closed, so that no new connection is served by the old target after the first is gone.
        self.held.send_replace(close);
        let switched = self.use_target(target, pinned);
        if let (Ok(generation), true) = (&switched, close) {
            self.close_below.send_replace(*generation);
            let _ = tokio::time::timeout(CLOSING, self.wait_for_old(*generation)).await;
        }
        self.held.send_replace(false);
        let generation = switched?;
        Ok(self.state().old(generation, target))
    }

    fn use_target(&self, target: &Target, pinned: bool) -> Result<u64, SwitchError> {
        let mut state = self.state();
        let place = state.settings.targets.iter().position(|one| one == target);
        let Some(place) = place else { return Err(SwitchError::NoTarget(target.clone())) };
        if state.selection.choice().target != place {
            state.generation += 1;
        }
        state.selection.choose(Choice { target: place, pinned });
        Ok(state.generation)
    }

    async fn wait_for_old(&self, generation: u64) {
        loop {
            let ended = self.ended.notified();
            tokio::pin!(ended);
            // Before looking, so that no end is missed.
            ended.as_mut().enable();
            if !self.state().open.values().any(|open| open.generation < generation) {
                return;
            }
            ended.await;
        }
    }

    /// Whether it does what it should.
    pub fn standing(&self) -> Standing {
        let state = self.state();
        let choice = state.selection.choice();
        let counters = state.used().and_then(|target| state.counters.get(&target));
        Standing {
            settings: Arc::clone(&state.settings),
            choice,
            health: state.selection.health(choice.target),
            failure: counters.and_then(|counters| counters.failure.clone()),
        }
    }

    /// A forward at this moment.
    pub fn picture(&self) -> Picture {
        let now = clock::now();
        let state = self.state();
        let targets = state.settings.targets.iter().enumerate().map(|(place, target)| {
            let none = Counters::default();
            let counters = state.counters.get(target).unwrap_or(&none);
            let open = || state.open.values().filter(|open| open.target == *target);
            let sum = |of: fn(&Moved) -> &std::sync::atomic::AtomicU64| -> u64 {
                open().map(|open| of(&open.moved).load(Ordering::Relaxed)).sum()
            };
            TargetPicture {
                target: target.clone(),
                address: self.resolve(target),
                health: state.selection.health(place),
                failure: counters.failure.clone(),
                open: open().count() as u64,
                opened: counters.opened,
                failed: counters.failed,
                to_target: counters.to_target + sum(|moved| &moved.to_target),
                to_client: counters.to_client + sum(|moved| &moved.to_client),
                connect: percentiles(&counters.connect_times),
                connects: counters.connects.clone(),
            }
        });
        let connections = state.open.values().map(|open| {
            let last = Instant::from_nanos(open.moved.last.load(Ordering::Relaxed));
            Connection {
                client: open.client,
                target: open.target.clone(),
                age: now.saturating_since(open.since),
                idle: now.saturating_since(last),
                to_target: open.moved.to_target.load(Ordering::Relaxed),
                to_client: open.moved.to_client.load(Ordering::Relaxed),
            }
        });
        Picture {
            settings: Arc::clone(&state.settings),
            choice: state.selection.choice(),
            targets: targets.collect(),
            connections: connections.collect(),
            refused: state.refused,
        }
    }

    /// Serves one connection to its end.
    pub(super) async fn serve(&self, client_stream: TcpStream, client: SocketAddr) {
        relay::prepare(&client_stream);
        let settings = self.settings();
        let made = tokio::time::timeout(settings.connect_timeout, self.make(client)).await;
        let Ok(Some((number, generation, target_stream, moved))) = made else { return relay::reset(&client_stream) };
        let mut close = self.close_below.subscribe();
        let carried = async {
            if settings.source == ForwardSource::ProxyV2
                && let Ok(arrived) = client_stream.local_addr()
            {
                relay::write_all(&target_stream, &proxy_header::encode(client, arrived)).await?;
            }
            relay::relay(&client_stream, &target_stream, &moved).await
        };
        let orderly = tokio::select! {
            carried = carried => carried.is_ok(),
            // An error means that there is nobody left who could close it, which is when everything ends.
            _ = close.wait_for(|below| generation < *below) => false,
        };
        if !orderly {
            relay::reset(&client_stream);
            relay::reset(&target_stream);
        }
        // Closed before it counts as gone: whoever waits for that sees no connection at both targets.
        drop((client_stream, target_stream));
        self.forget(number);
    }

    /// Connects to the target in use, again and again while it refuses, also across a switch; `None` where there are too
    /// many connections.
    async fn make(&self, client: SocketAddr) -> Option<(u64, u64, TcpStream, Arc<Moved>)> {
        loop {
            let mut held = self.held.subscribe();
            // An error would mean that this forward is gone, which it is not while it is borrowed.
            let _ = held.wait_for(|held| !held).await;
            let admission = self.admit()?;
            let began = clock::now();
            match self.connect(&admission.target, admission.settings.connect_timeout).await {
                Ok(stream) => {
                    relay::prepare(&stream);
                    if let Some((number, moved)) = self.enter(&admission, client, began) {
                        return Some((number, admission.generation, stream, moved));
                    }
                    // The switch came between: this connection is made again. The target saw no byte of it.
                    relay::reset(&stream);
                }
                Err(error) => {
                    self.failed(&admission, &error);
                    tokio::time::sleep(TRY_AGAIN).await;
                }
            }
        }
    }

    fn admit(&self) -> Option<Admission> {
        let mut state = self.state();
        if state.open.len() >= usize::from(state.settings.max_connections) {
            state.refused += 1;
            return None;
        }
        let place = state.selection.choice().target;
        let target = state.used()?;
        Some(Admission { settings: Arc::clone(&state.settings), place, target, generation: state.generation })
    }

    /// Counts a connection that was made, unless a switch came between.
    fn enter(&self, admission: &Admission, client: SocketAddr, began: Instant) -> Option<(u64, Arc<Moved>)> {
        let now = clock::now();
        let mut state = self.state();
        if state.generation != admission.generation || *self.held.borrow() {
            return None;
        }
        let counters = state.counters.entry(admission.target.clone()).or_default();
        counters.opened += 1;
        counters.failure = None;
        if counters.connect_times.len() == CONNECT_TIMES {
            counters.connect_times.pop_front();
        }
        counters.connect_times.push_back(now.saturating_since(began));
        counters.connects.record(now.saturating_since(began));
        let moved = Arc::new(Moved::default());
        moved.last.store(now.as_nanos(), Ordering::Relaxed);
        let number = state.next;
        state.next += 1;
        let open = Open {
            client,
            target: admission.target.clone(),
            generation: admission.generation,
            since: now,
            moved: Arc::clone(&moved),
        };
        state.open.insert(number, open);
        Some((number, moved))
    }

    fn failed(&self, admission: &Admission, error: &io::Error) {
        let mut state = self.state();
        let counters = state.counters.entry(admission.target.clone()).or_default();
        counters.failed += 1;
        counters.failure = Some(error.to_string());
        if state.generation == admission.generation {
            state.selection.connection_failed(admission.place, clock::now());
        }
        drop(state);
        self.look.notify_one();
    }

    fn forget(&self, number: u64) {
        let mut state = self.state();
        if let Some(open) = state.open.remove(&number) {
            let counters = state.counters.entry(open.target).or_default();
            counters.to_target += open.moved.to_target.load(Ordering::Relaxed);
            counters.to_client += open.moved.to_client.load(Ordering::Relaxed);
        }
        drop(state);
        self.ended.notify_waiters();
    }

    fn resolve(&self, target: &Target) -> Option<SocketAddr> {
        let address = match &target.host {
            TargetHost::Address(address) => *address,
            TargetHost::Node(name) => *self.addresses.load().get(name)?,
        };
        Some(SocketAddr::new(address, target.port))
    }

    async fn connect(&self, target: &Target, patience: Duration) -> io::Result<TcpStream> {
        let unknown = || io::Error::new(io::ErrorKind::NotFound, "no member of that name is known");
        let address = self.resolve(target).ok_or_else(unknown)?;
        let late = |_| io::Error::new(io::ErrorKind::TimedOut, "it does not answer");
        tokio::time::timeout(patience, TcpStream::connect(address)).await.map_err(late)?
    }

    /// Looks at the targets for ever.
    pub(super) async fn watch(self: Arc<Self>) {
        loop {
            let now = clock::now();
            let (due, next, settings) = {
                let mut state = self.state();
                let settings = Arc::clone(&state.settings);
                let due = state.selection.take_due(now, settings.check_interval);
                (due, state.selection.next_due(), settings)
            };
            for place in due {
                let (forward, settings) = (Arc::clone(&self), Arc::clone(&settings));
                tokio::spawn(async move { forward.look_at(&settings, place).await });
            }
            let sleep = next.map_or(selection::RETRY, |next| next.saturating_since(now));
            tokio::select! {
                () = tokio::time::sleep(sleep) => {}
                () = self.look.notified() => {}
            }
        }
    }

    /// Looks at one target. A look at settings that are no longer those is not counted.
    async fn look_at(&self, settings: &Arc<config::Forward>, place: usize) {
        let Some(target) = settings.targets.get(place) else { return };
        let looked = self.connect(target, settings.connect_timeout).await;
        if let Ok(stream) = &looked {
            // Left without a word, so that the service counts no broken conversation where it has not said anything yet.
            relay::reset(stream);
        }
        let mut state = self.state();
        if !Arc::ptr_eq(&state.settings, settings) {
            return;
        }
        let (used, health) = (state.used(), state.selection.health(place));
        state.selection.looked(place, looked.is_ok(), clock::now());
        let counters = state.counters.entry(target.clone()).or_default();
        counters.failure = looked.err().map(|error| error.to_string());
        let now = state.selection.health(place);
        if health != now && now == Health::Down {
            let why = state.counters.get(target).and_then(|counters| counters.failure.clone()).unwrap_or_default();
            tracing::warn!(forward = %settings.name, %target, "the target is down: {why}");
        } else if health == Health::Down && now != health {
            tracing::info!(forward = %settings.name, %target, "the target is up again");
        }
        if state.used() != used {
            state.generation += 1;
            if let Some(target) = state.used() {
                tracing::warn!(forward = %settings.name, %target, "connections go to the next target now");
            }
        }
        drop(state);
        self.look.notify_one();
    }
}

impl State {
    fn used(&self) -> Option<Target> {
        self.settings.targets.get(self.selection.choice().target).cloned()
    }

    /// Connections from before a generation that go to another target than this one.
    fn old(&self, generation: u64, target: &Target) -> u64 {
        self.open.values().filter(|open| open.generation < generation && open.target != *target).count() as u64
    }
}

/// The median and the 99th percentile, by nearest rank.
fn percentiles(times: &VecDeque<Duration>) -> Option<(Duration, Duration)> {
    let mut sorted: Vec<Duration> = times.iter().copied().collect();
    sorted.sort_unstable();
    let rank = |percent: usize| sorted.get((sorted.len() * percent).div_ceil(100).saturating_sub(1)).copied();
    Some((rank(50)?, rank(99)?))
}
