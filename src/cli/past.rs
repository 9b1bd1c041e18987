//! What the daemon remembers of one link, for the pages that show one: the last day as a line, the budget, the last events.

use std::time::Duration;

use super::output::{BAD, HEADING, WORRYING, paint};
use super::quantity;
use super::sparkline::sparkline;
use crate::api::{Client, ClientError, EventItem, EventsRequest, History, HistoryRequest, Timestamp};

/// Events that are shown.
const EVENTS: u64 = 10;
/// Over how long a budget is counted.
const MONTH: Duration = Duration::from_secs(30 * 86_400);
/// How long a link may be bad in a month: an objective of 99.9 %.
const ALLOWED: Duration = Duration::from_secs(30 * 86_400 / 1_000);
/// The shortest time that says something of a month.
const LEAST: Duration = Duration::from_secs(600);
/// Terminal columns of a line's name.
const NAME_WIDTH: usize = 13;
/// The longest line that is drawn: ten minutes a column make a day.
const LINE: usize = 144;

/// What the daemon remembers; a reason where it does not.
#[derive(Clone, Debug)]
pub struct Past {
    /// The last day.
    pub day: Result<History, String>,
    /// The last 30 days, by the day.
    pub month: Result<History, String>,
    /// What happened last, oldest first.
    pub events: Result<Vec<EventItem>, String>,
}

impl Past {
    /// Asks the daemon.
    pub async fn load(client: &Client, peer: &str, now: Timestamp) -> Past {
        let why = |error: ClientError| match error {
            ClientError::Refused(refused) => refused.message,
            error => error.to_string(),
        };
        let ask = |back: Duration, step| HistoryRequest {
            peer: peer.to_owned(),
            since: Some(Timestamp(now.0 - back)),
            until: None,
            step_seconds: Some(step),
        };
        let events = EventsRequest { peer: Some(peer.to_owned()), limit: Some(EVENTS), ..EventsRequest::default() };
        let (day, month) = (ask(Duration::from_secs(86_400), 600), ask(MONTH, 86_400));
        Past {
            day: client.history(&day).await.map_err(why),
            month: client.history(&month).await.map_err(why),
            events: client.events(&events).await.map_err(why).map(|events| events.events),
        }
    }
}

fn line(name: &str, text: &str) -> String {
    format!("{}{}{text}\n", paint(HEADING, name), " ".repeat(NAME_WIDTH.saturating_sub(name.len())))
}

/// Draws round trips as a line between their ends; says so where there are none.
pub fn drawn(name: &str, rtts: &[Option<f64>], width: usize) -> String {
    let room = width.saturating_sub(NAME_WIDTH + 24).clamp(8, LINE);
    match sparkline(rtts, room) {
        Some(drawn) => {
            let (low, high) = (quantity::seconds(drawn.low), quantity::seconds(drawn.high));
            line(name, &format!("{low} |{}| {high}", drawn.text))
        }
        None => line(name, "nothing is known"),
    }
}

/// Renders it for a terminal of so many columns, as lines like those of the page around it.
pub fn render(past: &Past, width: usize) -> String {
    let mut out = match &past.day {
        Ok(day) => {
            let medians: Vec<Option<f64>> = day.points.iter().map(|point| Some(point.path?.p50_seconds)).collect();
            drawn("last 24 h", &medians, width)
        }
        Err(why) => line("last 24 h", &format!("not known: {why}")),
    };
    out.push_str(&match &past.month {
        Ok(month) => line("budget", &budget(month)),
        Err(why) => line("budget", &format!("not known: {why}")),
    });
    match &past.events {
        Ok(events) if events.is_empty() => out.push_str(&line("events", "none")),
        Ok(events) => {
            for (at, event) in events.iter().rev().enumerate() {
                let name = if at == 0 { "events" } else { "" };
                out.push_str(&line(name, &format!("{}  {}: {}", event.at, event.kind, event.text)));
            }
        }
        Err(why) => out.push_str(&line("events", &format!("not known: {why}"))),
    }
    out
}

/// How much of the time that may be bad in a month was: outages whole, of the rest the share of probes that were lost or slow.
fn budget(month: &History) -> String {
    let total = &month.total;
    let states = &total.states;
    let told = states.observed() - states.unknown - states.new;
    let Some(loss) = total.loss.filter(|loss| loss.sent > 0 && told > 0.0) else {
        return "not known yet: no probe of this link is recorded".to_owned();
    };
    let known = month.points.iter().find(|point| !point.gap).map_or(month.since, |point| point.start);
    let age = |seconds: f64| quantity::age(seconds.round() as u64);
    let outages = total.outage_seconds.max(states.down).min(told);
    // In an outage probes go out more often, and its time is counted already.
    let apart = total.probes_lost_in_outages.min(loss.lost);
    let (lost, sent) = (loss.lost - apart, loss.sent - apart);
    let share = (lost + total.probes_slow) as f64 / sent.max(1) as f64;
    let bad = outages + (told - outages) * share.min(1.0);
    let parts = format!(
        "outages {}, {lost} of {} lost, {} slow, degraded for {}",
        age(outages),
        quantity::count(sent, "probe"),
        total.probes_slow,
        age(states.degraded)
    );
    if told < LEAST.as_secs_f64() {
        return format!("not known yet: {} are recorded ({parts})", age(told));
    }
    let left = 1.0 - bad / ALLOWED.as_secs_f64();
    let indent = " ".repeat(NAME_WIDTH);
    let text = format!(
        "{} bad of the {} that 99.9% allow in 30 days\n{indent}{parts}\n{indent}counted since {known}",
        age(bad),
        age(ALLOWED.as_secs_f64())
    );
    match left {
        left if left <= 0.0 => format!("{}: {text}", paint(BAD, "used up")),
        left if left < 0.25 => format!("{}: {text}", paint(WORRYING, &format!("{:.0}% left", left * 100.0))),
        left => format!("{:.1}% left: {text}", left * 100.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::fake::history;
    use crate::api::{LossRatio, StateSeconds};

    fn plain(text: &str) -> String {
        anstream::adapter::strip_str(text).to_string()
    }

    /// A month with so many probes lost of so many, apart from outages, and so many slow ones; seconds up, and in outages.
    fn spent([lost, sent, slow]: [u64; 3], [up, outages]: [f64; 2]) -> String {
        let mut month = history();
        // Ten probes a second while it is down.
        let apart = (outages * 10.0) as u64;
        let (lost, sent) = (lost + apart, sent + apart);
        month.total.loss = Some(LossRatio { lost, sent, ratio: 0.0, low: 0.0, high: 1.0 });
        (month.total.probes_slow, month.total.probes_lost_in_outages) = (slow, apart);
        month.total.outage_seconds = outages;
        // Two seconds of suspicion are part of the outage.
        let suspect = outages.min(2.0);
        month.total.states = StateSeconds { up, suspect, down: outages - suspect, ..StateSeconds::default() };
        plain(&budget(&month))
    }

    #[test]
    fn a_budget_counts_outages_and_bad_probes_as_time() {
        let month = 2_592_000;
        let up = |outages: f64| [month as f64 - outages, outages];
        insta::assert_snapshot!(spent([12, month, 0], up(0.0)), @r"
            99.5% left: 12s bad of the 43m12s that 99.9% allow in 30 days
                         outages 0s, 12 of 2592000 probes lost, 0 slow, degraded for 0s
                         counted since 2026-11-22T12:00:00Z
        ");
        insta::assert_snapshot!(spent([12, month - 1_200, 3], up(1_200.0)), @r"
            53.1% left: 20m15s bad of the 43m12s that 99.9% allow in 30 days
                         outages 20m00s, 12 of 2590800 probes lost, 3 slow, degraded for 0s
                         counted since 2026-11-22T12:00:00Z
        ");
        assert!(spent([12, 86_400, 0], [86_400.0, 0.0]).starts_with("99.5% left: 12s bad of the 43m12s "), "a day");
        assert!(spent([12, 432_000, 0], [86_400.0, 0.0]).starts_with("99.9% left: 2s bad "), "a day at five a second");
        assert!(spent([0, month, 2_000], up(0.0)).starts_with("23% left: 33m20s "));
        assert!(spent([0, month, 0], up(2_600.0)).starts_with("used up: 43m20s "));
        assert!(spent([1, 60, 0], [60.0, 0.0]).starts_with("not known yet: 1m00s are recorded (outages 0s, 1 of 60 "));
        assert_eq!(spent([0, 0, 0], [0.0, 0.0]), "not known yet: no probe of this link is recorded");
    }

    #[test]
    fn what_is_not_kept_is_said_with_its_reason() {
        let why = || "no history is kept".to_owned();
        let past = Past { day: Err(why()), month: Err(why()), events: Ok(Vec::new()) };
        insta::assert_snapshot!(plain(&render(&past, 80)), @r#"
            last 24 h    not known: no history is kept
            budget       not known: no history is kept
            events       none
        "#);
    }

    #[test]
    fn the_day_is_drawn_and_the_newest_event_comes_first() {
        let event = |sequence, text: &str| EventItem {
            sequence,
            at: history().since,
            kind: "latency_step".into(),
            peer: None,
            text: text.into(),
        };
        let past =
            Past { day: Ok(history()), month: Ok(history()), events: Ok(vec![event(1, "older"), event(2, "newer")]) };
        let text = plain(&render(&past, 80));
        let bars = text.lines().next().unwrap();
        assert!(bars.starts_with("last 24 h") && bars.contains('|') && bars.chars().count() <= 80, "{text}");
        assert!(text.find("newer").unwrap() < text.find("older").unwrap(), "{text}");
    }
}
