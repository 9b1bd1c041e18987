//! What one receiver still has to be told, and when.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use rand_chacha::ChaCha12Rng;
use rand_core::{RngCore, SeedableRng};
use serde_json::Value as Json;

use super::notice::{Notice, NoticeStatus};
use crate::config::receiver::{Receiver, ReceiverKind};
use crate::time::{Instant, UnixTime};

/// Notices that wait for a receiver at most: every link of a large mesh down and up again, as the few alerts that makes.
pub const QUEUE_LIMIT: usize = 256;
/// The first pause after a failure; each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);
/// How long one notice is tried. What still fires then is told again when its time comes.
const GIVE_UP_AFTER: Duration = Duration::from_secs(3600);
/// How often Alertmanager is told what still fires.
const RENEW_INTERVAL: Duration = Duration::from_secs(60);
/// When Alertmanager is to think that an alert is over, unless it is told again: four chances of that.
const ENDS_AFTER: Duration = Duration::from_secs(240);

/// One thing to deliver now.
#[derive(Clone, Debug, PartialEq)]
pub struct Parcel {
    /// The body: one JSON document.
    pub body: String,
}

/// Why a delivery failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What happened, without addresses that may be secret.
    pub why: String,
    /// Whether trying again is of no use.
    pub is_final: bool,
}

/// How a receiver does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// Deliveries that succeeded.
    pub delivered: u64,
    /// Attempts that failed.
    pub failed: u64,
    /// Notices given up: the queue was full, or nothing had helped for an hour, or nothing would.
    pub dropped: u64,
    /// Notices that wait.
    pub queued: usize,
    /// When the last delivery succeeded.
    pub last_success: Option<UnixTime>,
    /// Why the last attempt failed; `None` once one has succeeded.
    pub failure: Option<String>,
}

/// Writes what a receiver is told: all of the notices to Alertmanager itself, the first to any other.
pub fn body(receiver: &Receiver, notices: &[Notice], wall: UnixTime) -> String {
    let json = match (&receiver.kind, notices) {
        (ReceiverKind::Alertmanager(_), _) => {
            Json::from(notices.iter().map(|notice| notice.to_alertmanager(wall + ENDS_AFTER)).collect::<Vec<Json>>())
        }
        (_, [notice, ..]) => notice.to_webhook(&receiver.name),
        (_, []) => Json::Null,
    };
    json.to_string()
}

/// A receiver, and what it still has to be told.
#[derive(Debug)]
pub struct Delivery {
    receiver: Receiver,
    queue: VecDeque<Queued>,
    /// What fires, as far as it was told.
    firing: BTreeMap<u64, Told>,
    renew: Option<Instant>,
    /// When the next attempt may be made, after how many failures.
    retry: Option<(Instant, u32)>,
    under_way: Option<UnderWay>,
    health: Health,
    rng: ChaCha12Rng,
}

#[derive(Debug)]
struct Queued {
    notice: Notice,
    since: Instant,
}

#[derive(Debug)]
struct Told {
    notice: Notice,
    at: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum UnderWay {
    /// The first of the queue.
    First,
    /// A reminder of what fires.
    Renewal,
}

impl Delivery {
    /// Starts with nothing to tell. The seed spreads the attempts of many.
    pub fn new(receiver: Receiver, seed: u64) -> Delivery {
        Delivery {
            receiver,
            queue: VecDeque::new(),
            firing: BTreeMap::new(),
            renew: None,
            retry: None,
            under_way: None,
            health: Health::default(),
            rng: ChaCha12Rng::seed_from_u64(seed),
        }
    }

    /// Takes a notice. Where the queue is full, the oldest is given up.
    pub fn offer(&mut self, notice: Notice, now: Instant) {
        if self.queue.len() >= QUEUE_LIMIT {
            // What is under way stays: its outcome is about to be told.
            let oldest = usize::from(self.under_way == Some(UnderWay::First));
            self.queue.remove(oldest);
            self.health.dropped += 1;
        }
        self.queue.push_back(Queued { notice, since: now });
        self.health.queued = self.queue.len();
    }

    /// Returns what is to be delivered now; its outcome is told by [`Delivery::finished`] before the next.
    pub fn poll(&mut self, now: Instant, wall: UnixTime) -> Option<Parcel> {
        if self.under_way.is_some() || self.retry.is_some_and(|(at, _)| now < at) {
            return None;
        }
        self.remind(now);
        if let Some(first) = self.queue.front() {
            let body = body(&self.receiver, std::slice::from_ref(&first.notice), wall);
            self.under_way = Some(UnderWay::First);
            return Some(Parcel { body });
        }
        if self.renew.is_some_and(|at| at <= now) {
            self.renew = Some(now + RENEW_INTERVAL);
            let firing: Vec<Notice> = self.firing.values().map(|told| told.notice.clone()).collect();
            self.under_way = Some(UnderWay::Renewal);
            return Some(Parcel { body: body(&self.receiver, &firing, wall) });
        }
        None
    }

    /// Queues what fires for long enough to be told again.
    fn remind(&mut self, now: Instant) {
        if matches!(self.receiver.kind, ReceiverKind::Alertmanager(_)) {
            return;
        }
        for told in self.firing.values_mut().filter(|told| now.saturating_since(told.at) >= self.receiver.repeat) {
            told.at = now;
            if self.queue.len() < QUEUE_LIMIT {
                self.queue.push_back(Queued { notice: told.notice.clone(), since: now });
            }
        }
        self.health.queued = self.queue.len();
    }

    /// Takes the outcome of the last parcel.
    pub fn finished(&mut self, outcome: Result<(), Failure>, now: Instant, wall: UnixTime) {
        let Some(what) = self.under_way.take() else { return };
        match outcome {
            Ok(()) => {
                self.retry = None;
                self.health.delivered += 1;
                self.health.last_success = Some(wall);
                self.health.failure = None;
                if what == UnderWay::First
                    && let Some(queued) = self.queue.pop_front()
                {
                    self.note(queued.notice, now);
                }
            }
            Err(failure) => {
                self.health.failed += 1;
                self.health.failure = Some(failure.why);
                let old = self.queue.front().is_some_and(|first| now.saturating_since(first.since) >= GIVE_UP_AFTER);
                if what == UnderWay::First
                    && (failure.is_final || old)
                    && let Some(queued) = self.queue.pop_front()
                {
                    self.health.dropped += 1;
                    // It is told again when its time comes, by a receiver that may be well by then.
                    self.note(queued.notice, now);
                }
                let failures = self.retry.map_or(0, |(_, failures)| failures) + 1;
                self.retry = Some((now + self.pause(failures), failures));
            }
        }
        self.health.queued = self.queue.len();
    }

    /// Between half and all of a pause that doubles with each failure.
    fn pause(&mut self, failures: u32) -> Duration {
        let doubled = FIRST_PAUSE.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(LONGEST_PAUSE);
        doubled.mul_f64(0.5 + f64::from(self.rng.next_u32()) / f64::from(u32::MAX) / 2.0)
    }

    /// Remembers what fires, so that it is told again.
    fn note(&mut self, notice: Notice, now: Instant) {
        match notice.status {
            NoticeStatus::Firing => {
                self.firing.insert(notice.fingerprint(), Told { notice, at: now });
            }
            NoticeStatus::Resolved => {
                self.firing.remove(&notice.fingerprint());
            }
        }
        let renews = matches!(self.receiver.kind, ReceiverKind::Alertmanager(_)) && !self.firing.is_empty();
        self.renew = renews.then(|| self.renew.unwrap_or(now + RENEW_INTERVAL));
    }

    /// Returns when to poll again.
    pub fn deadline(&self) -> Option<Instant> {
        if self.under_way.is_some() {
            return None;
        }
        let repeat = match self.receiver.kind {
            ReceiverKind::Alertmanager(_) => None,
            _ => self.firing.values().map(|told| told.at + self.receiver.repeat).min(),
        };
        let waiting = self.queue.front().map(|queued| queued.since);
        let next = [waiting, self.renew, repeat].into_iter().flatten().min()?;
        Some(self.retry.map_or(next, |(at, _)| next.max(at)))
    }

    /// Returns how the receiver does.
    pub fn health(&self) -> &Health {
        &self.health
    }
}
