//! Calls to methods of the backend.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes, to_bytes};
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use hyper::body::Frame;
use serde::de::DeserializeOwned;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::access::{Caller, Policy, Right};
use super::backend::{Answer, Backend};
use super::{ApiError, ErrorKind, EventsRequest, HistoryRequest, PingRequest, PolicyTraceRequest};

/// Bytes of a request's body at most: the largest, a delegated invite, stays below 4 KiB.
pub const BODY_LIMIT: usize = 64 * 1024;
/// How long a request may take to arrive: a local process writes it at once.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the daemon may take over an answer, and a client to read it: a renewal asks another node.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// When a connection ends whatever it does; a handler that needs longer says so.
#[derive(Clone, Debug)]
pub(super) struct Deadline(pub(super) Arc<watch::Sender<Instant>>);

impl Deadline {
    fn extend(&self, by: Duration) {
        self.0.send_replace(Instant::now() + by);
    }
}

/// Builds the router. Every request must carry a [`Caller`] as an extension, else it is refused.
pub(super) fn router<B: Backend>(backend: Arc<B>, policy: Policy) -> Router {
    let readers = Router::new()
        .route("/v1/status", get(async |State(b): State<Arc<B>>| json(b.status().await)))
        .route("/v1/node", get(async |State(b): State<Arc<B>>| json(b.node().await)))
        .route("/v1/members", get(async |State(b): State<Arc<B>>| json(b.members().await)))
        .route("/v1/matrix", get(async |State(b): State<Arc<B>>| json_elsewhere(b.matrix().await).await))
        .route("/v1/matrix/sites", get(async |State(b): State<Arc<B>>| json(b.site_matrix().await)))
        .route("/v1/paths", get(async |State(b): State<Arc<B>>| json(b.paths().await)))
        .route("/v1/ledger", get(async |State(b): State<Arc<B>>| json_elsewhere(b.ledger().await).await))
        .route("/v1/policy", get(async |State(b): State<Arc<B>>| json(b.policy().await)))
        .route(
            "/v1/policy/check",
            post(async |State(b): State<Arc<B>>, body: Bytes| match decode(&body) {
                Ok(request) => json(b.policy_check(request).await),
                Err(error) => error.into_response(),
            }),
        )
        .route("/v1/lockdown", get(async |State(b): State<Arc<B>>| json(b.lockdown().await)))
        .route("/v1/certificates", get(async |State(b): State<Arc<B>>| json(b.certificates().await)))
        .route("/v1/gateways", get(async |State(b): State<Arc<B>>| json(b.gateways().await)))
        .route("/v1/forwards", get(async |State(b): State<Arc<B>>| json(b.forwards().await)))
        .route("/v1/names", get(async |State(b): State<Arc<B>>| json(b.names().await)))
        .route("/v1/health", get(async |State(b): State<Arc<B>>| json(b.health().await)))
        .route("/v1/plan", get(async |State(b): State<Arc<B>>| json(b.plan().await)))
        .route("/v1/version", get(async |State(b): State<Arc<B>>| json(b.version().await)))
        .route("/v1/invites", get(async |State(b): State<Arc<B>>| json(b.invites().await)))
        .route("/v1/alerts", get(async |State(b): State<Arc<B>>| json(b.alerts().await)))
        .route(
            "/v1/history",
            get(async |State(b): State<Arc<B>>, query: Result<Query<HistoryRequest>, QueryRejection>| {
                match asked(query) {
                    Ok(request) => json(b.history(request).await),
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
        .route("/v1/ping", post(ping::<B>))
        .route_layer(from_fn(move |request, next| admit(policy, Right::Read, request, next)));
    let writers = Router::new()
        .route(
            "/v1/certificates",
            post(async |State(b): State<Arc<B>>, body: Bytes| match decode(&body) {
                Ok(request) => json(b.take_certificates(request).await),
                Err(error) => error.into_response(),
            }),
        )
        .route(
            "/v1/gateways/drain",
            post(async |State(b): State<Arc<B>>, body: Bytes| match decode(&body) {
                Ok(request) => json(b.drain(request).await),
                Err(error) => error.into_response(),
            }),
        )
        .route(
            "/v1/invites",
            post(async |State(b): State<Arc<B>>, body: Bytes| match decode(&body) {
                Ok(request) => json(b.invite(request).await),
                Err(error) => error.into_response(),
            }),
        )
        .route(
            "/v1/invites/revoke",
            post(async |State(b): State<Arc<B>>, body: Bytes| match decode(&body) {
                Ok(request) => json(b.revoke_invite(request).await),
                Err(error) => error.into_response(),
            }),
        )
        .route(
            "/v1/revoke",
            post(async |State(b): State<Arc<B>>, body: Bytes| match decode(&body) {
                Ok(request) => json(b.revoke(request).await),
                Err(error) => error.into_response(),
            }),
        )
        .route(
            "/v1/alerts/test",
            post(async |State(b): State<Arc<B>>, body: Bytes| match decode(&body) {
                Ok(request) => json(b.test_alert(request).await),
                Err(error) => error.into_response(),
            }),
        )
        .route(
            "/v1/forwards/switch",
            post(async |State(b): State<Arc<B>>, body: Bytes| match decode(&body) {
                Ok(request) => json(b.switch_forward(request).await),
                Err(error) => error.into_response(),
            }),
        )
        .route(
            "/v1/lockdown/trial",
            post(async |State(b): State<Arc<B>>, body: Bytes| match decode(&body) {
                Ok(request) => json(b.try_lockdown(request).await),
                Err(error) => error.into_response(),
            }),
        )
        .route("/v1/lockdown/confirm", post(async |State(b): State<Arc<B>>| json(b.confirm_lockdown().await)))
        .route("/v1/lockdown/off", post(async |State(b): State<Arc<B>>| json(b.lift_lockdown().await)))
        .route("/v1/policy/trace", post(trace::<B>))
        .route("/v1/renew", post(async |State(b): State<Arc<B>>| json(b.renew().await)))
        .route("/v1/reload", post(async |State(b): State<Arc<B>>| json(b.reload().await)))
        .route("/v1/restart", post(async |State(b): State<Arc<B>>| json(b.restart().await)))
        .route_layer(from_fn(move |request, next| admit(policy, Right::Write, request, next)));
    readers.merge(writers).fallback(unknown).method_not_allowed_fallback(unknown).with_state(backend)
}

/// Lets a request through whose caller may make it, once all of it is here.
async fn admit(policy: Policy, right: Right, request: Request, next: Next) -> Response {
    let caller = request.extensions().get::<Caller>().copied();
    if !caller.is_some_and(|caller| policy.allows(caller, right)) {
        let (message, advice) = match right {
            Right::Read => ("you may not read this daemon's state", "run it as root, or join the socket's group"),
            Right::Write => ("only root and the daemon's own user may do this", "run it as root"),
        };
        return ApiError::new(ErrorKind::Forbidden, message).advise(advice).into_response();
    }
    let (parts, body) = request.into_parts();
    let body = match tokio::time::timeout(REQUEST_TIMEOUT, to_bytes(body, BODY_LIMIT)).await {
        Ok(Ok(body)) => body,
        Ok(Err(_)) => {
            let message = format!("the request is broken off or larger than {BODY_LIMIT} bytes");
            return ApiError::new(ErrorKind::BadRequest, message).into_response();
        }
        Err(_) => return ApiError::new(ErrorKind::TimedOut, "the request did not arrive in time").into_response(),
    };
    if let Some(deadline) = parts.extensions.get::<Deadline>() {
        deadline.extend(ANSWER_TIMEOUT);
    }
    next.run(Request::from_parts(parts, Body::from(body))).await
}

async fn ping<B: Backend>(
    State(backend): State<Arc<B>>,
    deadline: Option<Extension<Deadline>>,
    body: Bytes,
) -> Response {
    let request: PingRequest = match decode(&body).and_then(bounded) {
        Ok(request) => request,
        Err(error) => return error.into_response(),
    };
    let length = Duration::from_secs_f64(f64::from(request.count) * request.interval_seconds);
    match backend.ping(request).await {
        Ok(lines) => {
            if let Some(Extension(deadline)) = deadline {
                deadline.extend(length + ANSWER_TIMEOUT);
            }
            ([(header::CONTENT_TYPE, "application/x-ndjson")], Body::new(Lines(lines))).into_response()
        }
        Err(error) => error.into_response(),
    }
}

async fn trace<B: Backend>(
    State(backend): State<Arc<B>>,
    deadline: Option<Extension<Deadline>>,
    body: Bytes,
) -> Response {
    let request: PolicyTraceRequest = match decode(&body).and_then(bounded_trace) {
        Ok(request) => request,
        Err(error) => return error.into_response(),
    };
    let length = Duration::from_secs(request.seconds.into());
    match backend.policy_trace(request).await {
        Ok(lines) => {
            if let Some(Extension(deadline)) = deadline {
                deadline.extend(length + ANSWER_TIMEOUT);
            }
            ([(header::CONTENT_TYPE, "application/x-ndjson")], Body::new(Lines(lines))).into_response()
        }
        Err(error) => error.into_response(),
    }
}

fn bounded_trace(request: PolicyTraceRequest) -> Answer<PolicyTraceRequest> {
    let (seconds, count) = (PolicyTraceRequest::SECONDS_LIMIT, PolicyTraceRequest::COUNT_LIMIT);
    if (1..=seconds).contains(&request.seconds) && (1..=count).contains(&request.count) {
        return Ok(request);
    }
    let message = format!(
        "{} packets within {} s are outside 1 to {count} packets within 1 to {seconds} s",
        request.count, request.seconds
    );
    Err(ApiError::new(ErrorKind::BadRequest, message))
}

fn bounded(request: PingRequest) -> Answer<PingRequest> {
    let count = (1..=PingRequest::COUNT_LIMIT).contains(&request.count);
    let interval = (PingRequest::INTERVAL_MIN..=PingRequest::INTERVAL_MAX).contains(&request.interval_seconds);
    if count && interval {
        return Ok(request);
    }
    let message = format!(
        "{} probes every {} s are outside 1 to {} probes every {} to {} s",
        request.count,
        request.interval_seconds,
        PingRequest::COUNT_LIMIT,
        PingRequest::INTERVAL_MIN,
        PingRequest::INTERVAL_MAX
    );
    Err(ApiError::new(ErrorKind::BadRequest, message))
}

fn decode<T: DeserializeOwned>(body: &[u8]) -> Answer<T> {
    serde_json::from_slice(body)
        .map_err(|error| ApiError::new(ErrorKind::BadRequest, format!("the request does not decode: {error}")))
}

/// Takes what a query asks for.
pub(super) fn asked<T>(query: Result<Query<T>, QueryRejection>) -> Answer<T> {
    let wrong = |error: QueryRejection| ApiError::new(ErrorKind::BadRequest, error.body_text());
    query.map(|Query(request)| request).map_err(wrong)
}

pub(super) fn json<T: serde::Serialize>(answer: Answer<T>) -> Response {
    match answer {
        Ok(answer) => Json(answer).into_response(),
        Err(error) => error.into_response(),
    }
}

/// Writes a large answer where nobody waits for it.
pub(super) async fn json_elsewhere<T: serde::Serialize + Send + 'static>(answer: Answer<T>) -> Response {
    let written = tokio::task::spawn_blocking(|| json(answer)).await;
    written.unwrap_or_else(|_| ApiError::new(ErrorKind::Internal, "the answer could not be written").into_response())
}

async fn unknown(request: Request) -> Response {
    let message = format!("there is no call {} {}", request.method(), request.uri().path());
    ApiError::new(ErrorKind::NotFound, message).advise("`meshctl` may be newer than the running daemon").into_response()
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.kind.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (status, Json(self)).into_response()
    }
}

/// A body of JSON lines, one frame each, so that each is seen when it happens.
struct Lines<T>(mpsc::Receiver<T>);

impl<T: serde::Serialize> hyper::body::Body for Lines<T> {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(cx).map(|line| {
            // Plain data with string keys always serialises; a line that did not would end the stream, not the daemon.
            let mut text = serde_json::to_vec(&line?).ok()?;
            text.push(b'\n');
            Some(Ok(Frame::data(Bytes::from(text))))
        })
    }
}
