//! The rows of the matrix: asking every peer what it knows of its links, and being asked.
//!
//! ```text
//!   pull_rows ──▶ waiting ── RowRequest, WINDOW at a time ──▶ asked ── all parts are here ──▶ Event::Row
//!                                      ▲                        │
//!                                      └── PATIENCE, again ─────┤── ATTEMPTS are used up: left out
//!                                                               ▼
//!                                       nobody is left: Event::RowsPulled
//! ```
//!
//! A row is what its node says of itself. It comes through that node's tunnel and is kept under that node's id, so a member
//! that lies does so in its own row alone. The figures are telemetry's; the daemon answers [`Event::RowAsked`] with them.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use rand_core::RngCore;

use super::Engine;
use super::limit::Bucket;
use super::output::Event;
use super::timer::TimerName;
use crate::identity::NodeId;
use crate::time::Instant;
use crate::wire::DropReason;
use crate::wire::control::{ControlMessage, Row, RowRequest};
use crate::wire::row::{CELL_LEN, Cell, range_of};

/// Rows asked for at once. In a mesh of 200 a row has three messages, so that some 130 kB may arrive together; and the whole
/// mesh takes seven round trips.
const WINDOW: usize = 32;
/// How long a row may take until it is asked for again: longer than any usual round trip, and a busy node's delay.
const PATIENCE: Duration = Duration::from_secs(1);
/// How often a row is asked for: a message in a hundred lost leaves one row of three messages in 30,000 out.
const ATTEMPTS: u32 = 3;
/// Rows that one member may ask us for in a second, once its burst is used up. A node asks for its operators together, and
/// keeps what it got for some seconds.
const ASKED_PER_SECOND: f64 = 1.0;
/// The burst: one pull with all its attempts, and another right after.
const ASKED_BURST: f64 = 6.0;

/// What is asked of us, and what we ask.
#[derive(Debug, Default)]
pub(super) struct Rows {
    limits: BTreeMap<NodeId, Bucket>,
    pull: Option<Pull>,
}

/// A pull under way.
#[derive(Debug)]
struct Pull {
    number: u32,
    waiting: VecDeque<NodeId>,
    asked: BTreeMap<NodeId, Asked>,
}

/// A row that was asked for.
#[derive(Debug)]
struct Asked {
    at: Instant,
    attempts: u32,
    /// As many as the newest part says there are.
    parts: Vec<Option<Vec<Cell>>>,
}

impl Rows {
    /// A peer is none any more.
    pub(super) fn forget(&mut self, node: NodeId) {
        self.limits.remove(&node);
        if let Some(pull) = &mut self.pull {
            pull.waiting.retain(|waiting| *waiting != node);
            pull.asked.remove(&node);
        }
    }

    /// Whether a peer may be answered now; counts it.
    fn may_ask(&mut self, node: NodeId, now: Instant) -> bool {
        let limit = self.limits.entry(node).or_insert_with(|| Bucket::new(ASKED_PER_SECOND, ASKED_BURST, now));
        limit.take(1.0, now)
    }
}

impl Pull {
    /// Notes a part; returns the whole row where it was the last one.
    fn take(&mut self, from: NodeId, row: &Row) -> Option<Vec<Cell>> {
        if row.number != self.number {
            return None;
        }
        let asked = self.asked.get_mut(&from)?;
        if asked.parts.len() != usize::from(row.parts) {
            asked.parts = vec![None; usize::from(row.parts)];
        }
        // Parts of an earlier answer may mix with those of a later one: both are true, and the node's own.
        if let Some(part) = asked.parts.get_mut(usize::from(row.part)) {
            *part = Some(row.cells().take(Row::MAX_CELLS).collect());
        }
        if asked.parts.iter().any(Option::is_none) {
            return None;
        }
        self.asked.remove(&from).map(|asked| asked.parts.into_iter().flatten().flatten().collect())
    }
}

impl Engine {
    /// Asks the peers with a session for their rows, at random no more than `most` of them, unless that is under way. Each
    /// whole row comes as [`Event::Row`], and [`Event::RowsPulled`] after the last one.
    pub fn pull_rows(&mut self, most: usize, now: Instant) {
        if self.rows.pull.is_some() {
            return;
        }
        let with_session = self.peers.iter().filter(|(_, peer)| peer.contact.has_session());
        let mut waiting: Vec<NodeId> = with_session.map(|(node, _)| *node).collect();
        let chosen = most.min(waiting.len());
        for place in 0..chosen {
            let other = place + self.rng.next_u32() as usize % (waiting.len() - place);
            waiting.swap(place, other);
        }
        waiting.truncate(chosen);
        let number = self.rng.next_u32();
        self.rows.pull = Some(Pull { number, waiting: waiting.into(), asked: BTreeMap::new() });
        self.ask_rows(now);
    }

    /// Asks for as many rows as may be under way, asks again for those that stay out, and ends the pull.
    pub(super) fn ask_rows(&mut self, now: Instant) {
        let Some(pull) = &mut self.rows.pull else { return };
        let mut ask = Vec::new();
        pull.asked.retain(|_, asked| asked.attempts < ATTEMPTS || now < asked.at + PATIENCE);
        for (node, asked) in pull.asked.iter_mut().filter(|(_, asked)| now >= asked.at + PATIENCE) {
            asked.at = now;
            asked.attempts += 1;
            ask.push(*node);
        }
        while pull.asked.len() < WINDOW
            && let Some(node) = pull.waiting.pop_front()
        {
            pull.asked.insert(node, Asked { at: now, attempts: 1, parts: Vec::new() });
            ask.push(node);
        }
        let next = pull.asked.values().map(|asked| asked.at + PATIENCE).min();
        let request = ControlMessage::RowRequest(RowRequest { number: pull.number });
        ask.into_iter().for_each(|node| self.send(node, &request));
        match next {
            Some(next) => self.timers.set(TimerName::Rows, next),
            None => {
                self.rows.pull = None;
                self.timers.cancel(TimerName::Rows);
                self.event(Event::RowsPulled);
            }
        }
    }

    /// A peer asks for our row.
    pub(super) fn handle_row_request(
        &mut self,
        by: NodeId,
        request: RowRequest,
        now: Instant,
    ) -> Result<(), DropReason> {
        if !self.rows.may_ask(by, now) {
            return Err(DropReason::RateLimited);
        }
        self.event(Event::RowAsked { by, number: request.number });
        Ok(())
    }

    /// Sends our row to the peer that asked for it under `number`: our links, in any order.
    pub fn answer_row(&mut self, to: NodeId, number: u32, cells: &[Cell]) {
        let most = usize::from(Row::MAX_PARTS) * Row::MAX_CELLS;
        let mut parts: Vec<&[Cell]> = cells[..cells.len().min(most)].chunks(Row::MAX_CELLS).collect();
        if parts.is_empty() {
            parts.push(&[]);
        }
        let count = parts.len() as u8;
        for (part, cells) in (0..).zip(parts) {
            let cells = cells.iter().flat_map(Cell::encode).collect();
            let row = Row { number, part, parts: count, cell_len: CELL_LEN as u8, cells };
            self.send(to, &ControlMessage::Row(row));
        }
    }

    /// A part of a row: nothing, where it was not asked for.
    pub(super) fn handle_row(&mut self, from: NodeId, row: &Row, now: Instant) {
        let Some(cells) = self.rows.pull.as_mut().and_then(|pull| pull.take(from, row)) else { return };
        let mut links = BTreeMap::new();
        for cell in cells {
            let (first, last) = range_of(cell.peer);
            let mut members = self.membership.range(first, last).map(|(node, _)| node);
            // Whom we do not know we cannot show, and a beginning that two share names neither.
            if let (Some(node), None) = (members.next(), members.next())
                && node != from
            {
                links.insert(node, cell);
            }
        }
        self.event(Event::Row { from, links });
        self.ask_rows(now);
    }
}
