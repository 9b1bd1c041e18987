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
/// look like a share that is certain.
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
        let above = |loss: Option<LossEstimate>, bound: f64| {
            loss.is_some_and(|loss| loss.low > bound && loss.lost >= FEWEST_LOST)
        };
        if above(summary.loss, LOSS) {
            found.push(Reason::Loss);
        }
        for (direction, this, other) in [
            (Direction::Forward, summary.loss_forward, summary.loss_reverse),
            (Direction::Reverse, summary.loss_reverse, summary.loss_forward),
        ] {
            let apart = this.zip(other).is_some_and(|(this, other)| this.low > other.high);
            if above(this, ONE_WAY_LOSS) && apart {
                found.push(Reason::OneWayLoss(direction));
            }
        }
        for (direction, loss) in [Direction::Forward, Direction::Reverse].into_iter().zip(summary.data_loss) {
            if above(loss, DATA_LOSS) && loss.is_some_and(|loss| loss.sent >= FEWEST_MESSAGES) {
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
        let loss = |loss: Option<LossEstimate>| loss.map_or("loss".to_owned(), |loss| format!("{loss} lost"));
        let way = |direction| if direction == Direction::Forward { "towards it" } else { "coming from it" };
        let ms = |time: Duration| format!("{:.2} ms", time.as_secs_f64() * 1e3);
        let place = |direction| usize::from(direction != Direction::Forward);
        let p99 = |delay: Option<super::link::DelaySummary>| delay.map_or(Duration::ZERO, |delay| delay.p99);
        match self {
            Reason::Loss => format!("{} of probes", loss(summary.loss)),
            Reason::OneWayLoss(direction) => {
                let one = if direction == Direction::Forward { summary.loss_forward } else { summary.loss_reverse };
                format!("{} {} only", loss(one), way(direction))
            }
            Reason::DataLoss(direction) => {
                format!("{} of data {}", loss(summary.data_loss[place(direction)]), way(direction))
            }
            Reason::LatencyStep => match summary.step {
                Some(step) => {
                    let now = summary.rtt_now.unwrap_or(step.after);
                    format!("round trip took a step to {} (was {})", ms(now), ms(step.before))
                }
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

/// The reasons a link is degraded for, each as long as it is found and a minute more.
#[derive(Clone, Debug, Default)]
pub struct Degradation {
    held: Vec<(Reason, Instant)>,
    since: Option<Instant>,
}

impl Degradation {
    /// Takes what is found now; returns whether that made the link degraded, or made it well.
    pub fn update(&mut self, found: &[Reason], now: Instant) -> Option<bool> {
        let before = self.is_degraded();
        for reason in found {
            match self.held.iter_mut().find(|(held, _)| held == reason) {
                Some((_, last)) => *last = now,
                None => self.held.push((*reason, now)),
            }
        }
        self.held.retain(|(_, last)| now.saturating_since(*last) < HOLD);
        self.held.sort_unstable_by_key(|(reason, _)| *reason);
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
    pub fn reasons(&self) -> impl Iterator<Item = Reason> {
        self.held.iter().map(|(reason, _)| *reason)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::LinkStatistics;
    use crate::telemetry::link::DelaySummary;

    fn summary() -> LinkSummary {
        let empty = LinkStatistics::new().summary(Instant::ZERO);
        let counts = crate::telemetry::link::Counts { answered: 300, ..empty.counts };
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
    fn a_reason_stays_for_a_minute() {
        let at = |seconds: u64| Instant::from_millis(seconds * 1_000);
        let mut degradation = Degradation::default();
        assert_eq!(degradation.update(&[], at(0)), None);
        assert_eq!(degradation.update(&[Reason::Loss], at(10)), Some(true));
        assert_eq!(degradation.update(&[Reason::Jitter], at(60)), None);
        assert_eq!(degradation.reasons().collect::<Vec<_>>(), [Reason::Loss, Reason::Jitter]);
        assert_eq!(degradation.update(&[], at(75)), None);
        assert_eq!(degradation.reasons().collect::<Vec<_>>(), [Reason::Jitter]);
        assert_eq!((degradation.update(&[], at(120)), degradation.since()), (Some(false), None));
    }
}
