//! `meshctl ping --underlay`: ICMP echoes beside the tunnel's probes, to tell what the tunnel adds to the network.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use tokio::time::MissedTickBehavior;

use super::exit::Failure;
use super::output::{HEADING, WORRYING, paint};
use super::quantity;
use super::status::render_loss;
use crate::api::LossRatio;
use crate::platform::icmp::{self, Echo};
use crate::platform::random;
use crate::telemetry::{Jitter, LossEstimate};

/// How long an echo may take: as long as the daemon waits for a probe.
const PATIENCE: Duration = Duration::from_secs(2);
/// What WireGuard's header and tag add to a packet, whose length is a multiple of the other before.
const SEALING: usize = 32;
const PADDING: usize = 16;

/// One line of the answer.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "kind")]
pub enum UnderlayLine {
    /// An answered echo.
    #[serde(rename = "underlay_reply")]
    Reply {
        /// The echo's number, from 1.
        sequence: u32,
        /// From this process to this kernel's receive stamp: the network, and the other kernel.
        rtt_seconds: f64,
    },
    /// An echo without an answer in time.
    #[serde(rename = "underlay_lost")]
    Lost {
        /// The echo's number, from 1.
        sequence: u32,
    },
    /// The last line.
    #[serde(rename = "underlay_summary")]
    Summary {
        /// The host that was asked.
        endpoint: IpAddr,
        /// Echoes sent.
        sent: u32,
        /// Echoes answered.
        received: u32,
        /// Loss with its interval.
        loss: Option<LossRatio>,
        /// Smallest round trip.
        rtt_min_seconds: Option<f64>,
        /// Median round trip.
        rtt_p50_seconds: Option<f64>,
        /// Largest round trip.
        rtt_max_seconds: Option<f64>,
        /// RFC 3550 jitter.
        jitter_seconds: Option<f64>,
        /// By how much the median round trip in the tunnel is longer; absent where one of them is not known.
        tunnel_adds_p50_seconds: Option<f64>,
    },
}

/// What is to be asked.
#[derive(Clone, Copy, Debug)]
pub struct Echoes {
    /// The host.
    pub endpoint: IpAddr,
    /// Bytes of the probes' inner packets: the echoes are as long as the datagrams these make.
    pub inner_bytes: usize,
    /// How many.
    pub count: u32,
    /// Time between two of them.
    pub interval: Duration,
}

/// Round trips of the echoes, in the order in which they came.
#[derive(Debug, Default)]
pub struct Answers {
    sent: u32,
    rtts: Vec<Duration>,
}

impl Echoes {
    /// Sends the echoes, one after the other, and hands over each line when it is known.
    ///
    /// # Errors
    /// This user may not send echoes, or the kernel refuses to send the first one.
    pub async fn run(&self, mut line: impl FnMut(UnderlayLine)) -> Result<Answers, Failure> {
        let seed = random::seed().map_err(|error| Failure::failed(error.to_string()))?;
        let mark = seed.iter().take(8).fold(0, |mark, byte| mark << 8 | u64::from(*byte));
        let failed = |error: icmp::EchoError| Failure::failed(error.to_string());
        let echo = Arc::new(Echo::open(self.endpoint, mark).map_err(failed)?);
        let length = icmp::HEADER_LEN + self.inner_bytes.next_multiple_of(PADDING) + SEALING;
        let mut ticks = tokio::time::interval(self.interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut answers = Answers::default();
        for sequence in 1..=self.count {
            ticks.tick().await;
            let echo = Arc::clone(&echo);
            let waiting = tokio::task::spawn_blocking(move || echo.round_trip(sequence as u16, length, PATIENCE));
            let answered = waiting.await.map_err(|error| Failure::failed(error.to_string()))?;
            answers.sent += 1;
            match answered {
                Ok(Some(rtt)) => {
                    answers.rtts.push(rtt);
                    line(UnderlayLine::Reply { sequence, rtt_seconds: rtt.as_secs_f64() });
                }
                // What the network says of one packet is a loss like another, unless it says so from the start.
                Err(error) if sequence == 1 => return Err(failed(error)),
                Ok(None) | Err(_) => line(UnderlayLine::Lost { sequence }),
            }
        }
        Ok(answers)
    }
}

impl Answers {
    /// Returns the median round trip in seconds; `None` without an answer.
    pub fn median(&self) -> Option<f64> {
        let mut rtts = self.rtts.clone();
        rtts.sort_unstable();
        rtts.get(rtts.len() / 2).map(Duration::as_secs_f64)
    }

    /// Sums up, beside the tunnel's own round trips.
    pub fn summary(&self, endpoint: IpAddr, tunnel: &[f64]) -> UnderlayLine {
        let mut jitter = Jitter::default();
        self.rtts.iter().for_each(|rtt| jitter.record(i64::try_from(rtt.as_nanos()).unwrap_or(i64::MAX)));
        let mut seconds: Vec<f64> = self.rtts.iter().map(Duration::as_secs_f64).collect();
        let mut tunnel = tunnel.to_vec();
        seconds.sort_unstable_by(f64::total_cmp);
        tunnel.sort_unstable_by(f64::total_cmp);
        let median = |sorted: &[f64]| sorted.get(sorted.len() / 2).copied();
        let received = u32::try_from(seconds.len()).unwrap_or(u32::MAX);
        let loss = LossEstimate::new(u64::from(self.sent - received), u64::from(self.sent));
        UnderlayLine::Summary {
            endpoint,
            sent: self.sent,
            received,
            loss: loss.map(|l| LossRatio { lost: l.lost, sent: l.sent, ratio: l.ratio(), low: l.low, high: l.high }),
            rtt_min_seconds: seconds.first().copied(),
            rtt_p50_seconds: median(&seconds),
            rtt_max_seconds: seconds.last().copied(),
            jitter_seconds: (!seconds.is_empty()).then(|| jitter.estimate().as_secs_f64()),
            tunnel_adds_p50_seconds: median(&tunnel).zip(median(&seconds)).map(|(tunnel, icmp)| tunnel - icmp),
        }
    }
}

/// Renders one line.
pub fn render(line: &UnderlayLine) -> String {
    match line {
        UnderlayLine::Reply { sequence, rtt_seconds } => {
            format!("{sequence:>4}  icmp {}\n", quantity::seconds(*rtt_seconds))
        }
        UnderlayLine::Lost { sequence } => {
            format!("{sequence:>4}  icmp {}\n", paint(WORRYING, "no answer"))
        }
        UnderlayLine::Summary {
            endpoint,
            sent,
            received,
            loss,
            rtt_min_seconds,
            rtt_p50_seconds,
            rtt_max_seconds,
            jitter_seconds,
            tunnel_adds_p50_seconds,
        } => {
            let head = paint(HEADING, "icmp");
            let (Some(min), Some(p50), Some(max)) = (rtt_min_seconds, rtt_p50_seconds, rtt_max_seconds) else {
                return format!(
                    "{head} none of {sent} answered by {endpoint}: that host or a firewall refuses ICMP, or the network is\n     \
                     down; what the network alone takes is not known\n"
                );
            };
            let [min, p50, max] = [min, p50, max].map(|seconds| quantity::seconds(*seconds));
            let mut out = format!("{head} min {min}, p50 {p50}, max {max}");
            if let Some(jitter) = jitter_seconds {
                out.push_str(&format!(", jitter {}", quantity::seconds(*jitter)));
            }
            if received < sent {
                out.push_str(&format!(", {} of {sent} lost", sent - received));
                out.push_str(&render_loss(loss.as_ref()).map_or(String::new(), |rate| format!(", {rate}")));
            }
            out.push_str(&match tunnel_adds_p50_seconds {
                Some(adds) if *adds >= 0.0 => {
                    format!("\nthe tunnel's round trip is {} longer than the network's\n", quantity::seconds(*adds))
                }
                Some(adds) => format!(
                    "\nthe tunnel's round trip is not longer: its median is {} below that of ICMP, as noise or the way\n\
                     routers treat ICMP makes it\n",
                    quantity::seconds(-adds)
                ),
                None => "\nnothing came through the tunnel to compare\n".to_owned(),
            });
            out
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary(rtts: &[u64], sent: u32, tunnel: &[f64]) -> UnderlayLine {
        let rtts = rtts.iter().map(|micros| Duration::from_micros(*micros)).collect();
        Answers { sent, rtts }.summary("198.51.100.2".parse().unwrap(), tunnel)
    }

    fn shown(line: &UnderlayLine) -> String {
        anstream::adapter::strip_str(&render(line)).to_string()
    }

    #[test]
    fn what_the_tunnel_adds_is_the_difference_of_the_medians() {
        let line = summary(&[12_520, 12_400, 12_900], 4, &[0.01271, 0.01274, 0.2]);
        insta::assert_snapshot!(shown(&line), @r#"
            icmp min 12.40 ms, p50 12.52 ms, max 12.90 ms, jitter 38 us, 1 of 4 lost
            the tunnel's round trip is 220 us longer than the network's
        "#);
        insta::assert_snapshot!(serde_json::to_string(&line).unwrap(), @r#"
            {"kind":"underlay_summary","endpoint":"198.51.100.2","sent":4,"received":3,"loss":{"lost":1,"sent":4,"ratio":0.25,"low":0.04558726080970055,"high":0.6993581574175981},"rtt_min_seconds":0.0124,"rtt_p50_seconds":0.01252,"rtt_max_seconds":0.0129,"jitter_seconds":0.000038281,"tunnel_adds_p50_seconds":0.0002199999999999997}
        "#);
    }

    #[test]
    fn what_is_not_known_is_said() {
        let texts = [
            shown(&UnderlayLine::Reply { sequence: 1, rtt_seconds: 0.01252 }),
            shown(&UnderlayLine::Lost { sequence: 2 }),
            shown(&summary(&[], 5, &[0.0127])),
            shown(&summary(&[12_520], 1, &[])),
            shown(&summary(&[12_520], 1, &[0.0125])),
        ];
        insta::assert_snapshot!(texts.join("\n"), @r#"
               1  icmp 12.52 ms

               2  icmp no answer

            icmp none of 5 answered by 198.51.100.2: that host or a firewall refuses ICMP, or the network is
                 down; what the network alone takes is not known

            icmp min 12.52 ms, p50 12.52 ms, max 12.52 ms, jitter 0 us
            nothing came through the tunnel to compare

            icmp min 12.52 ms, p50 12.52 ms, max 12.52 ms, jitter 0 us
            the tunnel's round trip is not longer: its median is 20 us below that of ICMP, as noise or the way
            routers treat ICMP makes it
        "#);
    }
}
