//! What one run lost, when, and next to which handshake.

use crate::node::Log;
use crate::packet::Message;
use crate::wire::{Seen, Side};
use std::collections::BTreeSet;
use std::fmt::Write as _;

/// Handshake messages closer together than this belong to one exchange: retries come after 5 s.
const EXCHANGE_GAP_MS: f64 = 6_000.0;
/// A packet sent this close to an exchange counts as lost by it. One retry period.
const NEAR_MS: f64 = 1_000.0;
/// Session changes a trace tells after each handshake message; two sessions may alternate for ever.
const SWITCHES_TOLD: u32 = 8;

/// The figures of one run; one tab-separated line of a results file.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    pub pair: String,
    pub scenario: String,
    pub sent: u32,
    pub lost: u32,
    pub lost_start: u32,
    pub lost_rekey: u32,
    pub lost_other: u32,
    /// Packets that came after a later-numbered one.
    pub reordered: u32,
    /// Longest time without a delivery in one direction beyond the sending interval, ms.
    pub silence_ms: f64,
    /// Slowest delivery, ms from send to arrival.
    pub slowest_ms: f64,
    pub initiations: u32,
    pub responses: u32,
    pub cookies: u32,
    pub exchanges: u32,
    /// How often an end changed the session it sends with.
    pub switches: u32,
    pub errors: String,
}

impl Row {
    /// Computes the figures of one run from both ends' logs and the wire.
    pub fn new(pair: &str, scenario: &str, a: &Log, b: &Log, wire: &[Seen], interval_ms: f64) -> Row {
        let exchanges = exchanges(wire);
        let mut row = Row {
            pair: pair.into(),
            scenario: scenario.into(),
            sent: (a.sent.len() + b.sent.len()) as u32,
            lost: 0,
            lost_start: 0,
            lost_rekey: 0,
            lost_other: 0,
            reordered: 0,
            silence_ms: 0.0,
            slowest_ms: 0.0,
            initiations: count(wire, |message| matches!(message, Message::Initiation { .. })),
            responses: count(wire, |message| matches!(message, Message::Response { .. })),
            cookies: count(wire, |message| matches!(message, Message::Cookie { .. })),
            exchanges: exchanges.len() as u32,
            switches: switches(wire),
            errors: errors(a, b),
        };
        for (from, to) in [(a, b), (b, a)] {
            row.add_direction(from, to, &exchanges, interval_ms);
        }
        row
    }

    fn add_direction(&mut self, from: &Log, to: &Log, exchanges: &[(f64, f64)], interval_ms: f64) {
        for (_, at) in lost(from, to) {
            self.lost += 1;
            let near = exchanges.iter().position(|(begin, end)| at >= begin - NEAR_MS && at <= end + NEAR_MS);
            match near {
                Some(0) => self.lost_start += 1,
                Some(_) => self.lost_rekey += 1,
                None => self.lost_other += 1,
            }
        }
        let mut highest = None;
        for (sequence, _) in &to.received {
            if highest.is_some_and(|highest| *sequence < highest) {
                self.reordered += 1;
            }
            highest = highest.max(Some(*sequence));
        }
        let mut last = from.sent.first().map_or(0.0, |(_, at)| *at) - interval_ms;
        let end = from.sent.last().map_or(0.0, |(_, at)| *at);
        for (_, at) in to.received.iter().filter(|(_, at)| *at <= end).chain([&(0, end)]) {
            self.silence_ms = self.silence_ms.max(at - last - interval_ms);
            last = *at;
        }
        for (sequence, at) in &to.received {
            if let Some((_, sent)) = from.sent.get(*sequence as usize) {
                self.slowest_ms = self.slowest_ms.max(at - sent);
            }
        }
    }

    /// Writes the row as one tab-separated line.
    pub fn line(&self) -> String {
        format!(
            "{}\t{}\t{}\t{}\t{}\t{}\t{}\t{}\t{:.0}\t{:.0}\t{}\t{}\t{}\t{}\t{}\t{}",
            self.pair,
            self.scenario,
            self.sent,
            self.lost,
            self.lost_start,
            self.lost_rekey,
            self.lost_other,
            self.reordered,
            self.silence_ms,
            self.slowest_ms,
            self.initiations,
            self.responses,
            self.cookies,
            self.exchanges,
            self.switches,
            self.errors
        )
    }

    /// Reads a line written by [`Row::line`].
    pub fn parse(line: &str) -> Option<Row> {
        let mut fields = line.split('\t');
        let mut text = || fields.next();
        Some(Row {
            pair: text()?.into(),
            scenario: text()?.into(),
            sent: text()?.parse().ok()?,
            lost: text()?.parse().ok()?,
            lost_start: text()?.parse().ok()?,
            lost_rekey: text()?.parse().ok()?,
            lost_other: text()?.parse().ok()?,
            reordered: text()?.parse().ok()?,
            silence_ms: text()?.parse().ok()?,
            slowest_ms: text()?.parse().ok()?,
            initiations: text()?.parse().ok()?,
            responses: text()?.parse().ok()?,
            cookies: text()?.parse().ok()?,
            exchanges: text()?.parse().ok()?,
            switches: text()?.parse().ok()?,
            errors: text()?.into(),
        })
    }
}

/// Renders rows as a Markdown table, one line per pair and scenario.
pub fn table(rows: &[Row]) -> String {
    let keys: BTreeSet<(&str, &str)> = rows.iter().map(|row| (row.scenario.as_str(), row.pair.as_str())).collect();
    let mut out = String::from(
        "| scenario | pair | runs | sent | lost | at start | at rekey | other | runs with loss | \
         worst run | reordered | longest silence ms (p50 / max) | slowest ms | init / resp / cookie \
         per run (p50, max init) | session switches per run (p50) |\n|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|\n",
    );
    for (scenario, pair) in keys {
        let group: Vec<&Row> = rows.iter().filter(|row| row.scenario == scenario && row.pair == pair).collect();
        let sum = |field: fn(&Row) -> u32| group.iter().map(|row| field(row)).sum::<u32>();
        let median = |field: fn(&Row) -> f64| {
            let mut values: Vec<f64> = group.iter().map(|row| field(row)).collect();
            values.sort_by(f64::total_cmp);
            values.get(values.len() / 2).copied().unwrap_or(0.0)
        };
        let max = |field: fn(&Row) -> f64| group.iter().map(|row| field(row)).fold(0.0, f64::max);
        // Writing to a String cannot fail.
        let _ = writeln!(
            out,
            "| {scenario} | {pair} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {:.0} / {:.0} | {:.0} | {:.0} / {:.0} / {:.0} (max {:.0}) | {:.0} |",
            group.len(),
            sum(|row| row.sent),
            sum(|row| row.lost),
            sum(|row| row.lost_start),
            sum(|row| row.lost_rekey),
            sum(|row| row.lost_other),
            group.iter().filter(|row| row.lost > 0).count(),
            group.iter().map(|row| row.lost).max().unwrap_or(0),
            sum(|row| row.reordered),
            median(|row| row.silence_ms),
            max(|row| row.silence_ms),
            max(|row| row.slowest_ms),
            median(|row| f64::from(row.initiations)),
            median(|row| f64::from(row.responses)),
            median(|row| f64::from(row.cookies)),
            max(|row| f64::from(row.initiations)),
            median(|row| f64::from(row.switches)),
        );
    }
    out
}

/// Renders packets lost per start, rekey and restart as a Markdown table, one line per pair.
pub fn summary(rows: &[Row]) -> String {
    let pairs: BTreeSet<&str> = rows.iter().map(|row| row.pair.as_str()).collect();
    let mut out = String::from(
        "| pair | start, both initiate, 10 pkt/s (B) | start, both initiate, 1,000 pkt/s (E) | the same, 100 ms one way | rekey (A, C, D) | \
         restart under 100 pkt/s (F) | restart, silent end (G) |\n|---|---|---|---|---|---|---|\n",
    );
    for pair in pairs {
        let cell = |scenarios: &str, wanted: fn(&Row) -> bool, field: fn(&Row) -> u32| {
            let of_scenario = |row: &&Row| row.scenario.starts_with(|letter| scenarios.contains(letter));
            let values: Vec<u32> =
                rows.iter().filter(|row| row.pair == pair && wanted(row)).filter(of_scenario).map(field).collect();
            let Some(max) = values.iter().max() else { return "-".to_owned() };
            let mean = f64::from(values.iter().sum::<u32>()) / values.len() as f64;
            format!("{} (max {max})", (mean * 10.0).round() / 10.0)
        };
        let all = |_: &Row| true;
        let cells = [
            cell("B", all, |row| row.lost),
            cell("E", |row| !is_slow(row), |row| row.lost),
            cell("E", is_slow, |row| row.lost),
            cell("ACD", all, |row| row.lost_rekey),
            // A run that was deaf before the restart says nothing of the restart.
            cell("F", |row| row.lost_other == 0, |row| row.lost_rekey),
            cell("G", all, |row| row.lost),
        ];
        // Writing to a String cannot fail.
        let _ = writeln!(out, "| {pair} | {} |", cells.join(" | "));
    }
    out
}

/// Whether the wire of a run was the slow one.
fn is_slow(row: &Row) -> bool {
    row.scenario.ends_with(" 100 ms")
}

/// Writes a run as one time-ordered text: handshakes, refused messages, session changes, losses.
pub fn trace(a: &Log, b: &Log, wire: &[Seen]) -> String {
    let mut lines: Vec<(f64, String)> = Vec::new();
    let mut using = [None; 2];
    let mut quiet = 0;
    for seen in wire {
        let receiver = match seen.message {
            Message::Data { receiver, .. } | Message::Keepalive { receiver, .. } => receiver,
            message => {
                quiet = 0;
                lines.push((seen.at, format!("wire {:?}: {message:x?}", seen.from)));
                continue;
            }
        };
        if matches!(seen.message, Message::Keepalive { .. }) {
            lines.push((seen.at, format!("wire {:?}: {:x?}", seen.from, seen.message)));
        }
        let side = usize::from(seen.from == Side::B);
        if using[side] != Some(receiver) {
            using[side] = Some(receiver);
            quiet += 1;
            if quiet <= SWITCHES_TOLD {
                lines.push((seen.at, format!("wire {:?}: sends with {receiver:#x}", seen.from)));
            }
        }
    }
    for (name, log) in [("A", a), ("B", b)] {
        lines.extend(log.events.iter().map(|(at, what)| (*at, format!("end {name}: {what}"))));
    }
    for (name, from, to) in [("A", a, b), ("B", b, a)] {
        lines.extend(lost(from, to).into_iter().map(|(sequence, at)| (at, format!("LOST {name} packet {sequence}"))));
    }
    lines.sort_by(|left, right| left.0.total_cmp(&right.0));
    lines.iter().fold(String::new(), |mut out, (at, what)| {
        let _ = writeln!(out, "{at:>12.3} {what}");
        out
    })
}

fn lost(from: &Log, to: &Log) -> Vec<(u32, f64)> {
    let arrived: BTreeSet<u32> = to.received.iter().map(|(sequence, _)| *sequence).collect();
    from.sent.iter().filter(|(sequence, _)| !arrived.contains(sequence)).copied().collect()
}

/// Counts how often either end's transport packets changed the session they are for.
fn switches(wire: &[Seen]) -> u32 {
    let mut using = [None; 2];
    let mut changes = 0;
    for seen in wire {
        if let Message::Data { receiver, .. } | Message::Keepalive { receiver, .. } = seen.message {
            let last = using[usize::from(seen.from == Side::B)].replace(receiver);
            changes += u32::from(last.is_some_and(|last| last != receiver));
        }
    }
    changes
}

fn count(wire: &[Seen], wanted: fn(Message) -> bool) -> u32 {
    wire.iter().filter(|seen| wanted(seen.message)).count() as u32
}

/// Groups handshake messages into exchanges: (first, last) in milliseconds.
fn exchanges(wire: &[Seen]) -> Vec<(f64, f64)> {
    let mut out: Vec<(f64, f64)> = Vec::new();
    for seen in wire.iter().filter(|seen| seen.message.is_handshake()) {
        match out.last_mut() {
            Some((_, end)) if seen.at - *end <= EXCHANGE_GAP_MS => *end = seen.at,
            _ => out.push((seen.at, seen.at)),
        }
    }
    out
}

fn errors(a: &Log, b: &Log) -> String {
    let mut out = String::new();
    for (name, log) in [("A", a), ("B", b)] {
        for (error, times) in &log.errors {
            let _ = write!(out, "{name}:{error}={times} ");
        }
    }
    if out.is_empty() { "-".into() } else { out.trim_end().into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(sent: &[(u32, f64)], received: &[(u32, f64)]) -> Log {
        Log { sent: sent.to_vec(), received: received.to_vec(), ..Log::default() }
    }

    fn handshake(at: f64) -> Seen {
        Seen { at, from: Side::A, message: Message::Initiation { sender: 1 } }
    }

    #[test]
    fn losses_are_counted_beside_the_exchange_they_fell_in() {
        let a = log(&[(0, 0.0), (1, 60_000.0), (2, 120_000.0)], &[]);
        let b = log(&[], &[]);
        let wire = [handshake(0.0), handshake(5_000.0), handshake(120_100.0)];
        let row = Row::new("p", "s", &a, &b, &wire, 1.0);
        assert_eq!((row.lost, row.lost_start, row.lost_other, row.lost_rekey), (3, 1, 1, 1));
        assert_eq!(row.exchanges, 2);
    }

    #[test]
    fn silence_runs_to_the_last_packet_sent_and_not_into_the_drain() {
        let a = log(&[(0, 0.0), (1, 100.0), (2, 200.0)], &[]);
        let b = log(&[], &[(0, 5.0), (2, 900.0)]);
        let row = Row::new("p", "s", &a, &b, &[], 100.0);
        assert_eq!(row.silence_ms, 95.0);
        assert_eq!(row.slowest_ms, 700.0);
        assert_eq!(row.lost, 1);
    }

    #[test]
    fn a_summary_counts_each_scenario_in_its_column() {
        let row = |scenario: &str, lost: u32, rekey: u32| {
            let empty = log(&[], &[]);
            let row = Row::new("p", scenario, &empty, &empty, &[], 1.0);
            Row { lost, lost_rekey: rekey, ..row }
        };
        let deaf = Row { lost_other: 1, ..row("F 5 ms", 99, 99) };
        let rows = [row("B 0 ms", 1, 0), row("B 5 ms", 2, 0), row("A 5 ms", 9, 4), row("F 5 ms", 7, 3), deaf];
        let text = summary(&rows);
        assert!(text.ends_with("| p | 1.5 (max 2) | - | - | 4 (max 4) | 3 (max 3) | - |\n"), "{text}");
    }

    #[test]
    fn a_row_survives_its_line() {
        let a = log(&[(0, 0.0)], &[(0, 3.0)]);
        let row = Row::new("x y", "B", &a, &a, &[handshake(1.0)], 100.0);
        assert_eq!(Row::parse(&row.line()), Some(row));
    }
}
