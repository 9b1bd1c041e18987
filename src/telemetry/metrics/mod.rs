//! What monitors read: one picture of the node and its links, and the text of it in the formats of Prometheus.
//!
//! The daemon takes a [`Snapshot`] on its own task, which copies numbers and nothing more; [`render`] makes the text of it
//! elsewhere. Names and units follow the conventions of OpenMetrics: base units, `_total` for what only rises, instants
//! instead of ages. A peer that has gone takes its series with it.

mod exposition;
mod forwards;
mod gateways;
mod links;
mod plain;
mod sites;
mod snapshot;

use prometheus_client::encoding::text;
use prometheus_client::registry::Registry;

pub use snapshot::{
    ForwardSnapshot, ForwardTargetSnapshot, GatewayCheckSnapshot, GatewaySnapshot, LinkSnapshot, ReceiverSnapshot,
    Snapshot, Traffic,
};

/// The formats that a monitor may ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// OpenMetrics 1.0, as text.
    OpenMetrics,
    /// The older text format of Prometheus (0.0.4), which everything reads.
    Plain,
}

impl Format {
    /// Chooses by an `Accept` header: OpenMetrics for who names it.
    pub fn accepted(accept: Option<&str>) -> Format {
        let asks = |part: &str| part.trim().starts_with("application/openmetrics-text") && !part.contains("q=0.0");
        if accept.is_some_and(|accept| accept.split(',').any(asks)) { Format::OpenMetrics } else { Format::Plain }
    }

    /// Returns the media type of the text.
    pub const fn content_type(self) -> &'static str {
        match self {
            Format::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Format::Plain => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

/// Renders a picture.
pub fn render(snapshot: Snapshot, format: Format) -> String {
    let mut registry = Registry::with_prefix("meshd");
    registry.register_collector(Box::new(snapshot));
    let mut text = String::new();
    // Writing into a String cannot fail, and neither does any of our values.
    let _ = text::encode(&mut text, &registry);
    match format {
        Format::OpenMetrics => text,
        Format::Plain => plain::from_open_metrics(&text),
    }
}

#[cfg(test)]
mod tests;
