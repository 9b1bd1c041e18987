//! The one task that owns everything that decides.
//!
//! A control message's way in: the data thread opens it and queues it, [`Driver::run`] takes it and gives it to the engine
//! ([`Engine::handle_message`]), [`Driver::drain`] does what the engine asks for. A control message's way out: the engine's
//! [`Output::Message`], sealed and sent here, by the same tunnel and socket as data.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::mpsc;

use super::alerts::Alerts;
use super::confinement::Confinement;
use super::firewall::Firewall;
use super::forwards::Forwards;
use super::gateways::Gateways;
use super::hold::Leaving;
use super::ledger::Ledger;
use super::links::Links;
use super::matrix::Rows;
use super::monitor::{Changed, Monitor};
use super::names::Names;
use super::observer::Observer;
use super::outage::woken_text;
use super::pages::Pages;
use super::paths::path_of;
use super::reload::Refusal;
use super::restart::Ended;
use super::service::Service;
use super::signals::{Signal, Signals};
use super::startup::StartError;
use super::state::StateFiles;
use super::stock::Stock;
use crate::config::Config;
use crate::control::output::{Event, Output, PeerChange, Persist};
use crate::control::probe::LinkState;
use crate::control::{self, Engine, SessionEvent};
use crate::dataplane::{self, Dataplane, Receivers};
use crate::history::Writer;
use crate::identity::NodeId;
use crate::platform::clock;
use crate::platform::handover::Program;
use crate::platform::host_state::HostState;
use crate::platform::host_watch::{HostEvent, HostWatch};
use crate::platform::netlink;
use crate::telemetry::EventKind;
use crate::time::{Instant, UnixTime};
use crate::tunnel::{Initiation, Outbox};
use crate::wire::{DropReason, overlay};

/// How long a changed membership may stay unwritten: what is lost with it is heard again from any peer.
const MEMBERSHIP_DELAY: Duration = Duration::from_secs(1);
/// How often the marks of handshakes are written: a replayed handshake older than this is refused also after a crash.
const MARKS_INTERVAL: Duration = Duration::from_secs(60);
/// How long a broken host is left alone before it is repaired again; others may be at work on it. With the repair it is less than
/// the second after which connections would notice.
pub(super) const REPAIR_PAUSE: Duration = Duration::from_millis(500);
/// Longest sleep: after a suspend, deadlines are looked at within this time.
const LONGEST_SLEEP: Duration = Duration::from_secs(1);

/// A command of the local interface: run on this task, with everything at hand.
pub(super) type Command = Box<dyn FnOnce(&mut Driver) + Send>;

/// An answered ping: round trips on the path and in the tunnel.
pub(super) type Pong = (Duration, Duration);

/// Everything that decides.
pub(super) struct Driver {
    pub(super) config: Config,
    pub(super) engine: Engine,
    pub(super) links: Links,
    /// The stock WireGuard peers, as declared.
    pub(super) stocks: Vec<Stock>,
    pub(super) files: StateFiles,
    pub(super) dataplane: Option<Dataplane>,
    pub(super) monitor: Monitor,
    pub(super) observer: Observer,
    /// What is served over TCP; nothing before the start is complete.
    pub(super) pages: Option<Pages>,
    pub(super) alerts: Alerts,
    pub(super) forwards: Forwards,
    pub(super) gateways: Gateways,
    pub(super) service: Service,
    pub(super) confinement: Confinement,
    pub(super) names: Names,
    pub(super) started: Instant,
    pub(super) started_wall: UnixTime,
    /// Who waits for which ping.
    pub(super) pongs: BTreeMap<u32, tokio::sync::oneshot::Sender<Pong>>,
    /// Drops of control messages and of datagrams outside tunnels, by reason.
    pub(super) drops: [u64; DropReason::ALL.len()],
    /// What the kernel refused to set up, for the status.
    pub(super) host_failures: Vec<String>,
    pub(super) interface: String,
    pub(super) config_path: PathBuf,
    pub(super) refusal: Option<Refusal>,
    program: Option<Program>,
    /// Planned restarts of this process before this program.
    pub(super) restarts: u32,
    /// When to make room for the next program.
    pub(super) restart_due: Option<Instant>,
    pub(super) leaving: Option<Leaving>,
    pub(super) bound: SocketAddr,
    /// When to look at the addresses of the underlay again.
    pub(super) underlay_due: Option<Instant>,
    device_gone: bool,
    pub(super) rows: Rows,
    pub(super) ledger: Ledger,
    pub(super) host: netlink::Host,
    pub(super) host_due: Option<Instant>,
    /// Our tables of the packet filter.
    pub(super) firewall: Firewall,
    membership_due: Option<Instant>,
    marks_due: Instant,
    /// Sessions the engine was told of.
    pub(super) sessions: BTreeSet<NodeId>,
}

/// What a driver is made of.
pub(super) struct Parts {
    pub(super) config: Config,
    pub(super) config_path: PathBuf,
    /// What a planned restart executes.
    pub(super) program: Option<Program>,
    /// Planned restarts of this process before this program.
    pub(super) restarts: u32,
    /// Where the socket is bound.
    pub(super) bound: SocketAddr,
    pub(super) engine: Engine,
    pub(super) links: Links,
    pub(super) stocks: Vec<Stock>,
    pub(super) files: StateFiles,
    pub(super) host: netlink::Host,
    pub(super) firewall: Firewall,
    pub(super) interface: String,
    pub(super) service: Service,
    /// Where the links' past goes.
    pub(super) history: Option<Writer>,
    pub(super) confinement: Confinement,
}

impl Driver {
    pub(super) fn new(parts: Parts, now: Instant, wall: UnixTime) -> Self {
        Driver {
            alerts: Alerts::new(&parts.config),
            forwards: Forwards::default(),
            gateways: Gateways::default(),
            service: parts.service,
            confinement: parts.confinement,
            names: Names::default(),
            config: parts.config,
            engine: parts.engine,
            links: parts.links,
            stocks: parts.stocks,
            files: parts.files,
            dataplane: None,
            monitor: Monitor::new(parts.history, now, wall),
            observer: Observer::default(),
            pages: None,
            started: now,
            started_wall: wall,
            pongs: BTreeMap::new(),
            drops: [0; DropReason::ALL.len()],
            host_failures: Vec::new(),
            interface: parts.interface,
            config_path: parts.config_path,
            refusal: None,
            program: parts.program,
            restarts: parts.restarts,
            restart_due: None,
            leaving: None,
            bound: parts.bound,
            underlay_due: None,
            device_gone: false,
            rows: Rows::default(),
            ledger: Ledger::default(),
            host: parts.host,
            host_due: Some(now),
            firewall: parts.firewall,
            membership_due: None,
            marks_due: now + MARKS_INTERVAL,
            sessions: BTreeSet::new(),
        }
    }

    /// Serves until it is told to stop or to restart.
    pub(super) async fn run(
        &mut self,
        mut receivers: Receivers,
        mut commands: mpsc::Receiver<Command>,
        mut watch: HostWatch,
        mut signals: Signals,
    ) -> Result<Ended, StartError> {
        self.drain();
        self.report_ready();
        while !self.device_gone {
            if self.restart_due.is_some_and(|due| due <= clock::now()) {
                self.leave(Ended::Restart);
            }
            if let Some(ended) = self.left() {
                return Ok(ended);
            }
            if self.host_due.is_some_and(|due| due <= clock::now()) {
                self.apply_host().await;
            }
            if self.firewall.next_deadline(clock::now()).is_some_and(|due| due <= clock::now()) {
                self.keep_firewall().await;
            }
            let sleep = self.next_deadline().saturating_since(clock::now()).min(LONGEST_SLEEP);
            tokio::select! {
                signal = signals.next() => match signal {
                    // Whoever says it twice does not want to wait.
                    Signal::Stop if self.leaving.is_some() => return Ok(Ended::Stop),
                    Signal::Stop => self.leave(Ended::Stop),
                    // The outcome is in the log, and where it is no success, in the status.
                    Signal::Reload => drop(self.reload()),
                },
                Some(datagram) = receivers.datagrams.recv() => self.take_datagram(datagram),
                Some(packet) = receivers.control.recv() => self.take_control(packet),
                Some(event) = receivers.events.recv() => self.take_event(event),
                Some(command) = commands.recv() => command(self),
                Some(event) = watch.next() => self.take_host_event(&event),
                () = self.firewall.changed() => self.firewall.look(clock::now()),
                () = tokio::time::sleep(sleep) => {}
            }
            // Before any deadline is judged: an answer may be among them.
            while let Ok(packet) = receivers.probes.try_recv() {
                self.take_late_probe(&packet);
            }
            self.handle_timeout();
            self.drain();
        }
        Err(StartError::DeviceGone(self.interface.clone()))
    }

    /// What a planned restart executes, and the configuration it reads.
    pub(super) fn next_program(&mut self) -> (Option<Program>, PathBuf) {
        (self.program.clone(), self.config_path.clone())
    }

    /// Writes everything that must survive.
    pub(super) fn write_down(&mut self) {
        self.files.write_snapshot(&self.engine.snapshot());
        self.files.write_marks(&self.links.host().marks());
        self.keep_ledger(clock::now(), clock::wall());
        self.monitor.stop(clock::now(), clock::wall());
    }

    /// Ends the data plane. A restart leaves the host as it is.
    pub(super) async fn shut_down(&mut self, ended: Ended) {
        if self.leaving.is_none() {
            self.write_down();
        }
        self.names.end(ended == Ended::Stop);
        if let Some(dataplane) = self.dataplane.take() {
            dataplane.stop();
        }
        self.end_trial().await;
        if ended == Ended::Restart {
            return;
        }
        // Of no use without the device; whether that goes now, the service manager knows where it keeps it, and we do not.
        self.remove_firewall().await;
        if self.service.keeps() {
            return;
        }
        // The device goes with its descriptor; what stays is the cover, so that nothing leaves in clear meanwhile.
        let wanted = HostState { device: None, covers: self.wanted_host().covers };
        if let Err(error) = self.host.apply(&wanted).await {
            tracing::warn!("cannot take back routes: {error}");
        }
    }

    fn next_deadline(&self) -> Instant {
        let engine = self.engine.poll_timeout().map(|(at, _)| at);
        let alerts = self.alerts.next_deadline();
        [
            engine,
            alerts,
            self.links.next_tick(),
            self.membership_due,
            self.host_due,
            self.firewall.next_deadline(clock::now()),
            self.underlay_due,
            self.restart_due,
            self.leaving.as_ref().map(Leaving::deadline),
            self.service.deadline(),
            self.names.next_deadline(),
        ]
        .into_iter()
        .flatten()
        .fold(self.marks_due.min(self.monitor.next_deadline()), Instant::min)
    }

    fn handle_timeout(&mut self) {
        self.observe();
        let (now, wall) = (clock::now(), clock::wall());
        // Who is leaving begins no session that would end with the program.
        while let Some(node) = self.links.pop_tick(now).filter(|_| self.leaving.is_none()) {
            self.tick(node, now, wall);
        }
        if self.engine.poll_timeout().is_some_and(|(at, _)| at <= now) {
            self.report_life();
            // What becomes due meanwhile is the next turn's, so that nothing waits behind the timers for long.
            while let Some((due, what)) = self.engine.poll_timeout().filter(|(at, _)| *at <= now) {
                self.note_lag(due, what);
                self.engine.handle_first_timeout(clock::now(), wall);
                self.drain();
            }
        }
        let engine = &self.engine;
        self.monitor.handle_timeout(&mut self.links, |node| member_name(engine, node), now, wall);
        self.look_at_alerts(now, wall);
        self.report_health(now);
        self.look_at_names(now);
        if self.underlay_due.is_some_and(|due| due <= now) {
            self.look_at_underlay(now, wall);
        }
        if self.membership_due.is_some_and(|due| due <= now) {
            self.membership_due = None;
            self.files.write_snapshot(&self.engine.snapshot());
        }
        if self.marks_due <= now {
            self.marks_due = now + MARKS_INTERVAL;
            self.tidy_rows(now);
            self.files.write_marks(&self.links.host().marks());
            self.keep_ledger(now, wall);
        }
    }

    /// Tells the engine when it last heard from those whose probes are missed.
    fn report_life(&mut self) {
        let now = clock::now();
        let suspects: Vec<NodeId> = self.engine.suspects().collect();
        for node in suspects {
            if let Some(heard) = self.links.get(node).and_then(|link| link.peer.tunnel().status(now).last_received) {
                self.engine.handle_heard(node, heard);
            }
        }
    }

    fn tick(&mut self, node: NodeId, now: Instant, wall: UnixTime) {
        let Some(link) = self.links.get(node) else { return };
        let mut outbox = Outbox::new();
        let next = link.peer.tunnel().tick(now, wall, &mut outbox);
        if let Some(dataplane) = &self.dataplane {
            dataplane.transmitter().drain(&link.peer, &mut outbox);
        }
        if self.sessions.contains(&node) && link.peer.tunnel().status(now).session.is_none() {
            self.sessions.remove(&node);
            match self.links.stock(node) {
                Some(_) => self.stock_lost(node),
                None => self.engine.handle_session(node, SessionEvent::Lost, now),
            }
        }
        self.links.set_tick(node, next, now);
    }

    fn take_event(&mut self, event: dataplane::Event) {
        let now = clock::now();
        match event {
            dataplane::Event::Confirmed { node, origin } => self.establish(node, &origin, now),
            dataplane::Event::Moved { node, origin, .. } if self.links.stock(node).is_some() => {
                self.follow(node, &origin);
            }
            // Its tunnel asks by itself, as long as packets want it.
            dataplane::Event::Wanted { node } if self.links.stock(node).is_some() => {}
            dataplane::Event::Moved { node, origin, .. } => {
                self.links.note_arrival(node, &origin);
                self.engine.handle_roam(node, path_of(&origin), now);
            }
            dataplane::Event::Wanted { node } => self.engine.handle_wanted(node, now),
            dataplane::Event::Unanswered { node } => self.engine.handle_unanswered(node, now),
            dataplane::Event::Large { node } => self.engine.handle_large(node, now),
            dataplane::Event::DeviceGone => {
                // Without its device the daemon serves nobody: end, and let the service manager start it afresh.
                self.device_gone = true;
            }
        }
    }

    fn take_host_event(&mut self, event: &HostEvent) {
        tracing::debug!(?event, "the host's network changed");
        self.note_underlay(event);
        let due = clock::now() + REPAIR_PAUSE;
        self.host_due = Some(self.host_due.map_or(due, |earlier| earlier.min(due)));
    }

    /// Does what the engine asks for, in order.
    pub(super) fn drain(&mut self) {
        while let Some(output) = self.engine.poll_output() {
            match output {
                Output::Datagram { to, bytes } => {
                    if let Some(dataplane) = &self.dataplane
                        && let Err(error) = dataplane.transmitter().send_datagram(&bytes, to, None)
                    {
                        self.drops[DropReason::SystemRefused as usize] += 1;
                        tracing::debug!(%to, %error, "datagram not sent");
                    }
                }
                Output::Message { to, via, bytes } => self.send_message(to, via, &bytes),
                Output::Peer(change) => self.change_peer(change),
                Output::Initiate { node, path } => self.initiate(node, path),
                Output::Fragmentation { allowed } => self.allow_fragmentation(allowed),
                Output::Routing => {
                    self.publish();
                    self.host_due = Some(clock::now());
                    self.name_targets();
                    self.publish_names();
                }
                Output::Persist(persist) => self.persist(persist),
                Output::Event(event) => self.take_engine_event(event),
            }
        }
    }

    fn send_message(&mut self, to: NodeId, via: Option<control::path::Path>, bytes: &[u8]) {
        let own = self.engine.certificate().certificate().address_v6;
        let (Some(link), Some(dataplane)) = (self.links.get(to), &self.dataplane) else { return };
        // A control message is about now: without a session, or where the peer restarts, it is dropped, not held, and what
        // matters is said again.
        if !self.sessions.contains(&to) || link.peer.tunnel().is_holding(clock::now()) {
            return;
        }
        let packet = overlay::wrap(own, link.address, bytes);
        let path = via.and_then(|path| self.links.along(link, path));
        if let Err(reason) = dataplane.transmitter().send_packet(&link.peer, path, &packet) {
            self.drops[reason as usize] += 1;
        }
    }

    fn change_peer(&mut self, change: PeerChange) {
        let now = clock::now();
        match change {
            PeerChange::Add { node, key, address, endpoint } => {
                self.yield_key(&key);
                if let Err(error) = self.links.add(node, key, address, endpoint, now) {
                    tracing::warn!(peer = %node, %error, "a member's key cannot be used");
                }
                self.monitor.watch(node, &self.name_of(node), now);
            }
            PeerChange::Path { node, path } => {
                self.links.set_path(node, path);
                self.note_move(node);
            }
            PeerChange::Key { node, .. }
            | PeerChange::WithdrawKey { node }
            | PeerChange::ForgetKeys { node }
            | PeerChange::Hybrid { node, .. } => self.change_key(node, change, now),
            PeerChange::Doubt { node, doubted } => self.follow_doubt(node, doubted),
            PeerChange::Mtu { node, mtu } => self.set_path_mtu(node, mtu, now),
            PeerChange::Remove { node } => {
                self.sessions.remove(&node);
                self.links.remove(node, now);
                if let Some(dataplane) = &self.dataplane {
                    dataplane.forget_flows(node);
                }
                self.monitor.forget(node, now);
                // Its key may be a stock peer's, which can have its tunnel now.
                if self.stocks.len() > self.links.stocks().count() {
                    self.declare_stocks();
                }
            }
        }
    }

    fn initiate(&mut self, node: NodeId, path: control::path::Path) {
        let (Some(link), Some(dataplane)) = (self.links.get(node), &self.dataplane) else { return };
        let initiation = dataplane.transmitter().initiate(&link.peer, self.links.along(link, path));
        let (now, wall) = (clock::now(), clock::wall());
        self.links.set_tick(node, now, now);
        if initiation == Initiation::ClockBehind {
            self.engine.handle_clock_behind(node, now, wall);
        }
    }

    fn persist(&mut self, persist: Persist) {
        match persist {
            Persist::Membership => {
                let due = clock::now() + MEMBERSHIP_DELAY;
                self.membership_due = Some(self.membership_due.map_or(due, |earlier| earlier.min(due)));
            }
            Persist::Revocation => {
                self.membership_due = None;
                self.files.write_snapshot(&self.engine.snapshot());
            }
            Persist::Invites => {
                if !self.files.write_invites(self.engine.invites()) {
                    // An invite that might be forgotten must not be honoured: the joining host asks again.
                    self.engine.discard_answer();
                }
            }
            Persist::Certificate(certificate) => self.files.write_certificate(&certificate),
        }
    }

    fn take_engine_event(&mut self, event: Event) {
        match event {
            Event::Measured { node, measurement } => {
                for (kind, text) in self.monitor.measured(&mut self.links, node, &measurement, clock::now()) {
                    let name = self.name_of(node);
                    tracing::info!(peer = %name, "{text}");
                    self.note(kind, Some(name), text);
                }
                self.count_probe(node, &measurement, clock::now());
            }
            Event::Pong { number, path_rtt, tunnel_rtt } => {
                if let Some(waiting) = self.pongs.remove(&number) {
                    // Whoever asked may have gone.
                    let _ = waiting.send((path_rtt, tunnel_rtt));
                }
            }
            Event::Link { node, from, to } => self.note_link(node, from, to),
            Event::HoldAsked { by, number, time } => self.hold_for(by, number, time),
            Event::Holding { node, number } => self.note_holding(node, number),
            Event::RowAsked { by, number } => self.answer_row(by, number),
            Event::Row { from, links } => self.take_row(from, &links),
            Event::RowsPulled => self.end_pull(),
            Event::Judged { node, verdict, reporter } => self.note_verdict(node, verdict, reporter),
            Event::Uplink { lost, silent, links } => self.note_uplink(lost, silent, links),
            Event::PeerLearned { node, name } => {
                tracing::info!(peer = %name, %node, "member learned");
                self.note(EventKind::Joined, Some(name.to_string()), "became known");
            }
            Event::PeerGone { node, departure } => {
                tracing::info!(%node, ?departure, "member gone");
                self.note(EventKind::Revoked, None, format!("{node} is gone: {departure:?}"));
            }
            Event::PathChanged { node, from, to, reason } => self.note_path(node, from, to, reason),
            Event::GatewayChanged { network, switch } => self.follow_gateway(network, switch),
            Event::PathMtu { node, from, to, narrow } => self.note_path_mtu(node, from, to, narrow),
            Event::Issued { certificate } => super::commands::enter_issued(self, &certificate),
            Event::Renewed => {
                tracing::info!("this node's certificate was renewed");
                self.note(EventKind::Renewed, None, "this node's certificate was renewed");
            }
            Event::Revoked => {
                tracing::error!("this node was revoked by the authority");
                self.note(EventKind::Revoked, None, "this node was revoked");
            }
            Event::Cloned => tracing::warn!("another host runs with this node's keys"),
            Event::Refused { from, refusal } => {
                tracing::debug!(peer = %from, ?refusal, "object refused");
                self.drops[DropReason::BadControl as usize] += 1;
            }
        }
    }

    fn note_link(&mut self, node: NodeId, from: LinkState, to: LinkState) {
        if !to.is_silent()
            && let Some(link) = self.links.get_mut(node)
        {
            link.verdict = None;
        }
        let woken = self.follow_outage(node, from, to, clock::now());
        if let Some(link) = self.links.get_mut(node) {
            link.counters.entered(to);
        }
        let name = self.name_of(node);
        let changed = Changed { node, name: &name, from, to };
        self.monitor.link_changed(changed, clock::now(), clock::wall());
        if woken > 0 {
            self.note(EventKind::Up, Some(name), woken_text(woken));
        }
    }

    pub(super) fn note(&mut self, kind: EventKind, peer: Option<String>, text: impl Into<String>) {
        self.monitor.noted(kind, peer, text, clock::wall());
    }

    /// A member's or a stock peer's name, or its id where it has gone.
    pub(super) fn name_of(&self, node: NodeId) -> String {
        if let Some(stock) = self.links.stock(node) {
            return stock.declared.name.to_string();
        }
        member_name(&self.engine, node)
    }

    /// Notes that a peer has no session any more, without telling the engine.
    pub(super) fn forget_session(&mut self, node: NodeId) {
        self.sessions.remove(&node);
    }
}

/// A member's name, or its id where it has gone.
fn member_name(engine: &Engine, node: NodeId) -> String {
    let member = engine.membership().get(node);
    member.map_or_else(|| node.to_string(), |member| member.certificate().name.to_string())
}
