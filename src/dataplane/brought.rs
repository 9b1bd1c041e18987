//! Datagrams that relays have passed on to this node, on their way from the relay's tunnel to the sender's.

use super::forwarding::ForwardingTable;
use super::inbound::{Inbound, Item, stamp};
use super::peer::Peer;
use super::queues::{Origin, UnopenedDatagram};
use crate::identity::NodeId;
use crate::platform::clock::Reading;
use crate::tunnel::OVERHEAD;
use crate::wire::{DropReason, relayed};
use std::ops::Range;

/// A datagram that was brought by a relay.
#[derive(Clone, Copy)]
pub(super) struct Brought {
    pub(super) via: NodeId,
    pub(super) from: NodeId,
    /// The buffer of the datagram it was in.
    pub(super) buffer: usize,
    pub(super) start: usize,
    pub(super) length: usize,
}

impl Inbound {
    /// Sorts out what relays have brought, as [`Inbound::classify`] does with what the socket has.
    pub(super) fn unpack(&mut self, table: &ForwardingTable, reading: &Reading) {
        let mut brought = std::mem::take(&mut self.brought);
        for Brought { via, from, buffer, start, length } in brought.drain(..) {
            let relayed = Some((via, from));
            let bytes = &self.carried[start..start + length];
            match (bytes[0], bytes.first_chunk::<16>()) {
                (4, Some(header)) if length >= OVERHEAD => {
                    let index = u32::from_le_bytes(std::array::from_fn(|at| header[4 + at]));
                    let counter = u64::from_le_bytes(std::array::from_fn(|at| header[8 + at]));
                    let Some((tunnel, session)) = self.place(index) else {
                        self.counters.dropped(DropReason::UnknownSession);
                        continue;
                    };
                    // Whatever the relay says: a session is one member's.
                    if table.by_tunnel(&self.tunnels[tunnel]).is_none_or(|(_, peer)| peer.node() != from) {
                        self.counters.dropped(DropReason::NoRelay);
                        continue;
                    }
                    let (at, opened, authentic, ecn) = (0, 0, false, 0);
                    self.items.push(Item {
                        tunnel,
                        session,
                        counter,
                        index,
                        buffer,
                        start,
                        length,
                        at,
                        opened,
                        authentic,
                        ecn,
                        relayed,
                    });
                }
                (1..=3, _) => {
                    let at = self.received.about(buffer).map_or(reading.now, |about| stamp(&about, reading));
                    let origin = Origin::Relay { via, from };
                    let datagram = UnopenedDatagram { origin, at, bytes: bytes.to_vec() };
                    if self.queues.datagrams.try_send(datagram).is_err() {
                        self.counters.dropped(DropReason::QueueFull);
                    }
                }
                _ => self.counters.dropped(DropReason::Malformed),
            }
        }
        self.brought = brought;
    }

    /// Keeps a datagram that a relay has passed on, until the batch is done.
    pub(super) fn take_brought(
        &mut self,
        table: &ForwardingTable,
        via: &Peer,
        from: &Peer,
        item: &Item,
        packet: Range<usize>,
    ) -> Result<(), DropReason> {
        let carried = relayed::unwrap(&self.opened[packet], table.local().address_v6);
        let relayed = carried.filter(|relayed| relayed.passed == 1).ok_or(DropReason::ForeignSource)?;
        if !via.is_relay() || via.is_stock() || from.is_stock() || item.relayed.is_some() {
            return Err(DropReason::NoRelay);
        }
        let (start, length) = (self.carried.len(), relayed.datagram.len());
        self.carried.extend_from_slice(relayed.datagram);
        self.brought.push(Brought { via: via.node(), from: from.node(), buffer: item.buffer, start, length });
        Ok(())
    }
}
