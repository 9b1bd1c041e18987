//! When a link that answers works badly, and why.

use std::time::Duration;

use super::link::LinkSummary;
use super::{LossEstimate, step};
use crate::control::measurement::Direction;
use crate::time::Instant;

/// Why a link is degraded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// More probes are lost than one in a hundred, for certain.
    Loss,
    /// Probes are lost on one way only.
    OneWayLoss(Direction),
    /// More messages of any kind are lost on a way than one in a thousand, for certain.
    DataLoss(Direction),
    /// The round trip has taken a step.
    LatencyStep,
    /// The round trip is longer than it was over the last week.
    AboveBaseline,
    /// The round trip varies three times as much as usual.
    Jitter,
    /// This host keeps packets waiting.
    OwnHost,
    /// The peer's host keeps packets waiting.
    PeerHost,
}

/// Loss of probes above which a link is degraded.
const LOSS: f64 = 0.01;
/// Loss of messages above which a link is degraded.
const DATA_LOSS: f64 = 0.001;
/// Losses that are no accident: one or two packets are lost while a session starts or a host is busy, and of few packets they
/// look like a share that is certain. So many occasions, not packets: what is lost in a row in two seconds was one event, which
/// the state *suspect* told, and is over.
const FEWEST_LOST: u64 = 3;
/// Messages that a judgement of their loss needs: of fewer than the bound's denominator nothing is certain.
const FEWEST_MESSAGES: u64 = 1_000;
/// Loss on one way that counts, where the other has none.
const ONE_WAY_LOSS: f64 = 0.001;
/// Delay of a host, at the 99th percentile, above which its links are degraded: more than a busy scheduler makes.
const HOST_DELAY: Duration = Duration::from_millis(5);
/// Jitter against what is usual, and the least that counts: half of the least step.
const JITTER_TIMES: u32 = 3;
const LEAST_JITTER: Duration = Duration::from_micros(250);
/// Answers that a judgement of percentiles needs: with fewer, one outlier is the 99th percentile.
const FEWEST: u32 = 100;
/// How long a reason stays after it was last found, so that a link at a bound does not come and go.
const HOLD: Duration = Duration::from_secs(60);

impl Reason {
    /// Returns what is wrong with a link now. `baseline` is the median round trip of the last week, where it is known.
    pub fn find(summary: &LinkSummary, baseline: Option<Duration>) -> Vec<Reason> {
        let mut found = Vec::new();
        let above = |loss: Option<LossEstimate>, bound: f64, occasions: u32| {
            loss.is_some_and(|loss| loss.low > bound && loss.lost.min(occasions.into()) >= FEWEST_LOST)
        };
        let occasions = summary.counts.occasions;
        if above(summary.loss, LOSS, occasions) {
            found.push(Reason::Loss);
        }
        for (direction, this, other) in [
            (Direction::Forward, summary.loss_forward, summary.loss_reverse),
            (Direction::Reverse, summary.loss_reverse, summary.loss_forward),
        ] {
            let apart = this.zip(other).is_some_and(|(this, other)| this.low > other.high);
            if above(this, ONE_WAY_LOSS, occasions) && apart {
                found.push(Reason::OneWayLoss(direction));
            }
        }
        for direction in [Direction::Forward, Direction::Reverse] {
            let (loss, occasions) = (data_loss(summary, direction), summary.counts.packets_occasions[place(direction)]);
            if above(loss, DATA_LOSS, occasions) && loss.is_some_and(|loss| loss.sent >= FEWEST_MESSAGES) {
                found.push(Reason::DataLoss(direction));
            }
        }
        if summary.step.is_some() {
            found.push(Reason::LatencyStep);
        } else if let (Some(rtt), Some(baseline)) = (summary.rtt, baseline)
            && rtt.p50 > baseline + step::tolerance(baseline)
        {
            found.push(Reason::AboveBaseline);
        }
        if summary.counts.answered < FEWEST {
            return found;
        }
        if let Some(usual) = summary.usual_jitter
            && summary.jitter > (usual * JITTER_TIMES).max(LEAST_JITTER)
        {
            found.push(Reason::Jitter);
        }
        for (reason, delay) in [(Reason::OwnHost, summary.own_delay), (Reason::PeerHost, summary.peer_delay)] {
            if delay.is_some_and(|delay| delay.p99 > HOST_DELAY) {
                found.push(reason);
            }
        }
        found
    }

    /// Whether what it was found by has been taken back: losses that turned out late, or that have left the window.
    fn is_withdrawn(self, summary: &LinkSummary) -> bool {
        let loss = match self {
            Reason::Loss => summary.loss,
            Reason::OneWayLoss(direction) => one_way_loss(summary, direction),
            Reason::DataLoss(direction) => data_loss(summary, direction),
            _ => return false,
        };
        loss.is_none_or(|loss| loss.lost < FEWEST_LOST)
    }

    /// Its name in JSON and as a metric's label.
    pub const fn name(self) -> &'static str {
        match self {
            Reason::Loss => "loss",
            Reason::OneWayLoss(_) => "one_way_loss",
            Reason::DataLoss(_) => "data_loss",
            Reason::LatencyStep => "latency_step",
            Reason::AboveBaseline => "above_baseline",
            Reason::Jitter => "jitter",
            Reason::OwnHost => "own_host",
            Reason::PeerHost => "peer_host",
        }
    }

    /// Says it to a person, with its figures.
    pub fn text(self, summary: &LinkSummary, baseline: Option<Duration>) -> String {
        let loss = |loss: Option<LossEstimate>, what: &str| {
            let (lost, sent) = loss.map_or((0, 0), |loss| (loss.lost, loss.sent));
            let interval = loss.map_or(String::new(), |loss| format!(" ({loss})"));
            format!("{lost} of {sent} {what} lost in {} s{interval}", summary.window.as_secs())
        };
        let way = |direction| if direction == Direction::Forward { "towards it" } else { "coming from it" };
        let ms = |time: Duration| format!("{:.2} ms", time.as_secs_f64() * 1e3);
        let p99 = |delay: Option<super::link::DelaySummary>| delay.map_or(Duration::ZERO, |delay| delay.p99);
        match self {
            Reason::Loss => loss(summary.loss, "probes"),
            Reason::OneWayLoss(direction) => {
                format!("{}, {} only", loss(one_way_loss(summary, direction), "probes"), way(direction))
            }
            Reason::DataLoss(direction) => {
                format!("{}, {}", loss(data_loss(summary, direction), "data packets"), way(direction))
            }
            Reason::LatencyStep => match summary.step {
                // Of the step, not of now: a step that is held may be over by now.
                Some(step) => format!("round trip took a step to {} (was {})", ms(step.after), ms(step.before)),
                None => "round trip took a step".to_owned(),
            },
            Reason::AboveBaseline => {
                let (now, before) = (summary.rtt.map_or(Duration::ZERO, |rtt| rtt.p50), baseline.unwrap_or_default());
                format!("round trip {}, {} over the last week", ms(now), ms(before))
            }
            Reason::Jitter => {
                format!("jitter {}, {} usually", ms(summary.jitter), ms(summary.usual_jitter.unwrap_or_default()))
            }
            Reason::OwnHost => format!("this host holds packets up, {} at p99", ms(p99(summary.own_delay))),
            Reason::PeerHost => format!("its host holds packets up, {} at p99", ms(p99(summary.peer_delay))),
        }
    }
}

/// The place of a way in pairs.
fn place(direction: Direction) -> usize {
    usize::from(direction != Direction::Forward)
}

fn one_way_loss(summary: &LinkSummary, direction: Direction) -> Option<LossEstimate> {
    if direction == Direction::Forward { summary.loss_forward } else { summary.loss_reverse }
}

fn data_loss(summary: &LinkSummary, direction: Direction) -> Option<LossEstimate> {
    summary.data_loss[place(direction)]
}

/// The reasons a link is degraded for, each as long as it is found and a minute more; one that was taken back no longer.
#[derive(Clone, Debug, Default)]
pub struct Degradation {
    held: Vec<Held>,
    since: Option<Instant>,
}

/// A reason that a link is degraded for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// What it is.
    pub reason: Reason,
    /// When it was found first.
    pub since: Instant,
    /// What was measured when it was found last, for a person.
    pub text: String,
    last: Instant,
}

impl Degradation {
    /// Looks what is wrong with the link now; returns whether that made it degraded, or made it well. `baseline` is the median
    /// round trip of the last week, where it is known.
    pub fn update(&mut self, summary: &LinkSummary, baseline: Option<Duration>, now: Instant) -> Option<bool> {
        let before = self.is_degraded();
        for reason in Reason::find(summary, baseline) {
            let text = reason.text(summary, baseline);
            match self.held.iter_mut().find(|held| held.reason == reason) {
                Some(held) => (held.last, held.text) = (now, text),
                None => self.held.push(Held { reason, since: now, text, last: now }),
            }
        }
        self.held.retain(|held| now.saturating_since(held.last) < HOLD && !held.reason.is_withdrawn(summary));
        self.held.sort_unstable_by_key(|held| held.reason);
        let after = self.is_degraded();
        if after != before {
            self.since = after.then_some(now);
        }
        (after != before).then_some(after)
    }

    /// Whether there is a reason.
    pub fn is_degraded(&self) -> bool {
        !self.held.is_empty()
    }

    /// Since when there is one.
    pub fn since(&self) -> Option<Instant> {
        self.since
    }

    /// The reasons, the gravest first.
    pub fn reasons(&self) -> &[Held] {
        &self.held
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::LinkStatistics;
    use crate::telemetry::link::DelaySummary;

    fn summary() -> LinkSummary {
        let empty = LinkStatistics::new().summary(Instant::ZERO);
        // Whatever is lost was lost one by one.
        let counts = crate::telemetry::link::Counts {
            answered: 300,
            occasions: 300,
            packets_occasions: [300; 2],
            ..empty.counts
        };
        LinkSummary { counts, ..empty }
    }

    fn found(summary: &LinkSummary) -> Vec<Reason> {
        Reason::find(summary, None)
    }

    #[test]
    fn a_reason_needs_certainty() {
        let loss = |lost, sent| LossEstimate::new(lost, sent);
        assert_eq!(found(&summary()), []);
        assert_eq!(found(&LinkSummary { loss: loss(3, 300), ..summary() }), [], "0.34-2.9 %");
        assert_eq!(found(&LinkSummary { loss: loss(9, 300), ..summary() }), [Reason::Loss]);
        let one_way = LinkSummary { loss_forward: loss(8, 300), loss_reverse: loss(0, 292), ..summary() };
        assert_eq!(found(&one_way), [Reason::OneWayLoss(Direction::Forward)]);
        let both = LinkSummary { loss_forward: loss(4, 300), loss_reverse: loss(3, 292), ..summary() };
        assert_eq!(found(&both), []);
        let data = LinkSummary { data_loss: [loss(2, 100_000), loss(150, 100_000)], ..summary() };
        assert_eq!(found(&data), [Reason::DataLoss(Direction::Reverse)]);
        let start = LinkSummary { data_loss: [loss(2, 40), loss(6, 400)], ..summary() };
        assert_eq!(found(&start), [], "a session that starts");
        assert_eq!(found(&LinkSummary { loss: loss(2, 10), ..summary() }), [], "two probes");
        let delay = Some(DelaySummary { p50: Duration::from_micros(40), p99: Duration::from_millis(6) });
        assert_eq!(found(&LinkSummary { peer_delay: delay, ..summary() }), [Reason::PeerHost]);
        let ms = Duration::from_millis;
        let jitter = LinkSummary { jitter: ms(4), usual_jitter: Some(ms(1)), ..summary() };
        assert_eq!(found(&jitter), [Reason::Jitter]);
        assert_eq!(Reason::Jitter.text(&jitter, None), "jitter 4.00 ms, 1.00 ms usually");
    }

    #[test]
    fn a_slow_change_is_told_against_the_week() {
        let rtt = crate::telemetry::RttSummary {
            min: Duration::from_millis(10),
            p50: Duration::from_micros(11_200),
            p99: Duration::from_millis(12),
            max: Duration::from_millis(13),
        };
        let summary = LinkSummary { rtt: Some(rtt), ..summary() };
        assert_eq!(Reason::find(&summary, Some(Duration::from_millis(11))), []);
        let baseline = Some(Duration::from_millis(10));
        assert_eq!(Reason::find(&summary, baseline), [Reason::AboveBaseline]);
        assert_eq!(Reason::AboveBaseline.text(&summary, baseline), "round trip 11.20 ms, 10.00 ms over the last week");
    }

    #[test]
    fn what_was_lost_in_a_row_is_one_occasion() {
        let loss = LossEstimate::new(7, 40);
        let burst = |occasions| {
            let counts =
                crate::telemetry::link::Counts { occasions, packets_occasions: [occasions; 2], ..summary().counts };
            LinkSummary { counts, loss, loss_forward: loss, data_loss: [LossEstimate::new(900, 9_000); 2], ..summary() }
        };
        assert_eq!(found(&burst(1)), [], "a peer that was restarted");
        assert_eq!(found(&burst(2)), []);
        let data = [Reason::DataLoss(Direction::Forward), Reason::DataLoss(Direction::Reverse)];
        assert_eq!(found(&burst(3)), [&[Reason::Loss][..], &data[..]].concat());
    }

    #[test]
    fn a_reason_stays_for_a_minute_with_what_was_measured_and_since_when() {
        let at = |seconds: u64| Instant::from_millis(seconds * 1_000);
        let lossy =
            |lost| LinkSummary { loss: LossEstimate::new(lost, 300), window: Duration::from_secs(290), ..summary() };
        let ms = Duration::from_millis;
        let shaky = |lost| LinkSummary { jitter: ms(4), usual_jitter: Some(ms(1)), ..lossy(lost) };
        let names = |of: &Degradation| of.reasons().iter().map(|held| held.reason).collect::<Vec<_>>();
        let mut degradation = Degradation::default();
        assert_eq!(degradation.update(&summary(), None, at(0)), None);
        assert_eq!(degradation.update(&lossy(9), None, at(10)), Some(true));
        assert_eq!(degradation.update(&shaky(12), None, at(50)), None);
        assert_eq!(names(&degradation), [Reason::Loss, Reason::Jitter]);
        // Fewer are lost now than the bound: what is told is what it was found by.
        assert_eq!(degradation.update(&lossy(4), None, at(105)), None);
        let told: Vec<_> = degradation.reasons().iter().map(|held| (held.since, held.text.as_str())).collect();
        let jitter = "jitter 4.00 ms, 1.00 ms usually";
        assert_eq!(told, [(at(10), "12 of 300 probes lost in 290 s (2.3-6.9%)"), (at(50), jitter)]);
        assert_eq!((degradation.update(&lossy(4), None, at(110)), degradation.since()), (Some(false), None));
    }

    #[test]
    fn losses_that_turn_out_late_are_no_reason_any_more() {
        let at = |seconds: u64| Instant::from_millis(seconds * 1_000);
        let lossy = |lost| LinkSummary { loss: LossEstimate::new(lost, 40), ..summary() };
        let mut degradation = Degradation::default();
        assert_eq!(degradation.update(&lossy(7), None, at(10)), Some(true));
        assert_eq!(degradation.update(&lossy(0), None, at(20)), Some(false));
    }
}
