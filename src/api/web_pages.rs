//! The page that people read in a browser: the mesh as a heat-map, and each link over time.
//!
//! Its files lie in `web_pages/` and are part of the binary, so that a daemon serves the page that fits its answers, on
//! hosts without internet and without a directory to guard. Nothing is built, minified or taken from elsewhere: what a
//! browser runs is what stands there. The page asks for everything itself, by the calls below; nothing is pushed, so that no
//! connection stays.

use std::sync::Arc;

use axum::Router;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::{MethodRouter, get};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::backend::Backend;
use super::router::{asked, json, json_elsewhere};
use super::{Counts, EventsRequest, HistoryRequest, Problem, Status, Timestamp};

/// What the page may do in a browser: run its own scripts and ask its own daemon. Not even a mistake in it can load or send
/// anything elsewhere.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// One file of the page: where it is asked for, what it is, and its text.
struct File {
    path: &'static str,
    content_type: &'static str,
    text: &'static str,
}

macro_rules! files {
    ($($path:literal $content_type:literal $name:literal;)*) => {
        [$(File { path: $path, content_type: $content_type, text: include_str!(concat!("web_pages/", $name)) },)*]
    };
}

/// Every file; the first is the page, which loads the others.
const FILES: [File; 17] = files! {
    "/" "text/html; charset=utf-8" "index.html";
    "/page.css" "text/css; charset=utf-8" "page.css";
    "/icon.svg" "image/svg+xml" "icon.svg";
    "/page.js" "text/javascript; charset=utf-8" "page.js";
    "/place.js" "text/javascript; charset=utf-8" "place.js";
    "/daemon.js" "text/javascript; charset=utf-8" "daemon.js";
    "/mesh.js" "text/javascript; charset=utf-8" "mesh.js";
    "/mesh_table.js" "text/javascript; charset=utf-8" "mesh_table.js";
    "/matrix.js" "text/javascript; charset=utf-8" "matrix.js";
    "/link.js" "text/javascript; charset=utf-8" "link.js";
    "/series.js" "text/javascript; charset=utf-8" "series.js";
    "/canvas.js" "text/javascript; charset=utf-8" "canvas.js";
    "/palette.js" "text/javascript; charset=utf-8" "palette.js";
    "/quantity.js" "text/javascript; charset=utf-8" "quantity.js";
    "/site_table.js" "text/javascript; charset=utf-8" "site_table.js";
    "/state.js" "text/javascript; charset=utf-8" "state.js";
    "/table.js" "text/javascript; charset=utf-8" "table.js";
};

/// What the page shows of this node: no keys, no endpoints, no stock peers. On a loopback address every user of the host can
/// read it, which is not so of the socket.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PageStatus {
    /// The version of these types.
    pub schema: u32,
    /// When the answer was made.
    pub now: Timestamp,
    /// This node's name.
    pub node: String,
    /// The mesh's name.
    pub mesh: String,
    /// The daemon's version.
    pub version: String,
    /// Seconds since the daemon started.
    pub uptime_seconds: u64,
    /// Peers by state.
    pub counts: Counts,
    /// What is wrong, gravest first.
    pub problems: Vec<Problem>,
}

impl From<Status> for PageStatus {
    fn from(status: Status) -> Self {
        PageStatus {
            schema: status.schema,
            now: status.now,
            node: status.node.name,
            mesh: status.mesh.name,
            version: status.node.version,
            uptime_seconds: status.node.uptime_seconds,
            counts: status.counts,
            problems: status.problems,
        }
    }
}

/// Builds `/`, the files it loads, and the answers it asks for.
pub fn web_pages<B: Backend>(backend: Arc<B>) -> Router {
    let answers = Router::new()
        .route("/v1/status", get(async |State(b): State<Arc<B>>| json(b.status().await.map(PageStatus::from))))
        .route("/v1/matrix", get(async |State(b): State<Arc<B>>| json_elsewhere(b.matrix().await).await))
        .route("/v1/matrix/sites", get(async |State(b): State<Arc<B>>| json(b.site_matrix().await)))
        .route(
            "/v1/history",
            get(async |State(b): State<Arc<B>>, query: Result<Query<HistoryRequest>, QueryRejection>| {
                match asked(query) {
                    Ok(request) => json_elsewhere(b.history(request).await).await,
                    Err(error) => error.into_response(),
                }
            }),
        )
        .route(
            "/v1/events",
            get(async |State(b): State<Arc<B>>, query: Result<Query<EventsRequest>, QueryRejection>| {
                match asked(query) {
                    Ok(request) => json(b.events(request).await),
                    Err(error) => error.into_response(),
                }
            }),
        )
        .with_state(backend);
    FILES.iter().fold(answers, |router, file| router.route(file.path, serve(file)))
}

/// Serves one file; a browser that has it already is told so.
fn serve(file: &'static File) -> MethodRouter {
    let digest: String = Sha256::digest(file.text).iter().take(12).map(|byte| format!("{byte:02x}")).collect();
    let tag = format!("\"{digest}\"");
    get(async move |headers: HeaderMap| {
        let known = headers.get(header::IF_NONE_MATCH).and_then(|value| value.to_str().ok());
        let mut response = match known.is_some_and(|known| known.split(',').any(|known| known.trim() == tag)) {
            true => StatusCode::NOT_MODIFIED.into_response(),
            false => ([(header::CONTENT_TYPE, file.content_type)], file.text).into_response(),
        };
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
        // Kept, and asked about each time: a daemon that was upgraded serves other scripts for other answers.
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        headers.extend(HeaderValue::from_str(&tag).map(|tag| (header::ETAG, tag)));
        response
    })
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::path::Path;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;
    use crate::api::fake::{Fake, ping_lines, troubled_status};
    use crate::api::{PageGuard, PageServer};

    /// Starts the page; it ends with the test's runtime.
    fn start() -> SocketAddr {
        let server = PageServer::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = server.address();
        let pages = web_pages(Arc::new(Fake { status: troubled_status(), ping: ping_lines() }));
        tokio::spawn(server.serve(pages, PageGuard::default(), std::future::pending()));
        address
    }

    async fn ask(address: SocketAddr, head: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(format!("{head}\r\n\r\n").as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        String::from_utf8(answer).unwrap()
    }

    async fn get_path(address: SocketAddr, path: &str) -> String {
        ask(address, &format!("GET {path} HTTP/1.1\r\nhost: localhost")).await
    }

    /// What stands in `text` between two marks, wherever they are.
    fn between<'a>(text: &'a str, before: &'a str, after: char) -> impl Iterator<Item = &'a str> {
        text.split(before).skip(1).filter_map(move |rest| rest.split(after).next())
    }

    #[tokio::test]
    async fn every_file_is_served_under_a_strict_policy_and_once() {
        let address = start();
        for file in &FILES {
            let answer = get_path(address, file.path).await;
            let (head, body) = answer.split_once("\r\n\r\n").unwrap();
            assert!(head.starts_with("HTTP/1.1 200") && body == file.text, "{}: {head}", file.path);
            for promised in [
                &format!("content-type: {}", file.content_type),
                "content-security-policy: default-src 'none'; script-src 'self'",
                "x-content-type-options: nosniff",
                "cache-control: no-cache",
            ] {
                assert!(head.contains(promised), "{}: {promised} in {head}", file.path);
            }
            assert!(!head.contains("set-cookie") && !head.contains("unsafe"), "{head}");
            let tag = between(head, "etag: ", '\r').next().unwrap();
            let again = format!("GET {} HTTP/1.1\r\nhost: localhost\r\nif-none-match: \"other\", {tag}", file.path);
            let answer = ask(address, &again).await;
            assert!(answer.starts_with("HTTP/1.1 304") && answer.ends_with("\r\n\r\n"), "{}: {answer}", file.path);
            let other = again.replace(tag, "\"another\"");
            assert!(ask(address, &other).await.starts_with("HTTP/1.1 200"), "{}", file.path);
        }
    }

    #[test]
    fn the_page_is_whole_and_names_nothing_outside() {
        let known = |name: &str| FILES.iter().any(|file| file.path == format!("/{name}"));
        for name in between(FILES[0].text, "href=\"", '"').chain(between(FILES[0].text, "src=\"", '"')) {
            assert!(name.starts_with('#') || known(name), "{name}");
        }
        for file in &FILES {
            for name in between(file.text, " from \"./", '"') {
                assert!(known(name), "{} loads {name}", file.path);
            }
            // A namespace is a name, which nobody asks for.
            let text = file.text.replace("http://www.w3.org/2000/svg", "");
            for outside in
                ["http:", "https:", "\"//", "url(", "@import", "eval(", "innerHTML", "<style", " style=", " onclick"]
            {
                assert!(!text.contains(outside), "{}: {outside}", file.path);
            }
        }
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/api/web_pages");
        let there = std::fs::read_dir(directory).unwrap().count();
        assert_eq!(there, FILES.len(), "a file that nobody is served");
    }

    #[tokio::test]
    async fn the_page_tells_no_key_no_endpoint_and_does_nothing() {
        let address = start();
        let told = get_path(address, "/v1/status").await;
        let status: PageStatus = serde_json::from_str(told.split_once("\r\n\r\n").unwrap().1).unwrap();
        assert_eq!(status, PageStatus::from(troubled_status()));
        let node = troubled_status().node;
        assert!(!told.contains(&node.wireguard_key) && !told.contains(&node.endpoints[0].to_string()), "{told}");
        for path in
            ["/v1/invites", "/v1/node", "/v1/members", "/v1/health", "/metrics", "/index.html", "/../Cargo.toml"]
        {
            assert!(get_path(address, path).await.starts_with("HTTP/1.1 404"), "{path}");
        }
        for path in ["/v1/ping", "/v1/revoke", "/v1/invites", "/v1/renew", "/"] {
            let answer = ask(address, &format!("POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: 0")).await;
            assert!(answer.starts_with("HTTP/1.1 405"), "{path}: {answer}");
        }
        for path in ["/", "/v1/status"] {
            let answer = ask(address, &format!("GET {path} HTTP/1.1\r\nhost: evil.example")).await;
            assert!(answer.starts_with("HTTP/1.1 421") && !answer.contains("web1"), "{path}: {answer}");
        }
    }
}
