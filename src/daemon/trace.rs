//! Watching what becomes of some packets, for `meshctl policy check --trace`.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use super::backend::call;
use super::driver::{Command, Driver};
use crate::api::{Answer, ApiError, ErrorKind, PacketStage, PolicyTraceRequest, SCHEMA, Timestamp, TraceLine};
use crate::platform::clock;
use crate::policy::{Seen, Selection, Sighting, Stage, Trace};

/// Lines that wait for a slow reader.
const LINES: usize = 64;
/// Time between two looks at what was seen: at once to a person, and no load.
const LOOK_PAUSE: Duration = Duration::from_millis(100);

/// A trace that has begun; it ends with this.
struct Running(Arc<Trace>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.end();
    }
}

impl Driver {
    fn begin_trace(&self, request: &PolicyTraceRequest) -> Answer<Running> {
        let (pairs, service) = self.pairs_of(&request.of)?;
        let Some(policy) = self.links.policy() else {
            let message = "there is no rule on this node, so everything is let in and nothing is judged";
            return Err(ApiError::new(ErrorKind::Conflict, message).advise("tcpdump shows packets at the interface"));
        };
        let trace = Arc::clone(policy.ledger().trace());
        if !trace.begin(Selection { pairs, service }, request.count) {
            let message = "somebody else watches packets here";
            return Err(ApiError::new(ErrorKind::Conflict, message).advise("try again when that has ended"));
        }
        Ok(Running(trace))
    }
}

/// Begins to watch; the channel ends after the summary.
pub(super) async fn start(
    commands: &mpsc::Sender<Command>,
    request: PolicyTraceRequest,
) -> Answer<mpsc::Receiver<TraceLine>> {
    let length = Duration::from_secs(request.seconds.into());
    let running = call(commands, move |driver| driver.begin_trace(&request)).await??;
    let (lines, reader) = mpsc::channel(LINES);
    tokio::spawn(async move {
        // Whoever asked may go at any time; then there is nothing more to do.
        let watching = watch(&running, &lines, length);
        tokio::select! {
            _ = watching => {}
            () = lines.closed() => {}
        }
    });
    Ok(reader)
}

/// Tells what is seen until enough is, or the time is over. `None` where nobody listens any more.
async fn watch(running: &Running, lines: &mpsc::Sender<TraceLine>, length: Duration) -> Option<()> {
    lines.send(TraceLine::Start { schema: SCHEMA }).await.ok()?;
    let end = tokio::time::Instant::now() + length;
    let (mut allowed, mut refused, mut missed) = (0, 0, 0);
    let mut is_over = false;
    while !is_over {
        let pause = tokio::time::Instant::now() + LOOK_PAUSE;
        tokio::time::sleep_until(pause.min(end)).await;
        let Seen { sightings, missed: more, complete } = running.0.take();
        missed += more;
        is_over = complete || tokio::time::Instant::now() >= end;
        for sighting in sightings {
            *(if sighting.outcome.is_ok() { &mut allowed } else { &mut refused }) += 1;
            lines.send(line(&sighting)).await.ok()?;
        }
    }
    lines.send(TraceLine::Summary { allowed, refused, missed }).await.ok()
}

fn line(sighting: &Sighting) -> TraceLine {
    let Sighting { at, flow, length, stage, outcome } = *sighting;
    TraceLine::Packet {
        at: Timestamp(clock::wall() - clock::now().saturating_since(at)),
        source: flow.source,
        source_port: flow.source_port,
        destination: flow.destination,
        destination_port: flow.destination_port,
        protocol: flow.protocol,
        length_bytes: length as u64,
        stage: match stage {
            Stage::New => PacketStage::New,
            Stage::Established => PacketStage::Established,
            Stage::Reply => PacketStage::Reply,
            Stage::Departing => PacketStage::Departing,
            Stage::Fragment => PacketStage::Fragment,
            Stage::Error => PacketStage::Error,
        },
        allowed: outcome.is_ok(),
        rule: outcome.ok().flatten().map(|rule| rule as u64 + 1),
        reason: outcome.err().map(str::to_owned),
    }
}
