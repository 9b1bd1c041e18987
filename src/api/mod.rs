//! The daemon's local interface: HTTP and JSON over a Unix socket.
//!
//! The types of requests and responses are versioned by [`SCHEMA`], which every response carries. Names are snake_case
//! with the unit in them (`rtt_p50_seconds`, `tx_bytes`), ratios lie between 0 and 1, times are RFC 3339 in UTC. Fields
//! are only ever added to a schema; readers skip fields they do not know.
//!
//! | call | type | who may |
//! |---|---|---|
//! | `GET /v1/status` | [`Status`] | readers |
//! | `GET /v1/node` | [`NodeInfo`] | readers |
//! | `GET /v1/members` | [`Members`] | readers |
//! | `GET /v1/matrix` | [`Matrix`] | readers |
//! | `GET /v1/matrix/sites` | [`SiteMatrix`] | readers |
//! | `GET /v1/paths` | [`PathList`] | readers |
//! | `GET /v1/ledger` | [`LinkLedger`] | readers |
//! | `GET /v1/policy` | [`PolicyInfo`] | readers |
//! | `POST /v1/policy/check` | [`PolicyCheckRequest`] → [`PolicyChecked`] | readers |
//! | `GET /v1/lockdown` | [`LockdownInfo`] | readers |
//! | `POST /v1/policy/trace` | [`PolicyTraceRequest`] → lines of [`TraceLine`] | writers |
//! | `GET /v1/certificates` | [`Certificates`] | readers |
//! | `GET /v1/gateways` | [`GatewayList`] | readers |
//! | `GET /v1/forwards` | [`ForwardList`] | readers |
//! | `GET /v1/names` | [`NameList`] | readers |
//! | `GET /v1/health` | [`Health`] | readers |
//! | `GET /v1/version` | [`Version`] | readers |
//! | `GET /v1/history` | [`HistoryRequest`] → [`History`] | readers |
//! | `GET /v1/events` | [`EventsRequest`] → [`Events`] | readers |
//! | `POST /v1/ping` | [`PingRequest`] → lines of [`PingLine`] | readers |
//! | `GET /v1/invites` | [`InviteList`] | readers |
//! | `GET /v1/alerts` | [`AlertList`] | readers |
//! | `POST /v1/alerts/test` | [`AlertTestRequest`] → [`AlertTested`] | writers |
//! | `POST /v1/invites` | [`InviteRequest`] → [`Invited`] | writers |
//! | `POST /v1/invites/revoke` | [`InviteRevokeRequest`] → [`InviteRevoked`] | writers |
//! | `POST /v1/revoke` | [`RevokeRequest`] → [`Revoked`] | writers |
//! | `POST /v1/renew` | [`Renewed`] | writers |
//! | `GET /v1/plan` | [`Plan`] | readers |
//! | `POST /v1/reload` | [`Plan`] | writers |
//! | `POST /v1/restart` | [`Restarting`] | writers |
//! | `POST /v1/certificates` | [`CertificatesRequest`] → [`CertificatesTaken`] | writers |
//! | `POST /v1/gateways/drain` | [`DrainRequest`] → [`GatewayList`] | writers |
//! | `POST /v1/forwards/switch` | [`SwitchRequest`] → [`Switched`] | writers |
//! | `POST /v1/lockdown/trial` | [`LockdownTrialRequest`] → [`LockdownInfo`] | writers |
//! | `POST /v1/lockdown/confirm` | [`LockdownInfo`] | writers |
//! | `POST /v1/lockdown/off` | [`LockdownInfo`] | writers |
//!
//! `wg show` reads the device and its peers at a socket of its own ([`uapi`]).
//!
//! [`OPENAPI`] is the same for programs.
//!
//! Errors are [`ApiError`] with a matching HTTP status.
//!
//! Beside it, [`PageServer`] serves read-only pages on a TCP address of this host or of the mesh, where the configuration
//! gives it one: [`metrics_pages()`], [`web_pages()`].
#![forbid(unsafe_code)]

pub mod access;
pub mod alerts;
pub mod backend;
pub mod certificates;
pub mod client;
pub mod confinement;
pub mod error;
pub mod forwards;
pub mod gateways;
pub mod history;
pub mod invite;
pub mod ledger;
pub mod lockdown;
pub mod matrix;
pub mod membership;
mod metrics_pages;
pub mod names;
mod openapi;
pub mod page_server;
pub mod paths;
pub mod ping;
pub mod plan;
pub mod policy;
mod router;
pub mod server;
pub mod status;
pub mod timestamp;
pub mod uapi;
mod web_pages;

pub use alerts::{
    AlertList, AlertPhase, AlertRule, AlertSeverity, AlertStatus, AlertTestRequest, AlertTested, ReceiverStatus,
};
pub use backend::{Answer, Backend};
pub use certificates::{Certificates, CertificatesRequest, CertificatesTaken, MemberCertificate};
pub use client::{Client, ClientError};
pub use confinement::{ConfinementStatus, LandlockState};
pub use error::{ApiError, ErrorKind};
pub use forwards::{
    ForwardConnection, ForwardList, ForwardStatus, ForwardTarget, SwitchRequest, Switched, TargetHealth,
};
pub use gateways::{
    CheckedTarget, DrainRequest, DrainStatus, GatewayCheckStatus, GatewayList, GatewayStatus, SharedPrefixStatus,
};
pub use history::{EventItem, Events, EventsRequest, History, HistoryPoint, HistoryRequest, Spread, StateSeconds};
pub use invite::{
    DelegatedInvite, InviteList, InviteRequest, InviteRevokeRequest, InviteRevoked, InviteState, InviteSummary, Invited,
};
pub use ledger::{CanGo, ConnectionEnds, LedgerConnection, LinkLedger, LinkUsage};
pub use lockdown::{LockdownInfo, LockdownPhase, LockdownTrialRequest};
pub use matrix::{Matrix, MatrixNode, MatrixRow, RowMissing, Site, SiteMatrix, SitePair};
pub use membership::{Health, Member, Members, NodeInfo, Renewed, Restarting, RevokeRequest, Revoked, Version};
pub use metrics_pages::metrics_pages;
pub use names::{NameEntry, NameList, NameQuestions};
pub use openapi::OPENAPI;
pub use page_server::{PageGuard, PageServer};
pub use paths::{PathList, PathReason, PathState, PeerPaths};
pub use ping::{PingLine, PingMode, PingRequest};
pub use plan::{Plan, PlannedAction, PlannedChange, PlannedEntry, TouchedLink};
pub use policy::{
    PacketStage, PolicyAgreement, PolicyCheckRequest, PolicyChecked, PolicyDenial, PolicyInfo, PolicyRule,
    PolicyTraceRequest, PolicyVerdict, TraceLine,
};
pub use server::{BindError, Server};
pub use status::{
    CertificateStatus, Counts, DegradedReason, Gravity, LinkClass, LinkCounts, LinkMeasure, LossRatio, MeshStatus,
    NodeStatus, PathKind, PathStatus, PeerState, PeerStatus, PqState, Problem, Status, WireguardState, WireguardStatus,
};
pub use timestamp::Timestamp;
pub use uapi::UAPI_DIRECTORY;
pub use web_pages::{PageStatus, web_pages};

/// The version of the types; a change that an old reader would misread raises it.
pub const SCHEMA: u32 = 1;

#[cfg(test)]
pub(crate) mod fake;
#[cfg(test)]
mod tests;
