//! `meshctl history NODE`: what a link was like.

use std::fmt::Write;
use std::time::Duration;

use clap::{Args, ValueEnum};

use super::context::Context;
use super::exit::Failure;
use super::output::{BAD, HEADING, STRONG, WORRYING, paint};
use super::quantity::{age, seconds};
use super::sparkline::sparkline;
use super::table::{Align, Cell, Table};
use super::when::{Step, When};
use crate::api::{Client, EventItem, EventsRequest, History, HistoryPoint, HistoryRequest, LossRatio, Timestamp};
use crate::config::duration;
use crate::platform::clock;

/// The format of a history for other programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Export {
    /// Comma-separated values, a line for each step, for a spreadsheet.
    Csv,
    /// As --json.
    Json,
}

/// `meshctl history`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  meshctl history db1                        the last 24 hours\n  \
                        meshctl history db1 --since 90d --step 1d\n  \
                        meshctl history db1 --since 10m --step 10s  single probes are kept for an hour\n  \
                        meshctl history db1 --since 2026-11-20 --until 2026-11-21T12:00:00Z --events\n  \
                        meshctl history db1 --compare 7d           beside the same hours a week ago\n  \
                        meshctl history db1 --since 30d --step 1h --export csv > db1.csv\n\n\
                        Times are in UTC. Minutes are kept for 30 days, ten minutes for 400 days, days for five years.\n\
                        A percentile of a day or a month is that of all its probes. What was not measured is a gap.")]
pub struct HistoryArgs {
    /// The node, by name, identifier or overlay address; also one that has gone.
    #[arg(value_name = "NODE")]
    pub node: String,
    /// Where to begin: so long ago, or a date.
    #[arg(long, value_name = "WHEN", default_value = "24h", value_parser = When::parse)]
    pub since: When,
    /// Where to end; now unless given.
    #[arg(long, value_name = "WHEN", value_parser = When::parse)]
    pub until: Option<When>,
    /// How much time a row stands for: 10s and multiples of it in the last hour, else whole minutes, such as 1m, 10m, 1h, 1d.
    #[arg(long, value_name = "STEP", default_value = "auto", value_parser = Step::parse)]
    pub step: Step,
    /// Shows beside it what it was like so much earlier.
    #[arg(long, value_name = "DURATION", value_parser = duration::parse, conflicts_with = "export")]
    pub compare: Option<Duration>,
    /// Notes what happened in the rows.
    #[arg(long, conflicts_with = "export")]
    pub events: bool,
    /// Prints every figure of every step for another program.
    #[arg(long, value_name = "FORMAT")]
    pub export: Option<Export>,
}

/// Rows of a table whose step was not given, at most: a day by the hour, a month by the day.
const ROWS: u64 = 48;

/// What is shown beside the history itself.
#[derive(Clone, Debug, Default)]
pub struct Beside {
    /// The same stretch earlier, and how much earlier that is as its user wrote it.
    pub earlier: Option<(History, String)>,
    /// What happened meanwhile.
    pub events: Vec<EventItem>,
    /// The same in more points, for the line below the table.
    pub fine: Option<History>,
}

/// Shows a link's past.
pub async fn run(context: &Context, args: &HistoryArgs) -> Result<(), Failure> {
    let client = context.client()?;
    let now = clock::wall();
    let until = args.until.map_or(now, |until| until.at(now));
    let since = args.since.at(now);
    let mut request = HistoryRequest {
        peer: args.node.clone(),
        since: Some(Timestamp(since)),
        until: args.until.map(|_| Timestamp(until)),
        step_seconds: args.step.0.map(|step| step.as_secs()),
    };
    if context.output.json || args.export == Some(Export::Json) {
        return context.output.json(&client.history(&request).await?);
    }
    if args.export == Some(Export::Csv) {
        return context.output.data(&csv(&client.history(&request).await?));
    }
    let fine = request.clone();
    if request.step_seconds.is_none() {
        let span = until.saturating_since(since).as_secs();
        let step = HistoryRequest::AUTO_STEPS.into_iter().skip(1).find(|step| span.div_ceil(*step) <= ROWS);
        // A quarter of an hour by the minute is still a table; less is asked for with --step.
        request.step_seconds = Some(step.unwrap_or(86_400));
    }
    let history = client.history(&request).await?;
    let beside = beside(&client, args, &request, fine, &history).await?;
    let room = context.output.width();
    context.output.data(&render(&history, &beside, room))
}

async fn beside(
    client: &Client,
    args: &HistoryArgs,
    request: &HistoryRequest,
    fine: HistoryRequest,
    history: &History,
) -> Result<Beside, Failure> {
    let mut beside = Beside::default();
    if fine.step_seconds.is_none() {
        beside.fine = Some(client.history(&fine).await?);
    }
    if let Some(compare) = args.compare {
        let earlier = |time: Timestamp| Some(Timestamp(time.0 - compare));
        let (since, until) = (earlier(history.since), earlier(history.until));
        let request = HistoryRequest { since, until, step_seconds: Some(history.step_seconds), ..request.clone() };
        beside.earlier = Some((client.history(&request).await?, crate::config::duration::format(compare)));
    }
    if args.events {
        let (since, until) = (Some(history.since), Some(history.until));
        let limit = Some(EventsRequest::LIMIT);
        let wanted = EventsRequest { peer: Some(history.peer.clone()), since, until, after: None, limit };
        beside.events = client.events(&wanted).await?.events;
    }
    Ok(beside)
}

/// Renders a link's past as a table with a line below it.
pub fn render(history: &History, beside: &Beside, room: usize) -> String {
    let earlier = beside.earlier.as_ref();
    let mut columns = vec![("FROM (UTC)", Align::Left), ("P50", Align::Right)];
    if earlier.is_some() {
        columns.push(("EARLIER", Align::Right));
    }
    columns.extend([
        ("P95", Align::Right),
        ("P99", Align::Right),
        ("MAX", Align::Right),
        ("HOST P99", Align::Right),
        ("JITTER", Align::Right),
        ("LOSS FWD/REV", Align::Right),
        ("DATA LOSS", Align::Right),
        ("AVAIL", Align::Right),
        ("DOWN", Align::Right),
        ("NOTE", Align::Left),
    ]);
    let mut table = Table::new(&columns);
    let mut index = 0;
    while index < history.points.len() {
        let point = &history.points[index];
        let gap = history.points[index..].iter().take_while(|point| point.gap).count();
        if gap > 0 {
            let length = age(gap as u64 * history.step_seconds);
            table
                .row([start(point.start, history.step_seconds).into(), Cell::styled(format!("gap {length}"), HEADING)]);
            index += gap;
            continue;
        }
        let before = earlier.and_then(|(earlier, _)| earlier.points.get(index));
        table.row(row(point, before, earlier.is_some(), history.step_seconds, &beside.events));
        index += 1;
    }
    let spare = ["HOST P99", "JITTER", "DATA LOSS", "MAX", "DOWN", "P95"];
    let mut out = table.fitted(room, &spare).render(HEADING);
    if let Some((_, ago)) = earlier {
        let _ = writeln!(
            out,
            "{}",
            paint(HEADING, &format!("EARLIER: the median {ago} before, and how much it has changed since"))
        );
    }
    out.push_str(&foot(history, beside, room));
    out
}

fn row(
    point: &HistoryPoint,
    before: Option<&HistoryPoint>,
    compares: bool,
    step: u64,
    events: &[EventItem],
) -> Vec<Cell> {
    let time = |value: Option<f64>| Cell::from(value.map_or("-".to_owned(), seconds));
    let path = point.path;
    let mut cells = vec![start(point.start, step).into(), time(path.map(|path| path.p50_seconds))];
    if compares {
        let was = before.and_then(|before| before.path).map(|path| path.p50_seconds);
        cells.push(difference(path.map(|path| path.p50_seconds), was));
    }
    let states = &point.states;
    let available = states.availability().map_or("-".to_owned(), |share| format!("{:.3}%", floored(share * 100.0)));
    let style = if states.down > 0.0 { BAD } else { anstyle::Style::new() };
    cells.extend([
        time(path.map(|path| path.p95_seconds)),
        time(path.map(|path| path.p99_seconds)),
        time(path.map(|path| path.max_seconds)),
        time(point.host_delay.map(|host| host.p99_seconds)),
        time(point.jitter_seconds),
        losses(point).into(),
        data_loss(point).into(),
        Cell::styled(available, style),
        if states.down > 0.0 { Cell::styled(age(states.down.ceil() as u64), BAD) } else { "0".into() },
        note(point, step, events),
    ]);
    cells
}

/// Cuts after three digits, so that nothing but everything shows as 100 %.
fn floored(percent: f64) -> f64 {
    (percent * 1_000.0 + 1e-6).floor() / 1_000.0
}

fn difference(now: Option<f64>, was: Option<f64>) -> Cell {
    match (now, was) {
        (Some(now), Some(was)) => {
            let sign = if now >= was { "+" } else { "-" };
            let text = format!("{} {sign}{}", seconds(was), seconds((now - was).abs()));
            // What an alarm for a step would ask for: half a millisecond or a twentieth.
            let news = (now - was).abs() > (was * 0.05).max(0.000_5);
            Cell::styled(text, if news { WORRYING } else { anstyle::Style::new() })
        }
        (None, Some(was)) => seconds(was).into(),
        _ => "-".into(),
    }
}

fn losses(point: &HistoryPoint) -> String {
    match (&point.loss_forward, &point.loss_reverse) {
        (Some(forward), Some(reverse)) => format!("{}/{}", percent(forward), percent(reverse)),
        _ => point.loss.as_ref().map_or("-".to_owned(), percent),
    }
}

fn data_loss(point: &HistoryPoint) -> String {
    match (&point.data_loss_forward, &point.data_loss_reverse) {
        (Some(forward), Some(reverse)) => format!("{}/{}", percent(forward), percent(reverse)),
        (Some(one), None) | (None, Some(one)) => percent(one),
        (None, None) => "-".to_owned(),
    }
}

/// A loss as far as it is known: `<0.11%` where none was seen, else the share.
fn percent(loss: &LossRatio) -> String {
    let (share, mark) = if loss.lost == 0 { (loss.high, "<") } else { (loss.ratio, "") };
    let percent = share * 100.0;
    let digits = if percent >= 10.0 {
        0
    } else if percent >= 1.0 {
        1
    } else if percent >= 0.1 {
        2
    } else {
        3
    };
    format!("{mark}{percent:.digits$}%")
}

fn note(point: &HistoryPoint, step: u64, events: &[EventItem]) -> Cell {
    let from = point.start.0.as_secs();
    let mut here = events.iter().filter(|event| (from..from + step).contains(&event.at.0.as_secs()));
    let mut notes = Vec::new();
    if point.partial {
        notes.push("partial".to_owned());
    }
    if point.states.degraded > 0.0 {
        notes.push(format!("degraded {}", age(point.states.degraded.ceil() as u64)));
    }
    if point.states.unknown > 0.0 {
        notes.push(format!("this node unwell {}", age(point.states.unknown.ceil() as u64)));
    }
    if let Some(event) = here.next() {
        let at = event.at.to_string();
        let more = here.count();
        let more = if more > 0 { format!(" (and {more} more)") } else { String::new() };
        notes.push(format!("{} {} at {}{more}", event.kind, event.text, at.get(11..16).unwrap_or(&at)));
    }
    let text = notes.join(", ");
    Cell::styled(text, if point.states.degraded > 0.0 { WORRYING } else { anstyle::Style::new() })
}

/// When a point begins: the day where steps are days, else day and time.
fn start(at: Timestamp, step: u64) -> String {
    let text = at.to_string().trim_end_matches('Z').replace('T', " ");
    let shown = if step.is_multiple_of(86_400) {
        10
    } else if step.is_multiple_of(60) {
        16
    } else {
        19
    };
    text.get(..shown).unwrap_or(&text).to_owned()
}

/// The line, and what the whole time was like.
fn foot(history: &History, beside: &Beside, room: usize) -> String {
    let mut out = String::new();
    let total = &history.total;
    let Some(path) = total.path else {
        return format!("{} nothing was measured in this time\n", paint(STRONG, &history.peer));
    };
    let fine = beside.fine.as_ref().unwrap_or(history);
    let medians: Vec<Option<f64>> = fine.points.iter().map(|point| point.path.map(|path| path.p50_seconds)).collect();
    if let Some(line) = sparkline(&medians, room.min(120).saturating_sub(30).max(10)) {
        let _ = writeln!(out, "p50 {} |{}| {}", seconds(line.low), line.text, seconds(line.high));
    }
    let _ = writeln!(
        out,
        "{}  p50 {}  p99 {}  max {}",
        paint(STRONG, &history.peer),
        seconds(path.p50_seconds),
        seconds(path.p99_seconds),
        seconds(path.max_seconds),
    );
    let lost = |loss: &LossRatio| format!("loss {} ({} of {})", percent(loss), loss.lost, loss.sent);
    let share = |share| format!("available {:.3}%", floored(share * 100.0));
    let baseline = |baseline| format!("median of 7 days {}", seconds(baseline));
    let more =
        [total.loss.as_ref().map(lost), total.states.availability().map(share), history.baseline_seconds.map(baseline)];
    let _ = writeln!(out, "{}", more.into_iter().flatten().collect::<Vec<_>>().join("   "));
    out
}

/// Every figure of every point, for a spreadsheet; what is not known is empty.
pub fn csv(history: &History) -> String {
    let mut out = String::from(
        "start,step_seconds,gap,partial,probes_sent,probes_answered,probes_late,probes_duplicate,probes_reordered,\
         longest_loss_run,path_min_seconds,path_p5_seconds,path_p25_seconds,path_p50_seconds,path_p75_seconds,\
         path_p95_seconds,path_p99_seconds,path_max_seconds,path_mean_seconds,tunnel_p50_seconds,tunnel_p99_seconds,\
         host_delay_p50_seconds,host_delay_p99_seconds,host_delay_max_seconds,lost,lost_forward,lost_reverse,\
         data_sent,data_sent_lost,data_received,data_received_lost,jitter_seconds,up_seconds,degraded_seconds,\
         suspect_seconds,down_seconds,unknown_seconds,new_seconds,path_changes,handshakes,rx_bytes,tx_bytes,\
         probes_slow,probes_lost_in_outages,outage_seconds\n",
    );
    let float = |value: Option<f64>| value.map_or(String::new(), |value| value.to_string());
    for point in &history.points {
        let (path, tunnel, host) = (point.path, point.tunnel, point.host_delay);
        let lost = |loss: &Option<LossRatio>| loss.map_or(String::new(), |loss| loss.lost.to_string());
        let sent = |loss: &Option<LossRatio>| loss.map_or(String::new(), |loss| loss.sent.to_string());
        let states = &point.states;
        let fields = [
            point.start.to_string(),
            history.step_seconds.to_string(),
            point.gap.to_string(),
            point.partial.to_string(),
            point.probes_sent.to_string(),
            point.probes_answered.to_string(),
            point.probes_late.to_string(),
            point.probes_duplicate.to_string(),
            point.probes_reordered.to_string(),
            point.longest_loss_run.to_string(),
            float(path.map(|path| path.min_seconds)),
            float(path.map(|path| path.p5_seconds)),
            float(path.map(|path| path.p25_seconds)),
            float(path.map(|path| path.p50_seconds)),
            float(path.map(|path| path.p75_seconds)),
            float(path.map(|path| path.p95_seconds)),
            float(path.map(|path| path.p99_seconds)),
            float(path.map(|path| path.max_seconds)),
            float(path.map(|path| path.mean_seconds)),
            float(tunnel.map(|tunnel| tunnel.p50_seconds)),
            float(tunnel.map(|tunnel| tunnel.p99_seconds)),
            float(host.map(|host| host.p50_seconds)),
            float(host.map(|host| host.p99_seconds)),
            float(host.map(|host| host.max_seconds)),
            lost(&point.loss),
            lost(&point.loss_forward),
            lost(&point.loss_reverse),
            sent(&point.data_loss_forward),
            lost(&point.data_loss_forward),
            sent(&point.data_loss_reverse),
            lost(&point.data_loss_reverse),
            float(point.jitter_seconds),
            states.up.to_string(),
            states.degraded.to_string(),
            states.suspect.to_string(),
            states.down.to_string(),
            states.unknown.to_string(),
            states.new.to_string(),
            point.path_changes.to_string(),
            point.handshakes.to_string(),
            point.rx_bytes.to_string(),
            point.tx_bytes.to_string(),
            point.probes_slow.to_string(),
            point.probes_lost_in_outages.to_string(),
            point.outage_seconds.to_string(),
        ];
        let _ = writeln!(out, "{}", fields.join(","));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::fake::{event_items, history};

    fn shown(beside: &Beside, room: usize) -> String {
        anstream::adapter::strip_str(&render(&history(), beside, room)).to_string()
    }

    #[test]
    fn a_past_with_a_gap_a_step_and_a_cut() {
        insta::assert_snapshot!(shown(&Beside::default(), usize::MAX), @r#"
            FROM (UTC)              P50       P95       P99       MAX  HOST P99  JITTER   LOSS FWD/REV      DATA LOSS     AVAIL  DOWN  NOTE
            2026-11-22 11:00  gap 1h00m
            2026-11-22 12:00   10.31 ms  10.53 ms  10.91 ms  48.31 ms    910 us   30 us  <0.11%/<0.11%  <0.11%/0.004%  100.000%     0
            2026-11-22 13:00   12.60 ms  12.82 ms  13.20 ms  50.60 ms    910 us   30 us    3.4%/<0.11%  <0.11%/0.004%   96.777%   58s  partial, degraded 1m00s
            p50 10.31 ms | ▁█| 12.60 ms
            db-par-17  p50 10.40 ms  p99 11.00 ms  max 48.40 ms
            loss 1.1% (62 of 5430)   available 96.777%   median of 7 days 10.30 ms
        "#);
        let beside = Beside { events: event_items(), earlier: Some((history(), "7d".into())), fine: None };
        insta::assert_snapshot!(shown(&beside, usize::MAX), @r#"
            FROM (UTC)              P50         EARLIER       P95       P99       MAX  HOST P99  JITTER   LOSS FWD/REV      DATA LOSS     AVAIL  DOWN  NOTE
            2026-11-22 11:00  gap 1h00m
            2026-11-22 12:00   10.31 ms  10.31 ms +0 us  10.53 ms  10.91 ms  48.31 ms    910 us   30 us  <0.11%/<0.11%  <0.11%/0.004%  100.000%     0
            2026-11-22 13:00   12.60 ms  12.60 ms +0 us  12.82 ms  13.20 ms  50.60 ms    910 us   30 us    3.4%/<0.11%  <0.11%/0.004%   96.777%   58s  partial, degraded 1m00s, latency_step 10.30 ms to 12.61 ms, on the way back at 13:10 (and 2 more)
            EARLIER: the median 7d before, and how much it has changed since
            p50 10.31 ms | ▁█| 12.60 ms
            db-par-17  p50 10.40 ms  p99 11.00 ms  max 48.40 ms
            loss 1.1% (62 of 5430)   available 96.777%   median of 7 days 10.30 ms
        "#);
    }

    #[test]
    fn eighty_columns_hold_what_matters() {
        let text = shown(&Beside::default(), 80);
        // The notes alone may go beyond: they break no column.
        assert!(text.lines().all(|line| line.chars().count() <= 80 || line.contains("partial")), "{text}");
        insta::assert_snapshot!(text, @r#"
            FROM (UTC)              P50       P99   LOSS FWD/REV     AVAIL  NOTE
            2026-11-22 11:00  gap 1h00m
            2026-11-22 12:00   10.31 ms  10.91 ms  <0.11%/<0.11%  100.000%
            2026-11-22 13:00   12.60 ms  13.20 ms    3.4%/<0.11%   96.777%  partial, degraded 1m00s
            p50 10.31 ms | ▁█| 12.60 ms
            db-par-17  p50 10.40 ms  p99 11.00 ms  max 48.40 ms
            loss 1.1% (62 of 5430)   available 96.777%   median of 7 days 10.30 ms
        "#);
    }

    #[test]
    fn a_spreadsheet_gets_every_figure() {
        let text = csv(&history());
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split(',').collect()).collect();
        assert_eq!(lines.iter().map(Vec::len).collect::<Vec<_>>(), [45; 4]);
        let at = |name: &str| lines[0].iter().position(|column| *column == name).unwrap();
        assert_eq!((lines[1][at("gap")], lines[1][at("path_p50_seconds")], lines[1][at("lost")]), ("true", "", ""));
        assert_eq!((lines[3][at("path_p50_seconds")], lines[3][at("lost_forward")]), ("0.0126", "62"));
        assert_eq!((lines[3][at("probes_lost_in_outages")], lines[3][at("outage_seconds")]), ("61", "60"));
    }

    #[test]
    fn nothing_but_everything_is_a_hundred_per_cent() {
        assert_eq!((floored(99.999_9), floored(100.0)), (99.999, 100.0));
    }
}
