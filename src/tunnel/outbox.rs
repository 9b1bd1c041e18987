//! Datagrams the tunnel wants sent, beside the packets sealed into the caller's own buffers.

use std::collections::VecDeque;

/// Where a datagram goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination {
    /// To the address the handled datagram came from, and only there: nothing about it is proven yet.
    Source,
    /// To the peer, by whatever path the caller has for it.
    Peer,
}

/// A datagram ready to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outgoing {
    /// Where it goes.
    pub to: Destination,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// Collects datagrams to be sent, in order. One call adds a few handshake messages and at most the packets one peer may
/// have waiting.
#[derive(Debug, Default)]
pub struct Outbox {
    queue: VecDeque<Outgoing>,
}

impl Outbox {
    /// Makes an empty outbox.
    pub fn new() -> Outbox {
        Outbox::default()
    }

    /// Takes the oldest datagram.
    pub fn pop(&mut self) -> Option<Outgoing> {
        self.queue.pop_front()
    }

    /// Whether nothing waits to be sent.
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    pub(super) fn push(&mut self, to: Destination, bytes: Vec<u8>) {
        self.queue.push_back(Outgoing { to, bytes });
    }
}
