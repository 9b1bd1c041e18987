//! Server and client over real sockets.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::access::{Caller, Policy};
use super::fake::{Fake, healthy_status, ping_lines, troubled_status};
use super::server::CLIENT_LIMIT;
use super::*;

struct Running {
    _directory: tempfile::TempDir,
    socket: PathBuf,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Running {
    fn start(status: Status) -> Running {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("meshd.sock");
        let server = Server::bind(&socket, None).unwrap();
        let (stop, stopped) = oneshot::channel();
        let backend = Arc::new(Fake { status, ping: ping_lines() });
        let task = tokio::spawn(server.serve(backend, async move {
            let _ = stopped.await;
        }));
        Running { _directory: directory, socket, stop, task }
    }

    fn client(&self) -> Client {
        Client::new(&self.socket)
    }

    /// Sends raw bytes and reads until the daemon hangs up.
    async fn raw(&self, bytes: &[u8]) -> String {
        let mut stream = UnixStream::connect(&self.socket).await.unwrap();
        // The daemon may hang up before it has read everything.
        let _ = stream.write_all(bytes).await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        String::from_utf8_lossy(&answer).into_owned()
    }
}

fn ping(node: &str) -> PingRequest {
    PingRequest { node: node.into(), count: 5, interval_seconds: 0.1, mode: PingMode::Tunnel }
}

#[tokio::test]
async fn every_call_reaches_its_method() {
    let running = Running::start(troubled_status());
    let client = running.client();
    assert_eq!(client.status().await.unwrap(), troubled_status());
    assert_eq!(client.node().await.unwrap().name, "web1");
    assert_eq!(client.members().await.unwrap().members.len(), 7);
    assert_eq!(client.paths().await.unwrap(), super::fake::paths());
    assert_eq!(client.policy().await.unwrap(), super::fake::policy());
    assert_eq!(client.names().await.unwrap(), super::fake::names());
    assert_eq!(client.certificates().await.unwrap(), super::fake::certificates());
    assert_eq!(client.gateways().await.unwrap(), super::fake::gateways());
    assert_eq!(client.drain(&super::DrainRequest { node: None, undo: true }).await.unwrap().drain, None);
    assert_eq!(client.forwards().await.unwrap(), super::fake::forwards());
    assert_eq!(client.matrix().await.unwrap(), super::fake::matrix());
    assert_eq!(client.site_matrix().await.unwrap().sites.len(), 3);
    assert!(!client.health().await.unwrap().healthy);
    assert_eq!(client.version().await.unwrap().version, "0.1.0");
    let request = InviteRequest {
        name: "web9".into(),
        tags: vec!["web".into()],
        prefixes: Vec::new(),
        shared_priority: None,
        address: None,
        lifetime_seconds: 60,
        relay: true,
        replace: false,
        delegated: None,
    };
    assert_eq!(client.invite(&request).await.unwrap().token, "meshd1-dG9rZW4");
    assert_eq!(client.invites().await.unwrap().invites.len(), 2);
    let revoked = client.revoke_invite(&InviteRevokeRequest { invite: "db1".into() }).await.unwrap();
    assert_eq!(revoked.invite.state, InviteState::Used);
    assert_eq!(client.revoke(&RevokeRequest { node: "x".into(), revocation: None }).await.unwrap().sent_to, 3);
    let refused = client.renew().await.unwrap_err();
    assert!(matches!(refused, ClientError::Refused(ApiError { kind: ErrorKind::Conflict, .. })), "{refused}");
    assert_eq!(client.alerts().await.unwrap().receivers.len(), 2);
    assert_eq!(client.test_alert(&AlertTestRequest { receiver: "ops".into() }).await.unwrap().receiver, "ops");
    let mut lines = Vec::new();
    client.ping(&ping("db-par-17"), |line| lines.push(line)).await.unwrap();
    assert_eq!(lines, ping_lines());
    let refused = client.ping(&ping("nobody"), |_| {}).await.unwrap_err();
    assert!(matches!(refused, ClientError::Refused(ApiError { kind: ErrorKind::NotFound, .. })), "{refused}");
}

#[tokio::test]
async fn pings_are_bounded() {
    let running = Running::start(healthy_status());
    for (count, interval_seconds) in [(0, 1.0), (3_601, 1.0), (1, 0.001), (1, 61.0), (1, -1.0)] {
        let request = PingRequest { count, interval_seconds, ..ping("db-par-17") };
        let refused = running.client().ping(&request, |_| {}).await.unwrap_err();
        assert!(matches!(refused, ClientError::Refused(ApiError { kind: ErrorKind::BadRequest, .. })), "{refused}");
    }
}

#[tokio::test]
async fn a_missing_daemon_is_told_with_its_socket() {
    let client = Client::new("/nonexistent/meshd.sock");
    let error = client.status().await.unwrap_err();
    assert!(matches!(error, ClientError::NotRunning { .. }));
    assert!(error.to_string().contains("/nonexistent/meshd.sock") && error.to_string().contains("start it"), "{error}");
}

#[tokio::test]
async fn the_socket_is_private_and_goes_with_the_server() {
    let running = Running::start(healthy_status());
    let mode = std::fs::metadata(&running.socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert!(matches!(Server::bind(&running.socket, None), Err(BindError::InUse(_))));
    running.stop.send(()).unwrap();
    running.task.await.unwrap();
    assert!(!running.socket.exists());
}

#[tokio::test]
async fn a_dead_daemon_s_socket_is_replaced_and_a_file_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("meshd.sock");
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    assert!(socket.exists());
    let group = nix::unistd::getegid().as_raw();
    let server = Server::bind(&socket, Some(group)).unwrap();
    assert_eq!(std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o660);
    drop(server);
    std::fs::write(&socket, "precious").unwrap();
    assert!(matches!(Server::bind(&socket, None), Err(BindError::NoSocket(_))));
    assert_eq!(std::fs::read_to_string(&socket).unwrap(), "precious");
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
}

#[tokio::test]
async fn hostile_requests_are_refused_and_the_daemon_lives_on() {
    let running = Running::start(healthy_status());
    let large = format!("POST /v1/ping HTTP/1.1\r\nhost: x\r\ncontent-length: 70000\r\n\r\n{}", "x".repeat(70_000));
    assert!(running.raw(large.as_bytes()).await.starts_with("HTTP/1.1 400"));
    let head = format!("GET /v1/status HTTP/1.1\r\nx: {}\r\n\r\n", "x".repeat(100_000));
    assert!(!running.raw(head.as_bytes()).await.starts_with("HTTP/1.1 200"));
    let broken = b"POST /v1/revoke HTTP/1.1\r\nhost: x\r\ncontent-length: 8\r\n\r\n{\"node\":";
    assert!(running.raw(broken).await.starts_with("HTTP/1.1 400"));
    let wrong = running.raw(b"GET /v1/revoke HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert!(wrong.starts_with("HTTP/1.1 404"), "{wrong}");
    assert!(running.raw(b"GET /../../etc/passwd HTTP/1.1\r\nhost: x\r\n\r\n").await.starts_with("HTTP/1.1 404"));
    assert!(!running.raw(&[0xff; 4_096]).await.starts_with("HTTP/1.1 200"));
    running.client().version().await.unwrap();
}

#[tokio::test]
async fn more_clients_than_the_limit_are_told_so() {
    let running = Running::start(healthy_status());
    let mut idle = Vec::new();
    for _ in 0..CLIENT_LIMIT {
        idle.push(UnixStream::connect(&running.socket).await.unwrap());
    }
    let refused = running.raw(b"").await;
    assert!(refused.starts_with("HTTP/1.1 503") && refused.contains("\"busy\""), "{refused}");
    // One leaves, one comes.
    drop(idle.pop());
    let served = async {
        while running.client().version().await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(20), served).await.unwrap();
}

#[tokio::test]
async fn a_request_that_never_ends_is_cut_off() {
    let running = Running::start(healthy_status());
    let unfinished = async |request: &str| {
        let mut stream = UnixStream::connect(&running.socket).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        // The daemon hangs up by itself: nothing more is ever sent from here.
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        assert!(!String::from_utf8_lossy(&answer).starts_with("HTTP/1.1 200"));
    };
    let body = "POST /v1/ping HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{";
    tokio::join!(unfinished(""), unfinished("GET /v1/sta"), unfinished(body));
}

/// Calls as a caller with those numbers, which no process of a test can have.
async fn call_as(caller: Caller, policy: Policy, method: &str, path: &str) -> u16 {
    use hyper::service::Service;
    let backend = Arc::new(Fake { status: healthy_status(), ping: ping_lines() });
    let service = hyper_util::service::TowerToHyperService::new(super::router::router(backend, policy));
    let body = axum::body::Body::from(r#"{"node":"db-par-17","count":1,"interval_seconds":1.0}"#);
    let mut request = hyper::Request::builder().method(method).uri(path).body(body).unwrap();
    request.extensions_mut().insert(caller);
    service.call(request).await.unwrap().status().as_u16()
}

#[tokio::test]
async fn rights_decide_over_every_call() {
    let policy = Policy { own_uid: 4_000_001, reader_group: Some(4_000_010) };
    let stranger = Caller { uid: 4_000_002, gid: 4_000_002 };
    let reader = Caller { uid: 4_000_002, gid: 4_000_010 };
    let owner = Caller { uid: 4_000_001, gid: 4_000_001 };
    let reads = [
        "status",
        "node",
        "members",
        "matrix",
        "matrix/sites",
        "paths",
        "ledger",
        "policy",
        "forwards",
        "gateways",
        "certificates",
        "names",
        "health",
        "version",
        "invites",
    ]
    .map(|call| ("GET", call));
    let writes = [
        "invites",
        "invites/revoke",
        "revoke",
        "renew",
        "reload",
        "restart",
        "alerts/test",
        "forwards/switch",
        "policy/trace",
        "gateways/drain",
        "certificates",
    ]
    .map(|call| ("POST", call));
    for (method, call) in reads.into_iter().chain([("POST", "ping")]) {
        let path = format!("/v1/{call}");
        assert_eq!(call_as(stranger, policy, method, &path).await, 403, "{method} {path}");
        assert_eq!(call_as(reader, policy, method, &path).await, 200, "{method} {path}");
        assert_eq!(call_as(owner, policy, method, &path).await, 200, "{method} {path}");
    }
    for (method, call) in writes {
        let path = format!("/v1/{call}");
        assert_eq!(call_as(stranger, policy, method, &path).await, 403, "{method} {path}");
        assert_eq!(call_as(reader, policy, method, &path).await, 403, "{method} {path}");
        assert_ne!(call_as(owner, policy, method, &path).await, 403, "{method} {path}");
    }
}

#[test]
fn status_survives_json_and_unknown_fields() {
    let mut json = serde_json::to_value(troubled_status()).unwrap();
    json["weather"] = "fine".into();
    json["peers"][0]["mood"] = "low".into();
    assert_eq!(serde_json::from_value::<Status>(json).unwrap(), troubled_status());
}
