//! Datagrams that relays have passed on to this node, on their way from the relay's tunnel to the sender's.

use super::forwarding::ForwardingTable;
use super::inbound::{Inbound, Item, numbers, stamp};
use super::peer::Peer;
use super::queues::Origin;
use crate::identity::NodeId;
use crate::platform::clock::Reading;
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
            let bytes = &self.carried[start..start + length];
            match (bytes[0], numbers(bytes)) {
                (4, Some(numbers)) => {
                    let Some(item) = self.item(numbers, buffer, start, length) else { continue };
                    // Whatever the relay says: a session is one member's.
                    if table.by_tunnel(&self.tunnels[item.tunnel]).is_none_or(|(_, peer)| peer.node() != from) {
                        self.counters.dropped(DropReason::NoRelay);
                        continue;
                    }
                    self.items.push(Item { relayed: Some((via, from)), ..item });
                }
                (1..=3, _) => {
                    let at = self.received.about(buffer).map_or(reading.now, |about| stamp(&about, reading));
                    self.pass_up(Origin::Relay { via, from }, at, bytes);
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
