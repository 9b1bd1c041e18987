//! One thread that moves packets in both directions.
//!
//! One rather than two: on a host with few cores a packet and its answer then wake one thread instead of two, which is what
//! an idle link's round trip is made of; and more cores are used by more shards.

use super::counters::Counters;
use super::inbound::Inbound;
use super::outbound::{Found, Outbound};
use super::polling::Polling;
use super::pulse::Pulse;
use crate::platform::tun::Tun;
use crate::platform::udp::UdpSocket;
use crate::platform::wake::{Interest, Wake, Watch};
use crate::wire::DropReason;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long the thread leaves a descriptor alone after an error it does not understand, in milliseconds, so that a lasting
/// one does not take a whole core.
const ERROR_PAUSE: u16 = 10;

/// Batches that are taken from the socket at the end: whatever a socket's buffer holds.
const LAST_BATCHES: usize = 1_024;

/// How often, a millisecond apart, it is tried at the end to send what finds no room in the socket.
const LAST_SENDS: usize = 5;
const LAST_PAUSE: Duration = Duration::from_millis(1);

/// The UDP socket's place in the watch; the device's queues follow.
const SOCKET: usize = 0;

/// A shard's belongings.
pub(super) struct Shard {
    /// The device's queues that are its own.
    pub(super) lanes: Vec<Arc<Tun>>,
    pub(super) udp: Arc<UdpSocket>,
    pub(super) wake: Arc<Wake>,
    /// The socket and the queues, in this order.
    pub(super) watch: Watch,
    pub(super) outbound: Outbound,
    pub(super) inbound: Inbound,
    /// When to look again before sleeping; `None`: never.
    pub(super) polling: Option<Polling>,
    pub(super) counters: Arc<Counters>,
    pub(super) pulse: Arc<Pulse>,
    /// How long it sleeps at most, in milliseconds; `None`: until there is something.
    pub(super) sleep: Option<u16>,
}

impl Shard {
    /// Moves packets until the latch is rung.
    ///
    /// What has come in by then is moved before it ends; what the device has stays in the device.
    ///
    /// Each time round, what has come in is taken first, and then one turn of each of the device's queues that has something:
    /// whatever comes waits for one bounded turn of each other at most, and not for a stream to end. It sleeps when there is
    /// nothing anywhere, and where it polls ([`Polling`]) not even then at once.
    pub(super) fn run(mut self) {
        self.move_packets();
        self.finish();
    }

    fn move_packets(&mut self) {
        let mut gone = false;
        while !self.wake.is_rung() {
            self.pulse.beat();
            // While the socket has no room, nothing is read that would only have to wait as well.
            let (device, socket) = match self.outbound.is_waiting() {
                true => (Interest::Nothing, Interest::Both),
                false if gone => (Interest::Nothing, Interest::Reading),
                false => (Interest::Reading, Interest::Reading),
            };
            let awake = self.stays_awake();
            let waited =
                self.aim(device, socket).and_then(|()| self.watch.wait(if awake { Some(0) } else { self.sleep }));
            let ready = match waited {
                Ok(Some(ready)) => ready,
                Ok(None) => return,
                Err(_) => {
                    self.counters.dropped(DropReason::SystemRefused);
                    self.wake.wait(ERROR_PAUSE);
                    continue;
                }
            };
            if ready.is_empty() {
                // Another thread of this core may be the one that has the next packet in its hands.
                if awake {
                    std::thread::yield_now();
                }
                continue;
            }
            self.note_arrival();
            let mut trouble = false;
            if ready.at(SOCKET) {
                self.outbound.resume();
                trouble |= self.inbound.turn() == Found::Trouble;
            }
            for lane in 0..self.lanes.len() {
                if ready.at(SOCKET + 1 + lane) {
                    let found = self.outbound.turn(lane);
                    trouble |= found == Found::Trouble;
                    gone |= found == Found::Gone;
                }
            }
            if trouble {
                self.wake.wait(ERROR_PAUSE);
            }
        }
    }

    /// Leaves nothing behind that a successor could not read: it has other sessions.
    fn finish(&mut self) {
        for _ in 0..LAST_BATCHES {
            if self.inbound.turn() != Found::More {
                break;
            }
        }
        for _ in 0..LAST_SENDS {
            self.outbound.resume();
            if !self.outbound.is_waiting() {
                break;
            }
            std::thread::sleep(LAST_PAUSE);
        }
    }

    /// Sets what is waited for. Costs nothing while that stays the same.
    fn aim(&mut self, device: Interest, socket: Interest) -> io::Result<()> {
        self.watch.set(SOCKET, self.udp.as_fd(), socket)?;
        let mut lanes = (SOCKET + 1..).zip(&self.lanes);
        lanes.try_for_each(|(place, lane)| self.watch.set(place, lane.as_fd(), device))
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
}
