//! One thread that moves packets in both directions.
//!
//! One rather than two: on a host with few cores a packet and its answer then wake one thread instead of two, which is what
//! an idle link's round trip is made of; and more cores are used by more shards.

use super::counters::Counters;
use super::inbound::Inbound;
use super::outbound::{Found, Outbound};
use super::polling::Polling;
use crate::platform::tun::Tun;
use crate::platform::udp::UdpSocket;
use crate::platform::wake::{Interest, Wake};
use crate::wire::DropReason;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Instant;

/// How long the thread leaves a descriptor alone after an error it does not understand, in milliseconds, so that a lasting
/// one does not take a whole core.
const ERROR_PAUSE: u16 = 10;

/// A shard's belongings.
pub(super) struct Shard {
    pub(super) tun: Arc<Tun>,
    pub(super) udp: Arc<UdpSocket>,
    pub(super) wake: Arc<Wake>,
    pub(super) outbound: Outbound,
    pub(super) inbound: Inbound,
    /// When to look again before sleeping; `None`: never.
    pub(super) polling: Option<Polling>,
    pub(super) counters: Arc<Counters>,
}

impl Shard {
    /// Moves packets until the latch is rung.
    ///
    /// While there is work in both directions they take turns, each of them bounded; the thread sleeps only when a turn of
    /// each found all there was, and where it polls ([`Polling`]) not even then at once.
    pub(super) fn run(mut self) {
        let mut gone = false;
        while !self.wake.is_rung() {
            // While the socket has no room, nothing is read that would only have to wait as well.
            let (device, socket) = match self.outbound.is_waiting() {
                true => (Interest::Nothing, Interest::Both),
                false if gone => (Interest::Nothing, Interest::Reading),
                false => (Interest::Reading, Interest::Reading),
            };
            let awake = self.stays_awake();
            let wanted = [(self.tun.as_fd(), device), (self.udp.as_fd(), socket)];
            let (mut from_tun, mut from_udp) = match self.wake.wait_for(wanted, awake.then_some(0)) {
                Ok(Some([tun, udp])) => (tun || self.outbound.is_waiting(), udp),
                Ok(None) => return,
                Err(_) => {
                    self.counters.dropped(DropReason::SystemRefused);
                    self.wake.wait(ERROR_PAUSE);
                    (false, false)
                }
            };
            match from_tun || from_udp {
                true => self.note_arrival(),
                // Another thread of this core may be the one that has the next packet in its hands.
                false if awake => std::thread::yield_now(),
                false => {}
            }
            while (from_tun || from_udp) && !self.wake.is_rung() {
                if from_udp {
                    let found = self.inbound.turn();
                    from_udp = found == Found::More;
                    self.pause_after(found);
                }
                if from_tun {
                    let found = self.outbound.turn();
                    from_tun = found == Found::More && !self.outbound.is_waiting();
                    gone |= found == Found::Gone;
                    self.pause_after(found);
                }
            }
        }
    }

    /// Tells whether to look again at once rather than to sleep until there is something.
    fn stays_awake(&mut self) -> bool {
        // Room in the socket comes when it comes, and looking for it makes none.
        let waiting = self.outbound.is_waiting();
        self.polling.as_mut().is_some_and(|polling| !waiting && polling.looks_again(Instant::now()))
    }

    fn note_arrival(&mut self) {
        if let Some(polling) = &mut self.polling {
            polling.arrived(Instant::now());
        }
    }

    fn pause_after(&self, found: Found) {
        if found == Found::Trouble {
            self.wake.wait(ERROR_PAUSE);
        }
    }
}
