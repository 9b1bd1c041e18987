//! What the ledger costs the threads that move packets.
//!
//! `cargo bench --bench ledger` notes packets of 1 to 4,096 connections in turns, and of connections that are ever new, and
//! prints nanoseconds for each, beside reading a packet's headers, which is done anyway.

use std::hint::black_box;
use std::time::Instant as Clock;

use meshd::dataplane::InnerPacket;
use meshd::dataplane::flows::{Flows, MOST_FLOWS, Recent, Side};
use meshd::time::Instant;

/// Packets of one measurement.
const PACKETS: usize = 2_000_000;

/// Measurements, of which the quickest counts: the others were disturbed.
const ROUNDS: usize = 5;

/// A TCP segment of a connection of its own.
fn segment(number: u32) -> Vec<u8> {
    let mut packet = vec![0; 1_420];
    packet[0] = 0x45;
    packet[2..4].copy_from_slice(&1_420u16.to_be_bytes());
    (packet[8], packet[9]) = (64, 6);
    packet[12..16].copy_from_slice(&[10, 77, 0, 1]);
    let [host, _, high, low] = number.to_be_bytes();
    packet[16..20].copy_from_slice(&[10, 77, 1 + host, (number >> 16) as u8]);
    packet[20..24].copy_from_slice(&[high, low, 0x0c, 0xea]);
    (packet[32], packet[33]) = (5 << 4, 0x10);
    packet
}

/// The shortest time of one packet, in nanoseconds.
fn measured(mut run: impl FnMut()) -> f64 {
    let rounds = (0..ROUNDS).map(|_| {
        let began = Clock::now();
        run();
        began.elapsed().as_nanos() as f64 / PACKETS as f64
    });
    rounds.fold(f64::INFINITY, f64::min)
}

/// Notes packets of so many connections in turns.
fn noting(connections: usize) -> f64 {
    let (flows, mut recent) = (Flows::default(), Recent::default());
    let packets: Vec<_> = (0..connections as u32).map(segment).collect();
    let inner: Vec<_> = packets.iter().map(|packet| InnerPacket::parse(packet).expect("a packet")).collect();
    measured(|| {
        for number in 0..PACKETS {
            let at = number % connections;
            let now = Instant::from_nanos(1 + number as u64);
            black_box(flows.note(&mut recent, black_box(&packets[at]), &inner[at], 1_420, Side::Near, now));
        }
    })
}

fn main() {
    let packet = segment(0);
    let parsing = measured(|| {
        for _ in 0..PACKETS {
            black_box(InnerPacket::parse(black_box(&packet))).expect("a packet");
        }
    });
    println!("{parsing:6.1} ns  reading a packet's headers, done anyway");
    for connections in [1, 2, 64, MOST_FLOWS, 4 * MOST_FLOWS] {
        let what = match connections {
            1 => "noting a packet of the connection of the one before".to_owned(),
            more if more > MOST_FLOWS => {
                format!("noting packets of {more} connections in turns, most of them new to the table")
            }
            more => format!("noting packets of {more} connections in turns"),
        };
        println!("{:6.1} ns  {what}", noting(connections));
    }
    println!("{:6} KiB of table for each data thread", Flows::default().size() / 1_024);
}
