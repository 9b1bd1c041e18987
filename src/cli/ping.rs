//! `meshctl ping`.

use std::net::IpAddr;

use tokio::sync::oneshot;

use super::args::PingArgs;
use super::context::Context;
use super::exit::{Exit, Failure};
use super::output::{BAD, HEADING, STRONG, WORRYING, paint};
use super::quantity;
use super::status::render_loss;
use super::underlay::{self, Answers, Echoes, UnderlayLine};
use crate::api::{PathKind, PingLine, PingMode, PingRequest};

/// Pings a peer and shows each answer when it comes.
pub async fn run(context: &Context, args: &PingArgs) -> Result<(), Failure> {
    let interval_seconds = args.interval.as_secs_f64();
    if !(PingRequest::INTERVAL_MIN..=PingRequest::INTERVAL_MAX).contains(&interval_seconds) {
        return Err(Failure::new(Exit::Usage, "--interval must lie between 10ms and 60s"));
    }
    let request = PingRequest {
        node: args.node.clone(),
        count: args.count,
        interval_seconds,
        mode: if args.full_size { PingMode::FullSize } else { PingMode::Tunnel },
    };
    let output = context.output;
    let client = context.client()?;
    let (begin, began) = oneshot::channel();
    let (mut answered, mut tunnel) = (0, Vec::new());
    let mut written = Ok(());
    let pinging = async {
        let mut begin = Some(begin);
        let on_line = |line: PingLine| {
            match &line {
                PingLine::Start { node, path, size_bytes, .. } => {
                    let endpoint = path.as_ref().map(|path| path.endpoint.ip());
                    // Nobody waits for it without --underlay.
                    let _ = begin.take().map(|begin| begin.send((node.clone(), endpoint, *size_bytes)));
                }
                PingLine::Reply { tunnel_seconds, .. } => tunnel.push(*tunnel_seconds),
                PingLine::Summary { received, .. } => answered = *received,
                PingLine::Lost { .. } | PingLine::Failed { .. } => {}
            }
            let result = if output.json { output.json_line(&line) } else { output.data(&render(&line)) };
            if written.is_ok() {
                written = result;
            }
        };
        // The other half is let go with it, where there was no first line.
        client.ping(&request, on_line).await
    };
    let beside = async {
        let (node, endpoint, size) = if args.underlay { began.await.ok()? } else { return None };
        Some(echo(context, args, &node, endpoint, size).await)
    };
    let (pinged, echoed) = tokio::join!(pinging, beside);
    pinged?;
    written?;
    if let Some(echoed) = echoed {
        let (endpoint, answers) = echoed?;
        show_underlay(context, &answers.summary(endpoint, &tunnel))?;
    }
    if answered == 0 { Err(Failure::new(Exit::Failed, "")) } else { Ok(()) }
}

/// Sends echoes to the endpoint of a node: the one that its tunnel uses, else the first one it announces.
async fn echo(
    context: &Context,
    args: &PingArgs,
    node: &str,
    endpoint: Option<IpAddr>,
    size: u32,
) -> Result<(IpAddr, Answers), Failure> {
    let announced = async || {
        let members = context.client()?.members().await?.members;
        let announced = members.iter().find(|member| member.name == node).and_then(|member| member.endpoints.first());
        let unknown = || Failure::failed(format!("no endpoint of {node} is known to send an echo to"));
        announced.map(|endpoint| endpoint.ip()).ok_or_else(unknown)
    };
    let endpoint = match endpoint {
        Some(endpoint) => endpoint,
        None => announced().await?,
    };
    let inner_bytes = usize::try_from(size).unwrap_or(0);
    let echoes = Echoes { endpoint, inner_bytes, count: args.count, interval: args.interval };
    let mut written = Ok(());
    let answers = echoes.run(|line| {
        if written.is_ok() {
            written = show_underlay(context, &line);
        }
    });
    let answers = answers.await?;
    written.map(|()| (endpoint, answers))
}

fn show_underlay(context: &Context, line: &UnderlayLine) -> Result<(), Failure> {
    if context.output.json { context.output.json_line(line) } else { context.output.data(&underlay::render(line)) }
}

/// Renders one line of a ping.
pub fn render(line: &PingLine) -> String {
    match line {
        PingLine::Start { node, address, path, size_bytes, .. } => {
            let path = match path {
                Some(path) => match (path.kind, &path.via) {
                    (PathKind::Relay, Some(via)) => format!("via {via}, {}", path.endpoint),
                    (PathKind::Relay, None) => format!("relayed, {}", path.endpoint),
                    (PathKind::Tcp, _) => format!("tcp, {}", path.endpoint),
                    (PathKind::Direct, _) => format!("direct, {}", path.endpoint),
                },
                None => "no path".to_owned(),
            };
            format!("{} {address}  {path}  {}\n", paint(STRONG, node), quantity::bytes((*size_bytes).into()))
        }
        PingLine::Reply { sequence, path_seconds, tunnel_seconds, host_seconds } => {
            let [path, tunnel, host] = [path_seconds, tunnel_seconds, host_seconds].map(|s| quantity::seconds(*s));
            format!("{sequence:>4}  path {path}  tunnel {tunnel}  host {host}\n")
        }
        PingLine::Lost { sequence } => format!("{sequence:>4}  {}\n", paint(WORRYING, "no answer")),
        PingLine::Failed { sequence, reason } => {
            format!("{sequence:>4}  {}\n", paint(BAD, &format!("not sent: {reason}")))
        }
        PingLine::Summary {
            sent,
            received,
            loss,
            path_min_seconds,
            path_p50_seconds,
            path_max_seconds,
            path_jitter_seconds,
            tunnel_adds_p50_seconds,
        } => {
            let lost = loss.as_ref().map_or(0, |loss| loss.lost);
            let mut out = format!("{sent} sent, {received} answered, {lost} lost");
            if let Some(rate) = render_loss(loss.as_ref()) {
                out.push_str(&format!(", loss {rate}"));
            }
            if let (Some(min), Some(p50), Some(max)) = (path_min_seconds, path_p50_seconds, path_max_seconds) {
                let [min, p50, max] = [min, p50, max].map(|s| quantity::seconds(*s));
                out.push_str(&format!("\n{} min {min}, p50 {p50}, max {max}", paint(HEADING, "path")));
                if let Some(jitter) = path_jitter_seconds {
                    out.push_str(&format!(", jitter {}", quantity::seconds(*jitter)));
                }
                if let Some(adds) = tunnel_adds_p50_seconds {
                    out.push_str(&format!("; the tunnel adds {}", quantity::seconds(*adds)));
                }
            }
            out + "\n"
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::fake::ping_lines;

    #[test]
    fn a_ping_with_a_loss() {
        let text: String = ping_lines().iter().map(render).collect();
        insta::assert_snapshot!(anstream::adapter::strip_str(&text).to_string(), @r#"
            db-par-17 10.77.0.2  direct, 198.51.100.2:7655  128 B
               1  path 12.58 ms  tunnel 12.71 ms  host 24 us
               2  no answer
               3  path 12.61 ms  tunnel 12.74 ms  host 24 us
               4  not sent: no session
            3 sent, 2 answered, 1 lost
            path min 12.58 ms, p50 12.60 ms, max 12.61 ms, jitter 2 us; the tunnel adds 130 us
        "#);
    }

    #[test]
    fn a_ping_as_json_lines() {
        let lines: Vec<String> = ping_lines().iter().map(|line| serde_json::to_string(line).unwrap()).collect();
        insta::assert_snapshot!(lines.join("\n"), @r#"
            {"kind":"start","schema":1,"node":"db-par-17","address":"10.77.0.2","path":{"kind":"direct","endpoint":"198.51.100.2:7655","via":null},"size_bytes":128}
            {"kind":"reply","sequence":1,"path_seconds":0.01258,"tunnel_seconds":0.01271,"host_seconds":0.000024}
            {"kind":"lost","sequence":2}
            {"kind":"reply","sequence":3,"path_seconds":0.01261,"tunnel_seconds":0.01274,"host_seconds":0.000024}
            {"kind":"failed","sequence":4,"reason":"no session"}
            {"kind":"summary","sent":3,"received":2,"loss":{"lost":1,"sent":3,"ratio":0.3333333333333333,"low":0.0615,"high":0.7923},"path_min_seconds":0.01258,"path_p50_seconds":0.012595,"path_max_seconds":0.01261,"path_jitter_seconds":2e-6,"tunnel_adds_p50_seconds":0.00013}
        "#);
    }
}
