//! When to tell somebody, as `[[alert]]` says it.

use std::fmt::{self, Write};
use std::str::FromStr;
use std::time::Duration;

use super::duration;
use super::template::quoted;
use crate::identity::{NodeName, Tag};

/// One rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alert {
    /// Its name, as alerts carry it.
    pub name: NodeName,
    /// What must be the case.
    pub condition: Condition,
    /// For which peers; all where empty, at most [`Alert::PEER_LIMIT`].
    pub peers: Vec<Target>,
    /// How long it must be the case before anybody is told, at most a day.
    pub lasting: Duration,
    /// How urgent it is; where absent, as urgent as that condition usually is.
    pub severity: Option<Severity>,
    /// Who is told: names of receivers; all of them where empty.
    pub receivers: Vec<NodeName>,
}

/// Peers that a rule is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// The node of that name.
    Node(NodeName),
    /// Nodes with that tag.
    Tag(Tag),
}

/// How urgent an alert is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Somebody should look at it in working hours.
    Ticket,
    /// Somebody should be woken.
    Page,
}

/// What must be the case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// A peer does not answer.
    LinkDown,
    /// The median path round trip of five minutes is above a limit.
    LatencyAbove(Limit),
    /// Of the probes of five minutes, more than this share are lost: the whole 95 % interval lies above it.
    LossAbove(Share),
    /// Of the data packets, more than this share are lost.
    DataLoss(Share),
    /// The path round trip rose by more than this and stayed there.
    LatencyStep(Duration),
    /// The hosts at both ends take longer than this over one packet in a hundred.
    HostDelay(Duration),
    /// This node's certificate ends within this time.
    Certificate(Duration),
    /// A peer answers nobody who was asked.
    NodeDown,
    /// Bad probes (lost, or above the limit) use up what an objective allows, too fast to last.
    BurnRate {
        /// The share of probes that may be bad in the long run.
        allowed: Share,
        /// Above which an answered probe is bad.
        limit: Limit,
    },
}

/// A limit of a delay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// This long.
    Fixed(Duration),
    /// This much longer than the link's own median of the last seven days.
    OverBaseline(Duration),
}

/// A share, in millionths.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Share(u32);

impl Alert {
    /// Rules at most: more than an operator will keep in mind, and each is looked at for every link.
    pub const LIMIT: usize = 32;
    /// Peers of one rule at most; more of them have a tag.
    pub const PEER_LIMIT: usize = 64;
    /// The rules that hold where receivers are declared and no rule is.
    pub fn defaults() -> Vec<Alert> {
        let usual = |name: &str, kind: &str| Alert {
            name: name.parse().expect("the names below are valid"),
            condition: Condition::usual(kind).expect("the kinds below exist"),
            peers: Vec::new(),
            lasting: Condition::usual(kind).map_or(Duration::ZERO, |condition| condition.usual_lasting()),
            severity: None,
            receivers: Vec::new(),
        };
        vec![
            usual("node-down", "node_down"),
            usual("link-down", "link_down"),
            usual("latency-step", "latency_step"),
            usual("loss", "loss_above"),
            usual("data-loss", "data_loss"),
            usual("slow-host", "host_delay"),
            usual("certificate", "certificate"),
            usual("slo-burn", "burn_rate"),
        ]
    }

    /// Renders the rule as an `[[alert]]` entry.
    pub fn to_toml(&self) -> String {
        let mut out = String::from("[[alert]]\n");
        let mut line = |key: &str, value: String| {
            // Writing into a String cannot fail.
            let _ = writeln!(out, "{key} = {value}");
        };
        line("name", quoted(self.name.to_string()));
        line("what", quoted(self.condition.kind()));
        if let Some(threshold) = self.condition.threshold() {
            line("threshold", quoted(threshold));
        }
        if let Condition::BurnRate { allowed, .. } = self.condition {
            line("objective", quoted(allowed.complement().to_string()));
        }
        if !self.peers.is_empty() {
            line("peers", super::template::list(&self.peers));
        }
        line("for", quoted(duration::format(self.lasting)));
        if let Some(severity) = self.severity {
            line("severity", quoted(severity.name()));
        }
        if !self.receivers.is_empty() {
            line("receivers", super::template::list(&self.receivers));
        }
        out
    }

    /// Returns whether the rule is about that peer.
    pub fn is_about(&self, peer: &str, tags: &[Tag]) -> bool {
        let matches = |target: &Target| match target {
            Target::Node(name) => name.as_str() == peer,
            Target::Tag(tag) => tags.contains(tag),
        };
        self.peers.is_empty() || self.peers.iter().any(matches)
    }
}

impl Condition {
    /// The kinds of conditions, as the file names them.
    pub const KINDS: [&'static str; 9] = [
        "link_down",
        "latency_above",
        "loss_above",
        "data_loss",
        "latency_step",
        "host_delay",
        "certificate",
        "node_down",
        "burn_rate",
    ];

    /// Returns the condition of that kind with its usual threshold; `None` for a word that is no kind.
    ///
    /// A step of 1 ms adds 50 ms to a page of fifty queries. 5 ms of host delay is a thread that waited for a processor.
    /// 1 % of probes is where TCP begins to suffer; the 0.1 % of data packets is seen long before. The objective of
    /// 99.9 % leaves 43 minutes of 30 days.
    pub fn usual(kind: &str) -> Option<Condition> {
        let ms = Duration::from_millis;
        let slow = Limit::OverBaseline(ms(5));
        Some(match kind {
            "link_down" => Condition::LinkDown,
            "latency_above" => Condition::LatencyAbove(slow),
            "loss_above" => Condition::LossAbove(Share(10_000)),
            "data_loss" => Condition::DataLoss(Share(1_000)),
            "latency_step" => Condition::LatencyStep(ms(1)),
            "host_delay" => Condition::HostDelay(ms(5)),
            "certificate" => Condition::Certificate(Duration::from_secs(7 * 86_400)),
            "node_down" => Condition::NodeDown,
            "burn_rate" => Condition::BurnRate { allowed: Share(1_000), limit: slow },
            _ => return None,
        })
    }

    /// Returns the kind, as the file names it.
    pub const fn kind(&self) -> &'static str {
        match self {
            Condition::LinkDown => "link_down",
            Condition::LatencyAbove(_) => "latency_above",
            Condition::LossAbove(_) => "loss_above",
            Condition::DataLoss(_) => "data_loss",
            Condition::LatencyStep(_) => "latency_step",
            Condition::HostDelay(_) => "host_delay",
            Condition::Certificate(_) => "certificate",
            Condition::NodeDown => "node_down",
            Condition::BurnRate { .. } => "burn_rate",
        }
    }

    /// Returns how long it must last unless the file says otherwise: longer than a restart, for what a restart looks like;
    /// long enough for a standing change, for what a burst of traffic looks like.
    pub const fn usual_lasting(&self) -> Duration {
        Duration::from_secs(match self {
            Condition::LinkDown | Condition::NodeDown => 30,
            Condition::LatencyAbove(_) | Condition::LossAbove(_) | Condition::HostDelay(_) => 300,
            Condition::DataLoss(_) | Condition::LatencyStep(_) => 600,
            // Both have their own windows.
            Condition::Certificate(_) | Condition::BurnRate { .. } => 0,
        })
    }

    /// Returns how urgent it is unless the file says otherwise; a burn rate says so itself, by how fast it is.
    pub const fn usual_severity(&self) -> Severity {
        match self {
            Condition::LinkDown | Condition::NodeDown => Severity::Page,
            _ => Severity::Ticket,
        }
    }

    /// Returns the threshold as the file writes it; `None` for a condition without.
    pub fn threshold(&self) -> Option<String> {
        Some(match self {
            Condition::LinkDown | Condition::NodeDown => return None,
            Condition::LatencyAbove(limit) | Condition::BurnRate { limit, .. } => limit.to_string(),
            Condition::LossAbove(share) | Condition::DataLoss(share) => share.to_string(),
            Condition::LatencyStep(delay) | Condition::HostDelay(delay) | Condition::Certificate(delay) => {
                duration::format(*delay)
            }
        })
    }

    /// Puts in the threshold that the file gives.
    ///
    /// # Errors
    /// What would be right for this kind.
    pub(super) fn set_threshold(&mut self, text: &str) -> Result<(), String> {
        let delay = |most: u64| -> Result<Duration, String> {
            let delay = duration::parse(text)?;
            let fits = (Duration::from_millis(1)..=Duration::from_secs(most)).contains(&delay);
            if fits { Ok(delay) } else { Err(format!("`{text}` is not between 1ms and {most}s")) }
        };
        match self {
            Condition::LinkDown | Condition::NodeDown => return Err(format!("{} has no threshold", self.kind())),
            Condition::LatencyAbove(limit) | Condition::BurnRate { limit, .. } => *limit = text.parse()?,
            Condition::LossAbove(share) | Condition::DataLoss(share) => *share = text.parse()?,
            Condition::LatencyStep(step) => *step = delay(60)?,
            Condition::HostDelay(most) => *most = delay(60)?,
            Condition::Certificate(ahead) => *ahead = delay(400 * 86_400)?,
        }
        Ok(())
    }
}

impl Limit {
    /// Returns the limit for a link with that baseline; `None` where it is not known yet.
    pub fn of(&self, baseline: Option<Duration>) -> Option<Duration> {
        match self {
            Limit::Fixed(limit) => Some(*limit),
            Limit::OverBaseline(more) => baseline.map(|baseline| baseline + *more),
        }
    }
}

impl FromStr for Limit {
    type Err = String;

    fn from_str(text: &str) -> Result<Limit, String> {
        let over = text.trim().strip_prefix("baseline").map(|rest| rest.trim_start().strip_prefix('+'));
        let delay = match over {
            None => duration::parse(text.trim())?,
            Some(Some(more)) => duration::parse(more.trim())?,
            Some(None) => return Err(format!("`{text}` does not say how much above; did you mean `baseline + 5ms`?")),
        };
        match delay {
            Duration::ZERO => Err("a limit of 0 is always passed".to_owned()),
            delay if delay > Duration::from_secs(60) => Err(format!("`{text}` is longer than 60s")),
            delay if over.is_some() => Ok(Limit::OverBaseline(delay)),
            delay => Ok(Limit::Fixed(delay)),
        }
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Limit::Fixed(limit) => f.write_str(&duration::format(*limit)),
            Limit::OverBaseline(more) => write!(f, "baseline + {}", duration::format(*more)),
        }
    }
}

impl Share {
    /// The whole, in millionths.
    const WHOLE: u32 = 1_000_000;

    /// Returns it as a ratio between 0 and 1.
    pub fn ratio(self) -> f64 {
        f64::from(self.0) / f64::from(Self::WHOLE)
    }

    /// Returns what is missing to the whole.
    pub(super) const fn complement(self) -> Share {
        Share(Self::WHOLE - self.0)
    }
}

impl FromStr for Share {
    type Err = String;

    /// Reads a percentage above 0 and below 100, with up to four decimals.
    fn from_str(text: &str) -> Result<Share, String> {
        let wrong = || format!("`{text}` is no percentage");
        let number = text.trim().strip_suffix('%').ok_or_else(|| match text.trim().parse::<f64>() {
            Ok(_) => format!("`{text}` has no unit; did you mean `{text}%`?"),
            Err(_) => wrong(),
        })?;
        let (whole, decimals) = number.trim_end().split_once('.').unwrap_or((number.trim_end(), "0"));
        let digits = |text: &str| !text.is_empty() && text.bytes().all(|c| c.is_ascii_digit());
        if !digits(whole) || !digits(decimals) || decimals.len() > 4 || whole.len() > 3 {
            return Err(wrong());
        }
        let millionths = format!("{whole}{decimals:0<4}").parse::<u32>().map_err(|_| wrong())?;
        let fits = (1..Self::WHOLE).contains(&millionths);
        if fits { Ok(Share(millionths)) } else { Err(format!("`{text}` is not between 0% and 100%")) }
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = format!("{}.{:04}", self.0 / 10_000, self.0 % 10_000);
        write!(f, "{}%", text.trim_end_matches('0').trim_end_matches('.'))
    }
}

impl Severity {
    /// Both, the usual first.
    pub const ALL: [Severity; 2] = [Severity::Ticket, Severity::Page];

    /// Its name in the file and in alerts.
    pub const fn name(self) -> &'static str {
        match self {
            Severity::Ticket => "ticket",
            Severity::Page => "page",
        }
    }
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Target, String> {
        let told = |error: crate::identity::NameError| format!("`{}` is no {}", error.text, error.what);
        match text.strip_prefix("tag:") {
            Some(tag) => tag.parse().map(Target::Tag).map_err(told),
            None => text.parse().map(Target::Node).map_err(told),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Node(name) => name.fmt(f),
            Target::Tag(tag) => write!(f, "tag:{tag}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_percentages_both_ways() {
        for (text, ratio) in
            [("1%", 0.01), ("0.1%", 0.001), ("99.9%", 0.999), ("0.0001%", 0.000_001), ("12.5 %", 0.125)]
        {
            let share: Share = text.parse().unwrap();
            assert!((share.ratio() - ratio).abs() < 1e-9, "{text}");
            assert_eq!(share.to_string().parse(), Ok(share));
        }
        assert_eq!("0.1".parse::<Share>().unwrap_err(), "`0.1` has no unit; did you mean `0.1%`?");
        for wrong in ["%", "0%", "100%", "-1%", "0.00001%", "1e-3%", "one%", "1..2%", ""] {
            assert!(wrong.parse::<Share>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn limits_are_fixed_or_over_the_baseline() {
        let ms = Duration::from_millis;
        assert_eq!("15ms".parse(), Ok(Limit::Fixed(ms(15))));
        assert_eq!("baseline+2ms".parse(), Ok(Limit::OverBaseline(ms(2))));
        assert_eq!("baseline + 2ms".parse::<Limit>().unwrap().to_string(), "baseline + 2ms");
        assert_eq!(Limit::OverBaseline(ms(2)).of(Some(ms(10))), Some(ms(12)));
        assert_eq!(Limit::OverBaseline(ms(2)).of(None), None);
        assert_eq!(
            "baseline".parse::<Limit>().unwrap_err(),
            "`baseline` does not say how much above; did you mean `baseline + 5ms`?"
        );
        for wrong in ["0ms", "baseline + 0ms", "2h", "baseline - 5ms", "15"] {
            assert!(wrong.parse::<Limit>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn every_kind_has_its_usual_form() {
        for kind in Condition::KINDS {
            assert_eq!(Condition::usual(kind).unwrap().kind(), kind);
        }
        assert!(Condition::usual("weather").is_none());
        assert!(Alert::defaults().len() <= Alert::LIMIT);
    }
}
