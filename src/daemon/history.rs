//! What the local interface is told about the past. The control task says what is asked of whom and adds what is not stored
//! yet; the file is read elsewhere, so that nothing waits for a disk.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::mpsc;

use super::backend::call;
use super::commands::find_peer;
use super::driver::{Command, Driver};
use crate::api::{
    Answer, ApiError, ErrorKind, EventItem, Events, EventsRequest, History, HistoryPoint, HistoryRequest, LossRatio,
    SCHEMA, Spread, StateSeconds, Timestamp,
};
use crate::history::{HistoryError, Reader, StoredEvent, Tier, Wanted};
use crate::identity::NodeId;
use crate::platform::clock;
use crate::telemetry::{Bucket, Distribution, LossEstimate};
use crate::time::UnixTime;

/// How long the file is read for one answer: below what a client waits.
const LONGEST: Duration = Duration::from_secs(10);
/// Seconds of the past that single probes are kept of.
const RAW_SPAN: u64 = 3_600;

/// A stretch of time in steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Range {
    /// Where the first point begins, a whole number of steps.
    since: u64,
    /// Where the last point ends.
    until: u64,
    /// Seconds of a point.
    step: u64,
    /// Of which buckets; `None` for single probes.
    tier: Option<Tier>,
}

/// Whose past.
enum Whose {
    Present(NodeId, String),
    /// Nobody's who is a member now; the history may know it.
    Past(String),
}

/// Everything an answer is made of that the control task knows.
struct Asked {
    whose: Whose,
    range: Range,
    now: UnixTime,
    file: Option<PathBuf>,
    /// What is not stored yet.
    fresh: BTreeMap<UnixTime, Bucket>,
    baselines: std::sync::Arc<BTreeMap<NodeId, Duration>>,
}

/// Answers what a link was like.
pub(super) async fn history(commands: &mpsc::Sender<Command>, request: HistoryRequest) -> Answer<History> {
    let asked = call(commands, move |driver| ask(driver, &request)).await??;
    on_a_thread(move || asked.answer()).await
}

/// Answers what happened.
pub(super) async fn events(commands: &mpsc::Sender<Command>, request: EventsRequest) -> Answer<Events> {
    let (wanted, fresh, file) = call(commands, move |driver| ask_events(driver, &request)).await??;
    on_a_thread(move || answer_events(&wanted, fresh, file)).await
}

/// Runs what waits for the disk beside the control task.
async fn on_a_thread<T: Send + 'static>(work: impl FnOnce() -> Answer<T> + Send + 'static) -> Answer<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|_| Err(ApiError::new(ErrorKind::Internal, "the answer was broken off")))
}

fn ask(driver: &mut Driver, request: &HistoryRequest) -> Answer<Asked> {
    let (now, wall) = (clock::now(), clock::wall());
    let range = range(request, wall)?;
    let whose = match find_peer(driver, &request.peer) {
        Ok(node) => Whose::Present(node, driver.name_of(node)),
        Err(_) => Whose::Past(request.peer.clone()),
    };
    let recorder = driver.monitor.recorder();
    let fresh = match (&whose, range.tier) {
        (Whose::Past(_), _) => BTreeMap::new(),
        (Whose::Present(node, _), None) => recorder.last_hour(*node, range.step, now),
        (Whose::Present(node, _), Some(_)) => {
            let mut fresh = BTreeMap::<UnixTime, Bucket>::new();
            recorder.open(*node).for_each(|(minute, bucket)| fresh.entry(minute).or_default().merge(bucket));
            fresh
        }
    };
    let file = driver.monitor.history_file();
    Ok(Asked { whose, range, now: wall, file, fresh, baselines: driver.monitor.baselines() })
}

/// Checks a stretch of time and its step, or chooses the step.
fn range(request: &HistoryRequest, now: UnixTime) -> Answer<Range> {
    let refuse = |message: String, advice: &str| Err(ApiError::new(ErrorKind::BadRequest, message).advise(advice));
    let until = request.until.map_or(now, |until| until.0).as_secs();
    let since = request.since.map_or(until.saturating_sub(HistoryRequest::DEFAULT_SPAN), |since| since.0.as_secs());
    if since >= until {
        return refuse("the time asked for ends before it begins".into(), "since must lie before until");
    }
    // What nobody can have measured makes no points.
    let since = since.max(until.saturating_sub(Tier::Day.kept().as_secs()));
    let age = now.as_secs().saturating_sub(since);
    let step = match request.step_seconds {
        Some(step) if step < 60 && (step == 0 || step % 10 != 0) || step >= 60 && step % 60 != 0 => {
            let advice = "10 s and multiples of it below a minute, then whole minutes";
            return refuse(format!("there is no step of {step} s"), advice);
        }
        Some(step) => step,
        None => {
            let fits = |step: &u64| {
                let kept = Tier::for_step(*step).map_or(RAW_SPAN, |tier| tier.kept().as_secs());
                age <= kept && (until - since).div_ceil(*step) <= HistoryRequest::AUTO_POINTS
            };
            HistoryRequest::AUTO_STEPS.into_iter().find(fits).unwrap_or(86_400)
        }
    };
    if step < 60 && age > RAW_SPAN + step {
        let message = format!("steps of {step} s exist for the last hour only");
        return refuse(message, "ask for steps of a minute or more, or for less than an hour");
    }
    let (first, last) = (since / step * step, until.div_ceil(step).saturating_mul(step));
    let points = (last - first) / step;
    if points > HistoryRequest::POINT_LIMIT {
        let message = format!("{points} points are more than the {} an answer has", HistoryRequest::POINT_LIMIT);
        return refuse(message, "ask for a longer step or a shorter time");
    }
    Ok(Range { since: first, until: last, step, tier: Tier::for_step(step).filter(|_| step >= 60) })
}

impl Asked {
    fn answer(self) -> Answer<History> {
        let reader = self.file.as_ref().map(|file| Reader::open(file, LONGEST));
        let (node, peer) = match &self.whose {
            Whose::Present(node, name) => (*node, name.clone()),
            Whose::Past(text) => {
                let found = match &reader {
                    Some(Ok(reader)) => reader.find(text).map_err(unreadable)?,
                    _ => None,
                };
                let Some(found) = found else {
                    let message = format!("there is no peer `{text}`, and nothing is recorded of one");
                    return Err(
                        ApiError::new(ErrorKind::NotFound, message).advise("`meshctl members` lists the members")
                    );
                };
                (found.node, found.name)
            }
        };
        let Range { since, until, step, tier } = self.range;
        let mut points = BTreeMap::<u64, Bucket>::new();
        let mut put = |at: UnixTime, bucket: &Bucket| {
            if (since..until).contains(&at.as_secs()) {
                points.entry((at.as_secs() - since) / step).or_default().merge(bucket);
            }
        };
        if let (Some(tier), Some(reader)) = (tier, reader) {
            let [since, until] = [since, until].map(UnixTime::from_secs);
            reader.map_err(unreadable)?.buckets(node, tier, since, until, &mut put).map_err(unreadable)?;
        }
        self.fresh.iter().for_each(|(at, bucket)| put(*at, bucket));
        let total = points.values().fold(Bucket::default(), |mut total, bucket| {
            total.merge(bucket);
            total
        });
        let known_until = self.now.as_secs().clamp(since, until);
        let point = |start: u64, length: u64, bucket: &Bucket| {
            // What has not passed yet is not missing.
            let passed = length.min(known_until.saturating_sub(start));
            point(UnixTime::from_secs(start), Duration::from_secs(passed), bucket, tier.is_some())
        };
        let nothing = Bucket::default();
        let steps = (0..(until - since) / step).map(|i| (i, points.get(&i).unwrap_or(&nothing)));
        Ok(History {
            schema: SCHEMA,
            peer,
            node_id: node.to_string(),
            since: Timestamp(UnixTime::from_secs(since)),
            until: Timestamp(UnixTime::from_secs(until)),
            step_seconds: step,
            tier_seconds: tier.map_or(0, Tier::length),
            baseline_seconds: self.baselines.get(&node).map(Duration::as_secs_f64),
            points: steps.map(|(i, bucket)| point(since + i * step, step, bucket)).collect(),
            total: point(since, until - since, &total),
        })
    }
}

fn unreadable(error: HistoryError) -> ApiError {
    let kind = match error {
        HistoryError::TooLong { .. } => ErrorKind::TimedOut,
        _ => ErrorKind::Internal,
    };
    ApiError::new(kind, error.to_string())
}

/// A bucket as the interface tells it; `passed` is the time it could have been watched.
fn point(start: UnixTime, passed: Duration, bucket: &Bucket, has_transits: bool) -> HistoryPoint {
    let (observed, sent, lost) = (bucket.observed(), bucket.sent(), bucket.lost());
    let seconds = |millis: u64| Duration::from_millis(millis).as_secs_f64();
    let jitter = bucket.jitter().map(|jitter| jitter.map(|time| time.as_secs_f64()));
    // Where no loss had a direction, nothing is known of the directions.
    let told = bucket.lost_unknown == 0 || bucket.lost_unknown < lost;
    let toward = |lost, sent| loss(lost, sent).filter(|_| told);
    HistoryPoint {
        start: Timestamp(start),
        gap: observed.is_zero() && sent == 0,
        partial: observed * 2 < passed,
        probes_sent: sent,
        probes_answered: bucket.answered,
        probes_late: bucket.late,
        probes_slow: bucket.slow,
        probes_lost_in_outages: bucket.outage_lost.min(lost),
        probes_duplicate: bucket.duplicates,
        probes_reordered: bucket.reordered,
        longest_loss_run: bucket.longest_loss_run,
        path: spread(&bucket.path),
        tunnel: spread(&bucket.tunnel),
        host_delay: spread(&bucket.host),
        loss: loss(lost, sent),
        loss_forward: toward(bucket.lost_forward, sent),
        // What did not arrive there cannot be lost on the way back.
        loss_reverse: toward(bucket.lost_reverse, sent - bucket.lost_forward),
        data_loss_forward: loss(bucket.data_sent_lost, bucket.data_sent),
        data_loss_reverse: loss(bucket.data_received_lost, bucket.data_received),
        own_delay_mean_seconds: bucket
            .own_delay_nanos
            .checked_div(bucket.answered)
            .map(|nanos| Duration::from_nanos(nanos).as_secs_f64()),
        jitter_seconds: jitter.map(|[rtt, ..]| rtt),
        jitter_forward_seconds: jitter.filter(|_| has_transits).map(|[_, forward, _]| forward),
        jitter_reverse_seconds: jitter.filter(|_| has_transits).map(|[.., reverse]| reverse),
        states: StateSeconds {
            up: seconds(bucket.up_millis),
            degraded: seconds(bucket.degraded_millis),
            suspect: seconds(bucket.suspect_millis),
            down: seconds(bucket.down_millis),
            unknown: seconds(bucket.unknown_millis),
            new: seconds(bucket.new_millis),
        },
        outage_seconds: seconds(bucket.outage_millis.max(bucket.down_millis)),
        path_changes: bucket.path_changes,
        handshakes: bucket.handshakes,
        rx_bytes: bucket.rx_bytes,
        tx_bytes: bucket.tx_bytes,
    }
}

fn spread<const GROWTH: u32>(times: &Distribution<GROWTH>) -> Option<Spread> {
    let seconds = |quantile| times.quantile(quantile).map(|time| time.as_secs_f64());
    Some(Spread {
        p5_seconds: seconds(0.05)?,
        p25_seconds: seconds(0.25)?,
        p50_seconds: seconds(0.5)?,
        p75_seconds: seconds(0.75)?,
        p95_seconds: seconds(0.95)?,
        p99_seconds: seconds(0.99)?,
        min_seconds: times.min().as_secs_f64(),
        mean_seconds: times.mean().as_secs_f64(),
        max_seconds: times.max().as_secs_f64(),
    })
}

fn loss(lost: u64, sent: u64) -> Option<LossRatio> {
    let loss = LossEstimate::new(lost, sent)?;
    Some(LossRatio { lost: loss.lost, sent: loss.sent, ratio: loss.ratio(), low: loss.low, high: loss.high })
}

type AskedEvents = (Wanted, Vec<StoredEvent>, Option<PathBuf>);

fn ask_events(driver: &mut Driver, request: &EventsRequest) -> Answer<AskedEvents> {
    let limit = request.limit.unwrap_or(EventsRequest::DEFAULT);
    if !(1..=EventsRequest::LIMIT).contains(&limit) {
        let message = format!("a limit of {limit} events is outside 1 to {}", EventsRequest::LIMIT);
        return Err(ApiError::new(ErrorKind::BadRequest, message));
    }
    // A name that is nobody's now may have been somebody's.
    let peer = request.peer.as_ref().map(|peer| match find_peer(driver, peer) {
        Ok(node) => driver.name_of(node),
        Err(_) => peer.clone(),
    });
    let [since, until] = [request.since, request.until].map(|time| time.map(|time| time.0));
    let wanted = Wanted { peer, since, until, after: request.after, limit };
    let fresh = driver.monitor.events.after(0).map(super::monitor::stored);
    let fresh = fresh.filter(|event| wanted.is_met_by(event)).collect();
    Ok((wanted, fresh, driver.monitor.history_file()))
}

fn answer_events(wanted: &Wanted, fresh: Vec<StoredEvent>, file: Option<PathBuf>) -> Answer<Events> {
    // One more than is wanted, to see whether there are more.
    let one_more = Wanted { limit: wanted.limit + 1, ..wanted.clone() };
    let stored = match file.map(|file| Reader::open(&file, LONGEST)) {
        Some(Ok(reader)) => reader.events(&one_more).map_err(unreadable)?,
        // What the ring holds can be told without the file.
        Some(Err(_)) | None => Vec::new(),
    };
    let both: BTreeMap<u64, StoredEvent> =
        stored.into_iter().chain(fresh).map(|event| (event.sequence, event)).collect();
    let surplus = both.len().saturating_sub(usize::try_from(wanted.limit).unwrap_or(usize::MAX));
    let events = both.into_values().skip(surplus).map(|event| EventItem {
        sequence: event.sequence,
        at: Timestamp(event.at),
        kind: event.kind,
        peer: event.peer,
        text: event.text,
    });
    Ok(Events { schema: SCHEMA, events: events.collect(), truncated: surplus > 0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_795_356_120;

    fn asked(since: u64, until: u64, step: Option<u64>) -> Answer<Range> {
        let time = |ago: u64| Some(Timestamp(UnixTime::from_secs(NOW - ago)));
        let request = HistoryRequest { peer: "db1".into(), since: time(since), until: time(until), step_seconds: step };
        range(&request, UnixTime::from_secs(NOW))
    }

    #[test]
    fn the_step_follows_from_the_time_asked_for() {
        let steps = [600, 7_200, 86_400, 6 * 86_400, 90 * 86_400, 1_000 * 86_400]
            .map(|span| asked(span, 0, None).map(|range| (range.step, range.tier)));
        assert_eq!(
            steps,
            [
                Ok((10, None)),
                Ok((60, Some(Tier::Minute))),
                Ok((600, Some(Tier::TenMinutes))),
                Ok((3_600, Some(Tier::TenMinutes))),
                Ok((86_400, Some(Tier::Day))),
                Ok((86_400, Some(Tier::Day))),
            ]
        );
        // An hour of long ago is not kept by the second, and after a month not by the minute.
        assert_eq!(asked(90_000, 89_400, None).unwrap().step, 60);
        assert_eq!(asked(40 * 86_400, 40 * 86_400 - 3_600, None).unwrap().step, 600);
    }

    #[test]
    fn points_begin_at_whole_steps_and_cover_what_was_asked_for() {
        let range = asked(86_400, 0, Some(3_600)).unwrap();
        assert_eq!((range.since % 3_600, range.until % 3_600), (0, 0));
        assert!(range.since <= NOW - 86_400 && range.until >= NOW && (range.until - range.since) / 3_600 == 25);
    }

    #[test]
    fn what_cannot_be_answered_is_refused_with_advice() {
        for (since, until, step) in [
            (0, 0, None),
            (10, 20, None),
            (600, 0, Some(0)),
            (600, 0, Some(15)),
            (600, 0, Some(90)),
            (7_200, 0, Some(10)),
            (30 * 86_400, 0, Some(60)),
        ] {
            let refused = asked(since, until, step).unwrap_err();
            assert!(refused.kind == ErrorKind::BadRequest && refused.advice.is_some(), "{refused}");
        }
    }

    #[test]
    fn nothing_is_a_gap_and_no_zero() {
        let point = point(UnixTime::EPOCH, Duration::from_secs(60), &Bucket::default(), true);
        assert!(point.gap && point.partial);
        assert_eq!((point.path, point.loss, point.loss_forward, point.jitter_seconds), (None, None, None, None));
    }

    #[test]
    fn loss_without_a_direction_says_nothing_of_the_directions() {
        let unknown = Bucket { answered: 57, lost_unknown: 3, ..Bucket::default() };
        let shown = point(UnixTime::EPOCH, Duration::from_secs(60), &unknown, true);
        assert_eq!((shown.loss.map(|loss| loss.lost), shown.loss_forward, shown.loss_reverse), (Some(3), None, None));
        let forward = Bucket { answered: 57, lost_forward: 3, ..Bucket::default() };
        let shown = point(UnixTime::EPOCH, Duration::from_secs(60), &forward, true);
        assert_eq!(shown.loss_forward.map(|loss| (loss.lost, loss.sent)), Some((3, 60)));
        assert_eq!(shown.loss_reverse.map(|loss| (loss.lost, loss.sent)), Some((0, 57)));
    }
}
