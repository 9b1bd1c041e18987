//! Pages for programs and browsers: read-only HTTP on a TCP address that only this host or the mesh can reach.

use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Version, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use ipnet::IpNet;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;

/// Connections served at once; more are closed. A browser opens six, a monitor one.
pub const CONNECTION_LIMIT: usize = 64;
/// Bytes of a request's head after which it is refused: a browser's, with every header it likes to send, stays below
/// 2 KiB.
const HEAD_LIMIT: usize = 16 * 1024;
/// How long a request's head may take to arrive; it is one packet.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a connection lives at most: one request, one answer, over the slowest link that a person would put up with.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(30);
/// Connections the kernel holds for us while we are busy.
const BACKLOG: i32 = 64;

/// Who may see a page.
#[derive(Clone, Debug, Default)]
pub struct PageGuard {
    /// Host names that a request may ask for, besides addresses and `localhost`: this node's own. Any other name may be
    /// one that an attacker's page resolves to our address (DNS rebinding).
    pub names: Vec<String>,
    /// Where connections to another address than loopback may come from: the overlay. Whoever comes from elsewhere came by
    /// a physical interface.
    pub networks: Vec<IpNet>,
}

impl PageGuard {
    /// Returns whether a connection from `source` to the local address `to` is served. Loopback cannot be reached from
    /// outside: the kernel sees to that.
    pub fn admits(&self, source: IpAddr, to: IpAddr) -> bool {
        to.is_loopback() || self.networks.iter().any(|network| network.contains(&source.to_canonical()))
    }

    /// Returns whether a request may ask for this host: the value of its `Host` header, with or without a port.
    pub fn answers_for(&self, host: &str) -> bool {
        let name = match host.strip_prefix('[') {
            Some(rest) => rest.split_once(']').map_or(rest, |(address, _)| address),
            None => host.rsplit_once(':').map_or(host, |(name, _)| name),
        };
        let known = |own: &String| own.eq_ignore_ascii_case(name);
        name.parse::<IpAddr>().is_ok() || name.eq_ignore_ascii_case("localhost") || self.names.iter().any(known)
    }
}

/// A bound address.
#[derive(Debug)]
pub struct PageServer {
    listener: TcpListener,
    address: SocketAddr,
}

impl PageServer {
    /// Binds the address, also where the host does not have it yet: the mesh's device may come later. Needs a tokio
    /// runtime.
    ///
    /// # Errors
    /// Something else listens there, or the port is not ours to take.
    pub fn bind(address: SocketAddr) -> io::Result<PageServer> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        match address {
            SocketAddr::V4(_) => socket.set_freebind_v4(true)?,
            SocketAddr::V6(_) => {
                socket.set_only_v6(true)?;
                socket.set_freebind_v6(true)?;
            }
        }
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        let listener = TcpListener::from_std(socket.into())?;
        let address = listener.local_addr()?;
        Ok(PageServer { listener, address })
    }

    /// Returns where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves `pages` until `shutdown` is done; answers under way are then broken off.
    pub async fn serve(self, pages: Router, guard: PageGuard, shutdown: impl Future<Output = ()>) {
        let guard = Arc::new(guard);
        let pages = pages.fallback(absent).layer(from_fn_with_state(Arc::clone(&guard), admit));
        let permits = Arc::new(Semaphore::new(CONNECTION_LIMIT));
        let mut connections = JoinSet::new();
        tokio::pin!(shutdown);
        loop {
            let accepted = tokio::select! {
                () = &mut shutdown => return,
                Some(_) = connections.join_next(), if !connections.is_empty() => continue,
                accepted = self.listener.accept() => accepted,
            };
            let (stream, source) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of descriptors, most likely: the client waits in the backlog until some are free.
                    tracing::warn!(%error, "cannot accept a connection to {}", self.address);
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            if !guard.admits(source.ip(), self.address.ip()) {
                continue;
            }
            if let Ok(permit) = permits.clone().try_acquire_owned() {
                let pages = pages.clone();
                connections.spawn(async move {
                    serve_one(stream, pages).await;
                    drop(permit);
                });
            }
        }
    }
}

/// Serves one request, within its time.
async fn serve_one(stream: TcpStream, pages: Router) {
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_LIMIT)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(pages));
    // A client that breaks off, or breaks the protocol, has had its answer.
    let _ = timeout(CONNECTION_TIMEOUT, connection).await;
}

/// Lets a request through that looks, and asks for this host; says with every answer what a browser may do with it.
async fn admit(State(guard): State<Arc<PageGuard>>, request: Request, next: Next) -> Response {
    let mut response = match refusal(&guard, &request) {
        Some(refusal) => refusal,
        None => next.run(request).await,
    };
    let headers = response.headers_mut();
    let mut unless_set = |name, value| {
        headers.entry(name).or_insert(HeaderValue::from_static(value));
    };
    unless_set(header::CONTENT_SECURITY_POLICY, "default-src 'none'; frame-ancestors 'none'");
    unless_set(header::X_CONTENT_TYPE_OPTIONS, "nosniff");
    unless_set(header::REFERRER_POLICY, "no-referrer");
    unless_set(header::HeaderName::from_static("cross-origin-resource-policy"), "same-origin");
    unless_set(header::CACHE_CONTROL, "no-store");
    response
}

fn refusal(guard: &PageGuard, request: &Request) -> Option<Response> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let allow = [(header::ALLOW, "GET, HEAD")];
        return Some((StatusCode::METHOD_NOT_ALLOWED, allow, "only GET and HEAD\n").into_response());
    }
    match host(request.headers()) {
        Some(host) if guard.answers_for(host) => None,
        // A program of the first kind, which no browser is.
        None if request.version() == Version::HTTP_10 => None,
        _ => {
            let says = "ask for this page by an address, by `localhost` or by this node's own name\n";
            Some((StatusCode::MISDIRECTED_REQUEST, says).into_response())
        }
    }
}

/// The one `Host` header of a request.
fn host(headers: &HeaderMap) -> Option<&str> {
    let mut values = headers.get_all(header::HOST).iter();
    let first = values.next()?;
    if values.next().is_some() { Some("") } else { Some(first.to_str().unwrap_or_default()) }
}

async fn absent() -> Response {
    (StatusCode::NOT_FOUND, "there is no such page\n").into_response()
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::sync::oneshot;

    fn guard() -> PageGuard {
        let networks = ["10.77.0.0/16", "fd12:3456:789a::/64"].map(|network| network.parse().unwrap());
        PageGuard { names: vec!["web1".to_owned()], networks: networks.to_vec() }
    }

    struct Running {
        address: SocketAddr,
        _stop: oneshot::Sender<()>,
    }

    fn start() -> Running {
        let server = PageServer::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let (address, (stop, stopped)) = (server.address(), oneshot::channel::<()>());
        let pages = Router::new().route("/word", get(async || "here\n"));
        tokio::spawn(server.serve(pages, guard(), async {
            let _ = stopped.await;
        }));
        Running { address, _stop: stop }
    }

    /// Sends raw bytes and reads until the server hangs up.
    async fn raw(address: SocketAddr, bytes: &[u8]) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let _ = stream.write_all(bytes).await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        String::from_utf8_lossy(&answer).into_owned()
    }

    async fn ask(address: SocketAddr, method: &str, path: &str, host: &str) -> String {
        raw(address, format!("{method} {path} HTTP/1.1\r\nhost: {host}\r\n\r\n").as_bytes()).await
    }

    #[tokio::test]
    async fn a_page_is_read_and_nothing_else_is_done() {
        let running = start();
        let page = ask(running.address, "GET", "/word", "127.0.0.1:9655").await;
        assert!(page.starts_with("HTTP/1.1 200") && page.ends_with("here\n"), "{page}");
        for promised in [
            "content-security-policy: default-src 'none'",
            "x-content-type-options: nosniff",
            "cross-origin-resource-policy: same-origin",
            "cache-control: no-store",
            "connection: close",
        ] {
            assert!(page.contains(promised), "{promised} in {page}");
        }
        assert!(!page.contains("access-control"), "{page}");
        let head = ask(running.address, "HEAD", "/word", "localhost").await;
        assert!(head.starts_with("HTTP/1.1 200") && !head.contains("here"), "{head}");
        assert!(ask(running.address, "GET", "/wrod", "localhost").await.starts_with("HTTP/1.1 404"));
        for method in ["POST", "PUT", "DELETE", "OPTIONS", "PATCH"] {
            let refused = ask(running.address, method, "/word", "localhost").await;
            assert!(refused.starts_with("HTTP/1.1 405") && refused.contains("allow: GET, HEAD"), "{refused}");
        }
    }

    #[tokio::test]
    async fn a_name_that_is_not_ours_is_refused() {
        let running = start();
        for host in ["localhost", "localhost:8080", "WEB1:9655", "127.0.0.1", "[::1]:9655", "10.77.0.1:7656"] {
            assert!(ask(running.address, "GET", "/word", host).await.starts_with("HTTP/1.1 200"), "{host}");
        }
        for host in ["evil.example", "evil.example:9655", "web1.evil.example", "localhost.evil.example", "", "[", "::1"]
        {
            let refused = ask(running.address, "GET", "/word", host).await;
            let expected = if host == "::1" { "HTTP/1.1 " } else { "HTTP/1.1 421" };
            assert!(refused.starts_with(expected) && !refused.contains("here"), "{host}: {refused}");
        }
        let twice = "GET /word HTTP/1.1\r\nhost: localhost\r\nhost: evil.example\r\n\r\n";
        assert!(!raw(running.address, twice.as_bytes()).await.contains("here"));
        assert!(!raw(running.address, b"GET /word HTTP/1.1\r\n\r\n").await.contains("here"));
        assert!(raw(running.address, b"GET /word HTTP/1.0\r\n\r\n").await.contains("here"));
    }

    #[test]
    fn only_the_mesh_reaches_an_overlay_address() {
        let guard = guard();
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        for (source, to, served) in [
            ("127.0.0.1", "127.0.0.1", true),
            ("10.77.3.4", "10.77.0.1", true),
            ("fd12:3456:789a::a4d:2", "fd12:3456:789a::a4d:1", true),
            ("198.51.100.7", "10.77.0.1", false),
            ("2001:db8::7", "fd12:3456:789a::a4d:1", false),
        ] {
            assert_eq!(guard.admits(address(source), address(to)), served, "{source} to {to}");
        }
    }

    #[tokio::test]
    async fn an_address_that_is_not_there_yet_is_bound() {
        // Of the range for documentation: no host has it.
        for address in ["192.0.2.1:0", "[2001:db8::1]:0"] {
            let address: SocketAddr = address.parse().unwrap();
            let bound = PageServer::bind(address).unwrap().address();
            assert_eq!(bound.ip(), address.ip());
        }
    }

    #[tokio::test]
    async fn hostile_connections_end_and_the_server_lives_on() {
        let running = start();
        let long = format!("GET /word HTTP/1.1\r\nhost: localhost\r\nx: {}\r\n\r\n", "x".repeat(100_000));
        assert!(!raw(running.address, long.as_bytes()).await.starts_with("HTTP/1.1 200"));
        assert!(!raw(running.address, &[0xff; 4_096]).await.starts_with("HTTP/1.1 200"));
        let body = "GET /word HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100000000\r\n\r\n";
        assert!(raw(running.address, body.as_bytes()).await.starts_with("HTTP/1.1 200"));
        // The server hangs up by itself on a head that never ends.
        assert!(!raw(running.address, b"GET /wo").await.starts_with("HTTP/1.1 200"));
        assert!(ask(running.address, "GET", "/word", "localhost").await.contains("here"));
    }

    #[tokio::test]
    async fn connections_are_bounded() {
        let running = start();
        let mut idle = Vec::new();
        for _ in 0..CONNECTION_LIMIT {
            idle.push(TcpStream::connect(running.address).await.unwrap());
        }
        assert_eq!(ask(running.address, "GET", "/word", "localhost").await, "");
        drop(idle);
        let served = async { while ask(running.address, "GET", "/word", "localhost").await.is_empty() {} };
        timeout(Duration::from_secs(20), served).await.unwrap();
    }
}
