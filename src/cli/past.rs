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
/// The share of a month's probes that may be lost: an objective of 99.9 %, which at one a second are 2,592 of them.
const ALLOWED: f64 = 0.001;
/// The shortest time from whose pace a month's probes can be told.
const PACE: Duration = Duration::from_secs(600);
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

/// How many of the probes that a month may lose are lost.
fn budget(month: &History) -> String {
    let total = &month.total;
    let observed = total.states.observed();
    let Some(loss) = total.loss.filter(|loss| loss.sent > 0 && observed > 0.0) else {
        return "not known yet: no probe of this link is recorded".to_owned();
    };
    let known = month.points.iter().find(|point| !point.gap).map_or(month.since, |point| point.start);
    if observed < PACE.as_secs_f64() {
        let probes = quantity::count(loss.sent, "probe");
        return format!(
            "not known yet: {} of {probes} lost in the {} that are recorded",
            loss.lost,
            quantity::age(observed as u64)
        );
    }
    // At the pace of what is recorded, also where the month is not full yet.
    let allowed = loss.sent as f64 / observed * MONTH.as_secs_f64() * ALLOWED;
    let left = 1.0 - loss.lost as f64 / allowed;
    let text =
        format!("{} of the {:.0} probes lost that 99.9% allow in 30 days; counted since {known}", loss.lost, allowed);
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

    fn spent(lost: u64, sent: u64, seconds: f64) -> String {
        let mut month = history();
        month.total.loss = Some(LossRatio { lost, sent, ratio: 0.0, low: 0.0, high: 1.0 });
        month.total.states = StateSeconds { up: seconds, ..StateSeconds::default() };
        plain(&budget(&month))
    }

    #[test]
    fn a_budget_is_counted_at_the_pace_of_what_is_recorded() {
        let month = 2_592_000.0;
        assert!(spent(12, 2_592_000, month).starts_with("99.5% left: 12 of the 2592 probes lost that 99.9% allow"));
        assert!(spent(12, 86_400, 86_400.0).starts_with("99.5% left: 12 of the 2592 "), "a day of the same pace");
        assert!(spent(2_000, 2_592_000, month).starts_with("23% left: "));
        assert!(spent(3_000, 2_592_000, month).starts_with("used up: 3000 of the 2592 "));
        assert_eq!(spent(1, 60, 60.0), "not known yet: 1 of 60 probes lost in the 1m00s that are recorded");
        assert_eq!(spent(0, 0, 0.0), "not known yet: no probe of this link is recorded");
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
