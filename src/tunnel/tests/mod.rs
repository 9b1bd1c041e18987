//! Tests of the whole room from the inside: two hosts without a network between them, and clocks set at will.

mod arbitrary;
mod crossing;
mod data;
mod doors;
mod hybrid;
mod interop;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;

use rand_chacha::ChaCha20Rng;
use rand_core::{RngCore, SeedableRng};
use x25519_dalek::{PublicKey, StaticSecret};

use super::*;
use crate::time::{Instant, UnixTime};
use crate::wire::DropReason;

/// The start of all tests' time.
const START: Instant = Instant::from_millis(1_000_000);

/// The wall clock boringtun stamps with.
fn wall() -> UnixTime {
    UnixTime::from_secs(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs())
}

fn address(of: u8) -> SocketAddr {
    SocketAddr::from(([198, 51, 100, of], 7_655))
}

fn secret(seed: u64) -> StaticSecret {
    let mut bytes = [0u8; 32];
    ChaCha20Rng::seed_from_u64(seed).fill_bytes(&mut bytes);
    StaticSecret::from(bytes)
}

/// Two secrets, the one with the lower public key first.
fn secrets(seed: u64) -> [StaticSecret; 2] {
    let mut secrets = [secret(2 * seed), secret(2 * seed + 1)];
    secrets.sort_by_key(|secret| PublicKey::from(secret).to_bytes());
    secrets
}

fn on_demand() -> TunnelOptions {
    TunnelOptions { keep_up: false, ..TunnelOptions::default() }
}

/// Two hosts that know each other, and their tunnels. The first has the lower key.
struct Two {
    hosts: [Arc<Host>; 2],
    tunnels: [Arc<Tunnel>; 2],
}

impl Two {
    fn new(seed: u64) -> Two {
        Two::with(seed, [on_demand(), on_demand()])
    }

    fn with(seed: u64, options: [TunnelOptions; 2]) -> Two {
        let mut number = 0;
        let hosts = secrets(seed).map(|secret| {
            number += 1;
            Host::new(secret, [number; 32])
        });
        let [first, second] = options;
        let tunnels =
            [hosts[0].add(hosts[1].public_key(), first).unwrap(), hosts[1].add(hosts[0].public_key(), second).unwrap()];
        Two { hosts, tunnels }
    }

    /// A pair with a session that the first host started and the second has confirmed.
    fn met(seed: u64) -> Two {
        let two = Two::new(seed);
        two.meet(START);
        two
    }

    fn meet(&self, now: Instant) {
        let mut out = Outbox::new();
        let _ = self.tunnels[0].initiate(now, wall(), &mut out);
        self.settle(now, 0, out);
    }

    /// Carries everything back and forth until nothing is left to say; returns the packets that arrived, per side.
    fn settle(&self, now: Instant, from: usize, mut out: Outbox) -> [Vec<Vec<u8>>; 2] {
        let mut arrived = [Vec::new(), Vec::new()];
        let mut wire: std::collections::VecDeque<(usize, Vec<u8>)> = Default::default();
        loop {
            while let Some(outgoing) = out.pop() {
                wire.push_back((1 - from, outgoing.bytes));
            }
            let Some((to, bytes)) = wire.pop_front() else { return arrived };
            let mut reply = Outbox::new();
            if bytes[0] == 4 {
                let mut plain = vec![0u8; 2_048];
                let mut guard = self.tunnels[to].lock();
                let opened = guard.open(now, &bytes, &mut plain).unwrap();
                guard.flush(now, wall(), &mut reply);
                if opened.length > 0 {
                    plain.truncate(opened.length);
                    arrived[to].push(plain);
                }
            } else {
                let _ = self.hosts[to].handle_handshake(now, wall(), address(1 - to as u8), &bytes, &mut reply);
            }
            while let Some(outgoing) = reply.pop() {
                wire.push_back((1 - to, outgoing.bytes));
            }
        }
    }

    /// Seals a packet under the session in use.
    fn seal(&self, from: usize, now: Instant, packet: &[u8]) -> Vec<u8> {
        let mut out = vec![0u8; 2_048];
        match self.tunnels[from].lock().seal(now, packet, &mut out) {
            Ok(Sealed::Datagram(length)) => {
                out.truncate(length);
                out
            }
            other => panic!("not sealed: {other:?}"),
        }
    }

    fn open(&self, at: usize, now: Instant, datagram: &[u8]) -> Result<Opened, DropReason> {
        self.tunnels[at].lock().open(now, datagram, &mut vec![0u8; datagram.len()])
    }

    fn drops(&self, at: usize, reason: DropReason) -> u64 {
        self.tunnels[at].status(START).drops[reason as usize]
    }
}

/// An IPv4 packet of `length` bytes.
fn packet(length: usize) -> Vec<u8> {
    let mut packet = vec![0xab; length];
    packet[0] = 0x45;
    packet[2..4].copy_from_slice(&(length as u16).to_be_bytes());
    packet
}
