//! What rules cost the threads that move packets.
//!
//! `cargo bench --bench policy` judges packets of connections that are under way, that are new and that are refused, by 1 to 1,000
//! rules of which the last one or none fits, and prints nanoseconds for each. Without a rule nothing of this is done.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant as Clock;

use meshd::config::Allow;
use meshd::dataplane::gate::{Gate, note};
use meshd::dataplane::{InnerPacket, Local};
use meshd::identity::NodeId;
use meshd::policy::{Ledger, Policy};
use meshd::time::Instant;

/// Packets of one measurement.
const PACKETS: usize = 1_000_000;
/// Measurements, of which the quickest counts: the others were disturbed.
const ROUNDS: usize = 5;
/// Rules; a configuration has at most [`Allow::LIMIT`], the last number says how it would go on.
const RULES: [usize; 4] = [1, 10, Allow::LIMIT, 1_000];
/// Connections whose packets come in turns; a thread remembers the verdicts of 1,024.
const CONNECTIONS: [usize; 3] = [1, 64, 16_384];

const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

/// A TCP segment from a connection of its own, to port 3306 here; or from here, where it is turned round.
fn segment(number: u32, flags: u8, leaves: bool) -> Vec<u8> {
    let mut packet = vec![0; 1_420];
    packet[0] = 0x45;
    packet[2..4].copy_from_slice(&1_420u16.to_be_bytes());
    (packet[8], packet[9]) = (64, 6);
    let [_, _, high, low] = number.to_be_bytes();
    let (near, far) = ([10, 77, 0, 1], [10, 77, 1, 1]);
    let (source, destination) = if leaves { (near, far) } else { (far, near) };
    packet[12..16].copy_from_slice(&source);
    packet[16..20].copy_from_slice(&destination);
    let ports = if leaves { [0x0c, 0xea, high, low] } else { [high, low, 0x0c, 0xea] };
    packet[20..24].copy_from_slice(&ports);
    (packet[32], packet[33]) = (5 << 4, flags);
    packet
}

/// Rules about one port, so that each is compared by its addresses too; the last lets in what comes here if `fits`.
fn policy(count: usize, fits: bool) -> Policy {
    let rule = |from: String| Allow {
        from: vec![from.parse().expect("a prefix")],
        to: Vec::new(),
        ports: vec!["tcp/3306".parse().expect("a service")],
    };
    let mut rules: Vec<Allow> =
        (1..count).map(|number| rule(format!("10.{}.{}.0/24", 80 + number / 256, number % 256))).collect();
    rules.push(rule(if fits { "10.77.0.0/16" } else { "10.99.0.0/16" }.to_owned()));
    let ledger = Arc::new(Ledger::new(rules.len(), at(0)));
    Policy::compile(1, &rules, &[], ledger)
}

/// A moment so many packets after the first; a million of them take less than the second for which a verdict is remembered.
fn at(packet: usize) -> Instant {
    Instant::from_nanos(1_000_000_000 + 100 * packet as u64)
}

/// The shortest time of one packet, in nanoseconds, of doing it to the packets in turns.
fn measured(packets: &[Vec<u8>], mut run: impl FnMut(&[u8], &InnerPacket, Instant)) -> f64 {
    let inner: Vec<_> = packets.iter().map(|packet| InnerPacket::parse(packet).expect("a packet")).collect();
    let rounds = (0..ROUNDS).map(|round| {
        let began = Clock::now();
        for number in 0..PACKETS {
            let which = number % packets.len();
            run(black_box(&packets[which]), &inner[which], at(round * PACKETS + number));
        }
        began.elapsed().as_nanos() as f64 / PACKETS as f64
    });
    rounds.fold(f64::INFINITY, f64::min)
}

/// Judges what comes in.
fn judging(policy: &Policy, packets: &[Vec<u8>], passes: bool) -> f64 {
    let (mut gate, from) = (Gate::default(), NodeId::from_bytes([7; 16]));
    measured(packets, |packet, inner, now| {
        let verdict = black_box(gate.judge(policy, from, packet, inner, now));
        assert_eq!(verdict.is_ok(), passes);
    })
}

fn main() {
    let of = |connections: usize, flags, leaves| -> Vec<Vec<u8>> {
        (0..connections as u32).map(|number| segment(number, flags, leaves)).collect()
    };
    for rules in RULES {
        let (open, closed) = (policy(rules, true), policy(rules, false));
        println!("{rules} rules");
        for connections in CONNECTIONS {
            let under_way = judging(&open, &of(connections, ACK, false), true);
            println!("{under_way:8.1} ns  a packet of {connections} connections under way, in turns");
        }
        println!("{:8.1} ns  a new connection that the last rule lets in", judging(&open, &of(64, SYN, false), true));
        println!("{:8.1} ns  a connection that none lets in", judging(&closed, &of(64, SYN, false), false));
        let local = Local {
            address_v4: [10, 77, 0, 1].into(),
            address_v6: "fd00::1".parse().expect("an address"),
            overlay_v4: "10.77.0.0/16".parse().expect("a range"),
            overlay_v6: "fd00::/64".parse().expect("a range"),
            prefixes: Vec::new(),
            relays: false,
        };
        for connections in CONNECTIONS {
            for packet in of(connections, SYN, true) {
                let inner = InnerPacket::parse(&packet).expect("a packet");
                note(&open, &local, &packet, &inner, at(0));
            }
            let leaving =
                measured(&of(connections, ACK, true), |packet, inner, now| note(&open, &local, packet, inner, now));
            println!("{leaving:8.1} ns  noting a packet that leaves, of {connections} connections in turns");
        }
    }
}
