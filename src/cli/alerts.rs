//! `meshctl alerts`.

use super::args::{AlertsArgs, AlertsCommand};
use super::context::Context;
use super::exit::Failure;
use super::output::{BAD, GOOD, HEADING, STRONG, WORRYING, paint};
use super::quantity;
use super::table::{Align, Cell, Table};
use crate::api::{AlertList, AlertPhase, AlertSeverity, AlertTestRequest, ReceiverStatus};

/// Lists the alerts, or tries a receiver.
pub async fn run(context: &Context, args: &AlertsArgs) -> Result<(), Failure> {
    let client = context.client()?;
    match &args.command {
        None => {
            let list = client.alerts().await?;
            match context.output.json {
                true => context.output.json(&list),
                false => context.output.data(&render(&list, context.output.width())),
            }
        }
        Some(AlertsCommand::Test { receiver }) => {
            let tested = client.test_alert(&AlertTestRequest { receiver: receiver.clone() }).await?;
            if context.output.json {
                return context.output.json(&tested);
            }
            let took = quantity::seconds(tested.seconds);
            context
                .output
                .data(&format!("{} was told: {} took the test within {took}\n", tested.receiver, tested.place))
        }
    }
}

/// Renders the alerts, what fires first, and how the receivers do.
pub fn render(list: &AlertList, width: usize) -> String {
    let mut out = String::new();
    if list.rules.is_empty() {
        return "no alerts: the configuration has neither a [[receiver]] nor an [[alert]]\n".to_owned();
    }
    let firing = list.alerts.iter().filter(|alert| alert.phase == AlertPhase::Firing).count() as u64;
    let pending = list.alerts.len() as u64 - firing;
    out.push_str(&format!(
        "{} firing, {pending} pending, {}\n",
        firing,
        quantity::count(list.rules.len() as u64, "rule")
    ));
    if !list.alerts.is_empty() {
        let mut table = Table::new(&[
            ("STATE", Align::Left),
            ("SEVERITY", Align::Left),
            ("RULE", Align::Left),
            ("PEER", Align::Left),
            ("FOR", Align::Right),
            ("VALUE", Align::Right),
            ("THRESHOLD", Align::Right),
            ("BASELINE", Align::Right),
            ("NOTE", Align::Left),
        ]);
        for alert in &list.alerts {
            let (state, style) = match (alert.phase, alert.severity) {
                (AlertPhase::Firing, AlertSeverity::Page) => ("firing", BAD),
                (AlertPhase::Firing, AlertSeverity::Ticket) => ("firing", WORRYING),
                (AlertPhase::Pending, _) => ("pending", HEADING),
            };
            let or_dash = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
            table.row([
                Cell::styled(state, style),
                severity_name(alert.severity).into(),
                Cell::styled(alert.rule.clone(), STRONG),
                or_dash(&alert.peer).into(),
                quantity::since(list.now, alert.since).into(),
                or_dash(&alert.value).into(),
                or_dash(&alert.threshold).into(),
                alert.baseline_seconds.map_or("-".to_owned(), quantity::seconds).into(),
                alert.untold.clone().unwrap_or_default().into(),
            ]);
        }
        out.push('\n');
        out.push_str(&table.fitted(width, &["NOTE", "BASELINE", "SEVERITY", "THRESHOLD"]).render(HEADING));
    }
    out.push('\n');
    if list.receivers.is_empty() {
        out.push_str(
            "nobody is told: the configuration has no [[receiver]]; alerts stand in the log and in `meshctl events`\n",
        );
        return out;
    }
    out.push_str(&receivers(list, width));
    out
}

fn receivers(list: &AlertList, width: usize) -> String {
    let mut table = Table::new(&[
        ("RECEIVER", Align::Left),
        ("TYPE", Align::Left),
        ("HEALTH", Align::Left),
        ("DELIVERED", Align::Right),
        ("FAILED", Align::Right),
        ("DROPPED", Align::Right),
        ("WAITING", Align::Right),
        ("LAST", Align::Right),
        ("PLACE", Align::Left),
    ]);
    for receiver in &list.receivers {
        let (health, style) = match (&receiver.failure, receiver.last_success) {
            (Some(_), _) => ("failing", BAD),
            (None, Some(_)) => ("ok", GOOD),
            (None, None) => ("unused", HEADING),
        };
        let last = receiver.last_success.map_or("-".to_owned(), |at| format!("{} ago", quantity::since(list.now, at)));
        table.row([
            Cell::styled(receiver.name.clone(), STRONG),
            receiver.kind.clone().into(),
            Cell::styled(health, style),
            receiver.delivered.to_string().into(),
            receiver.failed.to_string().into(),
            receiver.dropped.to_string().into(),
            receiver.queued.to_string().into(),
            last.into(),
            receiver.place.clone().into(),
        ]);
    }
    let mut out = table.fitted(width, &["PLACE", "TYPE", "WAITING", "LAST"]).render(HEADING);
    let failing = |receiver: &ReceiverStatus| {
        let why = receiver.failure.as_ref()?;
        Some(format!("{} {}: {why}\n", paint(BAD, "failing"), receiver.name))
    };
    out.extend(list.receivers.iter().filter_map(failing));
    out
}

const fn severity_name(severity: AlertSeverity) -> &'static str {
    match severity {
        AlertSeverity::Ticket => "ticket",
        AlertSeverity::Page => "page",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::Backend;
    use crate::api::fake::{Fake, healthy_status};

    fn plain(list: &AlertList, width: usize) -> String {
        anstream::adapter::strip_str(&render(list, width)).to_string()
    }

    #[tokio::test]
    async fn alerts_at_two_widths() {
        let list = Fake { status: healthy_status(), ping: Vec::new() }.alerts().await.unwrap();
        insta::assert_snapshot!(plain(&list, 160), @r#"
            2 firing, 1 pending, 2 rules

            STATE    SEVERITY  RULE          PEER         FOR    VALUE  THRESHOLD  BASELINE  NOTE
            firing   page      node-down     db-par-22  4m00s        -          -         -
            firing   ticket    latency-step  db-par-17  2h01m  2.31 ms    1.00 ms  10.30 ms
            pending  page      link-down     db-par-23    12s        -          -         -  node-down says it

            RECEIVER  TYPE     HEALTH   DELIVERED  FAILED  DROPPED  WAITING       LAST  PLACE
            ops       webhook  ok              12       0        0        0  4m00s ago  https://alerts.example.com
            pager     command  failing         12       7        0        1  4m00s ago  /usr/local/bin/page
            failing pager: it ended with exit status: 3
        "#);
        let narrow = plain(&list, 80);
        assert!(narrow.lines().all(|line| line.chars().count() <= 80), "{narrow}");
        insta::assert_snapshot!(narrow, @r#"
            2 firing, 1 pending, 2 rules

            STATE    SEVERITY  RULE          PEER         FOR    VALUE  THRESHOLD  BASELINE
            firing   page      node-down     db-par-22  4m00s        -          -         -
            firing   ticket    latency-step  db-par-17  2h01m  2.31 ms    1.00 ms  10.30 ms
            pending  page      link-down     db-par-23    12s        -          -         -

            RECEIVER  TYPE     HEALTH   DELIVERED  FAILED  DROPPED  WAITING       LAST
            ops       webhook  ok              12       0        0        0  4m00s ago
            pager     command  failing         12       7        0        1  4m00s ago
            failing pager: it ended with exit status: 3
        "#);
    }

    #[tokio::test]
    async fn nothing_to_tell() {
        let mut list = Fake { status: healthy_status(), ping: Vec::new() }.alerts().await.unwrap();
        (list.alerts, list.receivers) = (Vec::new(), Vec::new());
        insta::assert_snapshot!(plain(&list, 80), @r#"
            0 firing, 0 pending, 2 rules

            nobody is told: the configuration has no [[receiver]]; alerts stand in the log and in `meshctl events`
        "#);
        list.rules.clear();
        insta::assert_snapshot!(plain(&list, 80), @r#"
            no alerts: the configuration has neither a [[receiver]] nor an [[alert]]
        "#);
    }
}
