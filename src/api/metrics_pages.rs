//! The pages that monitors read.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use super::backend::Backend;

/// Builds `/metrics`, and `/` to say where it is.
pub fn metrics_pages<B: Backend>(backend: Arc<B>) -> Router {
    let index = "meshd: see /metrics\n";
    Router::new().route("/", get(async move || index)).route("/metrics", get(metrics::<B>)).with_state(backend)
}

async fn metrics<B: Backend>(State(backend): State<Arc<B>>, headers: HeaderMap) -> Response {
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).map(str::to_owned);
    match backend.metrics(accept).await {
        Ok((content_type, text)) => ([(header::CONTENT_TYPE, content_type)], text).into_response(),
        Err(error) => (StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")).into_response(),
    }
}
