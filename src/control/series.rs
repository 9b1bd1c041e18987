//! The series of measurements that both ends of a link hold: the prober's from the answers, the reflector's from the reports.

use std::time::Duration;

use super::Arrival;
use super::measurement::{Direction, Discard, Disorder, Measurement, Sample};
use super::probe::{Outstanding, Prober};
use crate::time::Instant;
use crate::wire::probe::{Arrivals, Leg, ProbeReply, ProbeReport};
use crate::wire::receipts::{Receipt, Receipts};

impl Prober {
    /// Looks which of the probes in flight have reached the peer; of those given as lost it may be news. `asked` is when the
    /// request was sent whose answer tells.
    pub(super) fn take_receipts(&mut self, receipts: &Receipts, asked: Instant, now: Instant) {
        // The first answer is only a starting point, and one that was overtaken tells an older tale.
        let old = self.peer_receipts.unwrap_or(*receipts);
        let grown = |new: u16, old: u16| new.wrapping_sub(old) as i16 >= 0;
        let newer = grown(receipts.reordered, old.reordered) && grown(receipts.duplicated, old.duplicated);
        if receipts.highest > old.highest || receipts.highest == old.highest && newer {
            self.peer_receipts = Some(*receipts);
            self.forward_disorder((receipts.reordered, old.reordered), (receipts.duplicated, old.duplicated), now);
        }
        let mut placed = Vec::new();
        for probe in &mut self.outstanding {
            match receipts.tells(probe.sequence) {
                Some(true) => probe.reached = Some(true),
                Some(false) if asked >= probe.sent + Self::SETTLED => probe.reached = probe.reached.or(Some(false)),
                _ => {}
            }
            if probe.lost == Some(Direction::Unknown) && probe.direction() != Direction::Unknown {
                probe.lost = Some(probe.direction());
                placed.push(*probe);
            }
        }
        for probe in placed {
            let direction = probe.direction();
            self.report.lost_unknown = self.report.lost_unknown.wrapping_sub(1);
            let lost = self.report.lost_mut(leg_of(direction));
            *lost = lost.wrapping_add(1);
            self.measure(Measurement::Placed { sent: probe.sent, direction });
        }
    }

    /// `theirs` is what the peer's tunnel saw of ours, `ours` what our tunnel saw of the peer's.
    pub(super) fn take_arrivals(&mut self, theirs: Arrivals, ours: Arrivals, at: Instant) {
        self.arrived = ours;
        for (place, direction, arrivals) in [(0, Direction::Forward, theirs), (1, Direction::Reverse, ours)] {
            if let Some((packets, lost)) = self.data[place].take(arrivals) {
                self.measure(Measurement::Data { at, direction, packets, lost });
            }
        }
    }

    /// Passes on what a packet of the peer's was among the others.
    pub(super) fn disorder(&mut self, receipt: Receipt, at: Instant) {
        let kind = match receipt {
            Receipt::InOrder => return,
            Receipt::Reordered => Disorder::Reordered,
            Receipt::Duplicated => Disorder::Duplicated,
        };
        self.measure(Measurement::Disorder { at, direction: Direction::Reverse, kind });
    }

    /// Turns the prober's report into measurements of this end. When each probe was sent is known to the prober alone; here
    /// they count as sent just before the report. What is outward to the prober comes to us: our reverse direction.
    pub(super) fn take_report(&mut self, report: &ProbeReport, now: Instant) {
        let before = self.peer_report.replace(*report);
        // The first report is only a starting point.
        let old = before.unwrap_or(*report);
        let news = report.sequence != 0 && before.is_none_or(|old| old.sequence != report.sequence);
        let late = report.late.map(|leg| reversed(direction_of(leg))).filter(|_| news);
        let mut grown = Direction::ALL.map(|direction| {
            let leg = leg_of(reversed(direction));
            let grown = report.lost(leg).wrapping_sub(old.lost(leg)) as i16;
            grown.wrapping_add(i16::from(late == Some(direction)))
        });
        let known = Direction::Unknown as usize;
        for direction in [Direction::Forward, Direction::Reverse] {
            let place = direction as usize;
            while grown[known] < 0 && grown[place] > 0 {
                (grown[known], grown[place]) = (grown[known] + 1, grown[place] - 1);
                self.measure(Measurement::Placed { sent: now, direction });
            }
        }
        let lost = Direction::ALL.map(|direction| grown[direction as usize].clamp(0, Self::MAX_OUTSTANDING as i16));
        let mut to_come = lost.iter().sum::<i16>().unsigned_abs();
        for direction in Direction::ALL {
            for _ in 0..lost[direction as usize] {
                to_come -= 1;
                let in_row = report.lost_in_row.saturating_sub(to_come).max(1);
                self.measure(Measurement::Lost { sent: now, direction, in_row });
            }
        }
        self.forward_disorder((report.reordered, old.reordered), (report.duplicated, old.duplicated), now);
        if news {
            let path = report.outward_nanos.wrapping_add(report.homeward_nanos);
            let Ok(path) = u64::try_from(path) else { return };
            let path_rtt = Duration::from_nanos(path);
            let (own_delay, peer_delay) = (report.reflector_held, report.prober_held);
            let tunnel_rtt = path_rtt.saturating_add(own_delay + peer_delay);
            self.smooth(path_rtt);
            self.measure(Measurement::Sample(Sample {
                sent: now - tunnel_rtt,
                path_rtt,
                tunnel_rtt,
                own_delay,
                peer_delay,
                forward_transit: report.homeward_nanos,
                reverse_transit: report.outward_nanos,
                late,
            }));
        }
    }

    /// Passes on what the peer counted of our packets: each count as it is and as it was.
    fn forward_disorder(&mut self, reordered: (u16, u16), duplicated: (u16, u16), at: Instant) {
        for ((new, old), kind) in [(reordered, Disorder::Reordered), (duplicated, Disorder::Duplicated)] {
            // More than half of the range is no growth: the peer began to count anew.
            let grown = new.wrapping_sub(old) as i16;
            for _ in 0..grown.min(Self::MAX_OUTSTANDING as i16) {
                self.measure(Measurement::Disorder { at, direction: Direction::Forward, kind });
            }
        }
    }
}

/// What an answered probe measured.
pub(super) fn sample_of(probe: &Outstanding, reply: &ProbeReply, arrival: &Arrival) -> Result<Sample, Discard> {
    if reply.unsteady || !arrival.steady {
        return Err(Discard::ClockStep);
    }
    // A peer that claims to have held a probe for longer than it was away would make the round trip negative.
    let on_path = arrival.stamped.saturating_since(probe.sent);
    let path_rtt = on_path.checked_sub(reply.held_since_kernel).ok_or(Discard::Negative)?;
    let in_tunnel = arrival.read.saturating_since(probe.sent);
    let tunnel_rtt = in_tunnel.checked_sub(reply.held_since_read).ok_or(Discard::Negative)?;
    let answered = reply.received_nanos.wrapping_add(reply.held_since_kernel.as_nanos() as u64);
    Ok(Sample {
        sent: probe.sent,
        path_rtt,
        tunnel_rtt,
        own_delay: arrival.read.saturating_since(arrival.stamped),
        peer_delay: reply.held_by_host(),
        forward_transit: reply.received_nanos.wrapping_sub(probe.sent.as_nanos()) as i64,
        reverse_transit: arrival.stamped.as_nanos().wrapping_sub(answered) as i64,
        late: probe.lost,
    })
}

/// A prober's direction as the wire names it.
pub(super) fn leg_of(direction: Direction) -> Leg {
    match direction {
        Direction::Forward => Leg::Outward,
        Direction::Reverse => Leg::Homeward,
        Direction::Unknown => Leg::Unknown,
    }
}

/// What the wire names, as a direction of the prober's.
fn direction_of(leg: Leg) -> Direction {
    match leg {
        Leg::Outward => Direction::Forward,
        Leg::Homeward => Direction::Reverse,
        Leg::Unknown => Direction::Unknown,
    }
}

/// A direction as the other end sees it.
fn reversed(direction: Direction) -> Direction {
    match direction {
        Direction::Forward => Direction::Reverse,
        Direction::Reverse => Direction::Forward,
        Direction::Unknown => Direction::Unknown,
    }
}
