//! Alerts on their way to one receiver: a task with a bounded queue, which keeps nobody else waiting.

use std::os::unix::process::CommandExt;
use std::process::Stdio;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{CONTENT_TYPE, HeaderName, HeaderValue, USER_AGENT};
use hyper::{Request, StatusCode};
use hyper_rustls::HttpsConnectorBuilder;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::AsyncWriteExt;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::time::timeout;

use crate::config::Receiver;
use crate::config::receiver::{HttpReceiver, ReceiverKind};
use crate::platform::{clock, file, privileges};
use crate::telemetry::alert::{Delivery, Failure, Health, Notice};

/// Notices between the control task and a courier that is on its way; what waits longer waits in its [`Delivery`].
const HANDOVER: usize = 64;
/// Bytes of a header file at most: a token has less than four KiB.
const HEADER_LIMIT: u64 = 8 * 1024;

/// A receiver's task.
pub(super) struct Courier {
    pub(super) receiver: Receiver,
    notices: mpsc::Sender<Notice>,
    health: Arc<Mutex<Health>>,
    /// Notices given up before they reached the task.
    overflown: AtomicU64,
    task: AbortHandle,
}

impl Courier {
    /// Starts the task. The seed spreads the attempts of many nodes at one receiver.
    pub(super) fn start(receiver: Receiver, seed: u64) -> Courier {
        let (notices, queue) = mpsc::channel(HANDOVER);
        let health = Arc::new(Mutex::new(Health::default()));
        let task = tokio::spawn(run(receiver.clone(), queue, Arc::clone(&health), seed)).abort_handle();
        Courier { receiver, notices, health, overflown: AtomicU64::new(0), task }
    }

    /// Hands a notice over. Where the courier has been away for long and its queue is full, the notice is given up.
    pub(super) fn tell(&self, notice: Notice) {
        if self.notices.try_send(notice).is_err() {
            self.overflown.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How the receiver does.
    pub(super) fn health(&self) -> Health {
        let health = self.health.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Health { dropped: health.dropped + self.overflown.load(Ordering::Relaxed), ..health }
    }
}

impl Drop for Courier {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn run(receiver: Receiver, mut queue: mpsc::Receiver<Notice>, health: Arc<Mutex<Health>>, seed: u64) {
    let mut delivery = Delivery::new(receiver.clone(), seed);
    loop {
        while let Ok(notice) = queue.try_recv() {
            delivery.offer(notice, clock::now());
        }
        if let Some(parcel) = delivery.poll(clock::now(), clock::wall()) {
            let outcome = deliver(&receiver, parcel.body).await;
            if let Err(failure) = &outcome {
                tracing::warn!(receiver = %receiver.name, "alert not delivered to {}: {}", receiver.kind.place(), failure.why);
            }
            delivery.finished(outcome, clock::now(), clock::wall());
            publish(&health, delivery.health());
            continue;
        }
        publish(&health, delivery.health());
        let sleep = delivery.deadline().map_or(Duration::MAX, |at| at.saturating_since(clock::now()));
        tokio::select! {
            notice = queue.recv() => match notice {
                Some(notice) => delivery.offer(notice, clock::now()),
                None => return,
            },
            // At most a minute: after a suspend, deadlines are looked at within that.
            () = tokio::time::sleep(sleep.min(Duration::from_secs(60))) => {}
        }
    }
}

fn publish(shown: &Mutex<Health>, health: &Health) {
    *shown.lock().unwrap_or_else(PoisonError::into_inner) = health.clone();
}

/// Delivers one body, within the receiver's time.
pub(super) async fn deliver(receiver: &Receiver, body: String) -> Result<(), Failure> {
    let attempt = async {
        match &receiver.kind {
            ReceiverKind::Webhook(http) => post(http, "", body).await,
            ReceiverKind::Alertmanager(http) => post(http, "/api/v2/alerts", body).await,
            ReceiverKind::Command(words) => run_command(words, body).await,
        }
    };
    let late = || failed(format!("it took longer than {} s", receiver.timeout.as_secs()), false);
    timeout(receiver.timeout, attempt).await.unwrap_or_else(|_| Err(late()))
}

fn failed(why: impl Into<String>, is_final: bool) -> Failure {
    Failure { why: why.into(), is_final }
}

/// Sends a POST. Redirects are not followed: what an alert says is for the receiver that the configuration names.
async fn post(http: &HttpReceiver, path: &str, body: String) -> Result<(), Failure> {
    let mut request = Request::post(format!("{}{path}", http.url.trim_end_matches('/')))
        .header(CONTENT_TYPE, "application/json")
        .header(USER_AGENT, concat!("meshd/", env!("CARGO_PKG_VERSION")))
        .body(Full::new(Bytes::from(body)))
        // The configuration has checked it; what it let through no attempt will change.
        .map_err(|_| failed("its url cannot be asked for", true))?;
    if let Some(file) = &http.header_file {
        let (name, value) = header_in(file).map_err(|why| failed(why, false))?;
        request.headers_mut().insert(name, value);
    }
    let sent = if http.url.starts_with("https:") {
        // The roots are read anew: they change while a daemon runs for months, and alerts are rare.
        let connector = tokio::task::spawn_blocking(|| HttpsConnectorBuilder::new().with_native_roots()).await;
        let connector = connector.map_err(|_| failed("the system's certificates cannot be read", false))?;
        let connector = connector.map_err(|error| failed(format!("the system's certificates: {error}"), false))?;
        let connector = connector.https_only().enable_http1().build();
        Client::builder(TokioExecutor::new()).build(connector).request(request).await
    } else {
        Client::builder(TokioExecutor::new()).build_http().request(request).await
    };
    let response = sent.map_err(|error| failed(causes(&error), false))?;
    match response.status() {
        status if status.is_success() => Ok(()),
        status if status.is_redirection() => {
            Err(failed(format!("it answered {status}; redirects are not followed"), true))
        }
        status @ (StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS) => {
            Err(failed(format!("it answered {status}"), false))
        }
        status => Err(failed(format!("it answered {status}"), status.is_client_error())),
    }
}

/// An error with what caused it, down to what the system or the other end said.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}

/// Reads a header line from a private file. What it says is in no error.
fn header_in(path: &std::path::Path) -> Result<(HeaderName, HeaderValue), String> {
    let bytes = file::read_private(path, HEADER_LIMIT).map_err(|error| error.to_string())?;
    let line = bytes.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let wrong = || format!("{} holds no line such as `Authorization: Bearer …`", path.display());
    let colon = line.iter().position(|byte| *byte == b':').ok_or_else(wrong)?;
    let name = HeaderName::from_bytes(line[..colon].trim_ascii()).map_err(|_| wrong())?;
    let mut value = HeaderValue::from_bytes(line[colon + 1..].trim_ascii()).map_err(|_| wrong())?;
    value.set_sensitive(true);
    Ok((name, value))
}

/// A running program with everything it started; killed when this goes before the program has ended.
struct Program(Option<Pid>);

impl Drop for Program {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // Not reaped yet, so that the number is still its own group's.
            let _ = killpg(group, Signal::SIGKILL);
        }
    }
}

/// Runs a program: no shell, no environment, none of the privileges an ordinary user was given to run the daemon, in `/`, with the body on its standard input.
async fn run_command(words: &[String], body: String) -> Result<(), Failure> {
    let Some((program, arguments)) = words.split_first() else { return Err(failed("it names no program", true)) };
    let mut command = std::process::Command::new(program);
    command.args(arguments).env_clear().current_dir("/").process_group(0);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    privileges::start_without(&mut command);
    let spawned = tokio::process::Command::from(command).spawn();
    let mut child = spawned.map_err(|error| failed(format!("it does not start: {error}"), false))?;
    let mut running = Program(child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw));
    if let Some(mut input) = child.stdin.take() {
        // A program need not read it.
        let _ = input.write_all(body.as_bytes()).await;
    }
    let ended = child.wait().await;
    running.0 = None;
    let ended = ended.map_err(|error| failed(error.to_string(), false))?;
    if ended.success() { Ok(()) } else { Err(failed(format!("it ended with {ended}"), false)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::Router;
    use axum::body::Bytes as Body;
    use axum::extract::State;
    use axum::http::HeaderMap;
    use axum::response::{IntoResponse, Redirect, Response};
    use axum::routing::post as on_post;
    use std::net::SocketAddr;
    use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};

    /// What a receiver was told: header and body.
    type Told = mpsc::UnboundedSender<(HeaderMap, String)>;

    /// A receiver that answers by what its path says.
    async fn listen() -> (SocketAddr, mpsc::UnboundedReceiver<(HeaderMap, String)>) {
        async fn good(State(told): State<Told>, headers: HeaderMap, body: Body) -> Response {
            let _ = told.send((headers, String::from_utf8_lossy(&body).into_owned()));
            StatusCode::OK.into_response()
        }
        let (told, hears) = mpsc::unbounded_channel();
        let pages = Router::new()
            .route("/good", on_post(good))
            .route("/api/v2/alerts", on_post(good))
            .route("/broken", on_post(async || StatusCode::INTERNAL_SERVER_ERROR))
            .route("/busy", on_post(async || StatusCode::TOO_MANY_REQUESTS))
            .route("/moved", on_post(async || Redirect::temporary("/good")))
            .route("/silent", on_post(async || std::future::pending::<StatusCode>().await))
            .with_state(told);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            loop {
                let Ok((stream, _)) = listener.accept().await else { return };
                let service = hyper_util::service::TowerToHyperService::new(pages.clone());
                let stream = hyper_util::rt::TokioIo::new(stream);
                tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(stream, service));
            }
        });
        (address, hears)
    }

    fn receiver(kind: ReceiverKind) -> Receiver {
        let name = "ops".parse().unwrap();
        Receiver { name, kind, timeout: Duration::from_secs(1), repeat: Receiver::REPEAT }
    }

    fn webhook(url: String, header_file: Option<std::path::PathBuf>) -> Receiver {
        receiver(ReceiverKind::Webhook(HttpReceiver { url, header_file }))
    }

    fn notice() -> Notice {
        Notice {
            status: crate::telemetry::alert::NoticeStatus::Firing,
            rule: "link-down".parse().unwrap(),
            what: "link_down",
            severity: crate::config::alert::Severity::Page,
            node: Some("web1".to_owned()),
            mesh: "example".to_owned(),
            subject: crate::telemetry::alert::Subject::Peer("db1".to_owned()),
            reading: None,
            detail: String::new(),
            since: crate::time::UnixTime::from_secs(1_795_356_000),
            ended: None,
            receivers: Vec::new(),
        }
    }

    #[tokio::test]
    async fn a_good_receiver_gets_the_body_and_its_header() {
        let (address, mut hears) = listen().await;
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("header");
        let mut options = std::fs::OpenOptions::new();
        let written = options.write(true).create_new(true).mode(0o600).open(&file).unwrap();
        std::io::Write::write_all(&mut &written, b"Authorization: Bearer word\n").unwrap();
        let good = webhook(format!("http://{address}/good"), Some(file.clone()));
        deliver(&good, "{}".to_owned()).await.unwrap();
        let (headers, body) = hears.recv().await.unwrap();
        assert_eq!((headers["authorization"].to_str().unwrap(), body.as_str()), ("Bearer word", "{}"));
        assert_eq!(headers["content-type"], "application/json");
        let itself = HttpReceiver { url: format!("http://{address}/"), header_file: None };
        deliver(&receiver(ReceiverKind::Alertmanager(itself)), "[]".to_owned()).await.unwrap();
        assert_eq!(hears.recv().await.unwrap().1, "[]");
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
        let exposed = deliver(&good, "{}".to_owned()).await.unwrap_err();
        assert!(!exposed.is_final && !exposed.why.contains("word"), "{exposed:?}");
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
        std::fs::write(&file, "word").unwrap();
        assert!(deliver(&good, "{}".to_owned()).await.unwrap_err().why.contains("holds no line such as"));
    }

    #[tokio::test]
    async fn bad_receivers_fail_for_their_reasons() {
        let (address, mut hears) = listen().await;
        let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        for (url, why, is_final) in [
            (format!("http://{address}/broken"), "500", false),
            (format!("http://{address}/busy"), "429", false),
            (format!("http://{address}/wrong"), "404", true),
            (format!("http://{address}/moved"), "redirects are not followed", true),
            (format!("http://{address}/silent"), "it took longer than 1 s", false),
            (format!("http://{gone}/"), "refused", false),
            // It speaks no TLS.
            (format!("https://{address}/good"), "", false),
        ] {
            let failure = deliver(&webhook(url.clone(), None), "{}".to_owned()).await.unwrap_err();
            assert!(failure.why.contains(why) && failure.is_final == is_final, "{url}: {failure:?}");
        }
        assert!(hears.try_recv().is_err(), "nobody was told by another way");
    }

    #[tokio::test]
    async fn a_program_gets_the_body_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let told = directory.path().join("told");
        let script = format!("cat > {0}; pwd >> {0}; export -p >> {0}; echo \"$1\" >> {0}", told.display());
        let command = |script: &str| {
            let words = ["/bin/sh", "-c", script, "sh", "$(id); `id`"].map(str::to_owned);
            receiver(ReceiverKind::Command(words.to_vec()))
        };
        deliver(&command(&script), "{\"a\":1}\n".to_owned()).await.unwrap();
        let text = std::fs::read_to_string(&told).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!((lines[0], lines[1], *lines.last().unwrap()), ("{\"a\":1}", "/", "$(id); `id`"));
        // What a shell exports by itself, and nothing of ours.
        assert!(!text.contains("CARGO") && !text.contains("HOME="), "{text}");
        let failure = deliver(&command("exit 3"), "{}".to_owned()).await.unwrap_err();
        assert!(failure.why.contains("exit status: 3") && !failure.is_final, "{failure:?}");
        let missing = receiver(ReceiverKind::Command(vec!["/nonexistent/page".to_owned()]));
        assert!(deliver(&missing, "{}".to_owned()).await.unwrap_err().why.contains("does not start"));
    }

    #[tokio::test]
    async fn a_program_that_hangs_is_killed_with_what_it_started() {
        let directory = tempfile::tempdir().unwrap();
        let pipe = directory.path().join("alive");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let script = format!("exec 3> {}; sleep 1000 & sleep 1000", pipe.display());
        let words = ["/bin/sh", "-c", &script].map(str::to_owned).to_vec();
        let opened = tokio::task::spawn_blocking(move || std::fs::read(pipe));
        let failure = deliver(&receiver(ReceiverKind::Command(words)), "{}".to_owned()).await.unwrap_err();
        assert!(failure.why.contains("longer than 1 s"), "{failure:?}");
        // The pipe ends once nobody holds it any more: neither the shell nor its children.
        assert_eq!(timeout(Duration::from_secs(20), opened).await.unwrap().unwrap().unwrap(), b"");
    }

    #[tokio::test]
    async fn a_courier_whose_receiver_hangs_keeps_nobody_waiting() {
        let (address, mut hears) = listen().await;
        let hanging = Courier::start(webhook(format!("http://{address}/silent"), None), 1);
        let well = Courier::start(webhook(format!("http://{address}/good"), None), 1);
        for _ in 0..HANDOVER * 2 {
            hanging.tell(notice());
        }
        well.tell(notice());
        let (_, body) = hears.recv().await.unwrap();
        assert!(body.contains("\"version\":\"4\"") && body.contains("\"peer\":\"db1\""), "{body}");
        assert!(hanging.health().dropped >= HANDOVER as u64, "{:?}", hanging.health());
        let done = async {
            while well.health().delivered == 0 {
                tokio::task::yield_now().await;
            }
        };
        timeout(Duration::from_secs(20), done).await.unwrap();
    }
}
