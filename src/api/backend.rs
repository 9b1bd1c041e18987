//! What the interface asks of the daemon.

use std::future::Future;

use tokio::sync::mpsc;

use super::{
    AlertList, AlertTestRequest, AlertTested, ApiError, Certificates, CertificatesRequest, CertificatesTaken,
    DrainRequest, Events, EventsRequest, ForwardList, GatewayList, Health, History, HistoryRequest, InviteList,
    InviteRequest, InviteRevokeRequest, InviteRevoked, Invited, LinkLedger, LockdownInfo, LockdownTrialRequest, Matrix,
    Members, NameList, NodeInfo, PathList, PingLine, PingRequest, Plan, PolicyCheckRequest, PolicyChecked, PolicyInfo,
    Renewed, Restarting, RevokeRequest, Revoked, SiteMatrix, Status, SwitchRequest, Switched, Version,
};
use super::{PolicyTraceRequest, TraceLine};

/// A call's outcome.
pub type Answer<T> = Result<T, ApiError>;

/// The daemon behind the interface: one method per call. Callers have been admitted and requests decoded and bounded;
/// names, keys and addresses in them have not been looked at.
pub trait Backend: Send + Sync + 'static {
    /// The whole state.
    fn status(&self) -> impl Future<Output = Answer<Status>> + Send;
    /// This node's public identity.
    fn node(&self) -> impl Future<Output = Answer<NodeInfo>> + Send;
    /// The members this node knows.
    fn members(&self) -> impl Future<Output = Answer<Members>> + Send;
    /// Every link of the mesh, as its nodes say.
    fn matrix(&self) -> impl Future<Output = Answer<Matrix>> + Send;
    /// The links between sites.
    fn site_matrix(&self) -> impl Future<Output = Answer<SiteMatrix>> + Send;
    /// The ways to each peer.
    fn paths(&self) -> impl Future<Output = Answer<PathList>> + Send;
    /// Which connections use which link.
    fn ledger(&self) -> impl Future<Output = Answer<LinkLedger>> + Send;
    /// The rules of what may come in, and what they did.
    fn policy(&self) -> impl Future<Output = Answer<PolicyInfo>> + Send;
    /// What the rules make of something.
    fn policy_check(&self, request: PolicyCheckRequest) -> impl Future<Output = Answer<PolicyChecked>> + Send;
    /// How far the lock-down of the public side has come.
    fn lockdown(&self) -> impl Future<Output = Answer<LockdownInfo>> + Send;
    /// Puts the configured lock-down on trial.
    fn try_lockdown(&self, request: LockdownTrialRequest) -> impl Future<Output = Answer<LockdownInfo>> + Send;
    /// Keeps what is on trial.
    fn confirm_lockdown(&self) -> impl Future<Output = Answer<LockdownInfo>> + Send;
    /// Opens everything again.
    fn lift_lockdown(&self) -> impl Future<Output = Answer<LockdownInfo>> + Send;
    /// Begins to say what becomes of some packets. The channel ends after the summary; dropping the receiver ends it too.
    fn policy_trace(
        &self,
        request: PolicyTraceRequest,
    ) -> impl Future<Output = Answer<mpsc::Receiver<TraceLine>>> + Send;
    /// The members' certificates.
    fn certificates(&self) -> impl Future<Output = Answer<Certificates>> + Send;
    /// Takes certificates of members and spreads them.
    fn take_certificates(&self, request: CertificatesRequest)
    -> impl Future<Output = Answer<CertificatesTaken>> + Send;
    /// Who carries which shared prefix.
    fn gateways(&self) -> impl Future<Output = Answer<GatewayList>> + Send;
    /// Moves flows away from this node's gateway, or back.
    fn drain(&self, request: DrainRequest) -> impl Future<Output = Answer<GatewayList>> + Send;
    /// The forwards and their connections.
    fn forwards(&self) -> impl Future<Output = Answer<ForwardList>> + Send;
    /// Switches a forward.
    fn switch_forward(&self, request: SwitchRequest) -> impl Future<Output = Answer<Switched>> + Send;
    /// The names and how they are answered.
    fn names(&self) -> impl Future<Output = Answer<NameList>> + Send;
    /// Whether the daemon does its work.
    fn health(&self) -> impl Future<Output = Answer<Health>> + Send;
    /// What the daemon is.
    fn version(&self) -> impl Future<Output = Answer<Version>> + Send;
    /// Starts a ping. The channel ends after the summary line; dropping the receiver stops the ping.
    fn ping(&self, request: PingRequest) -> impl Future<Output = Answer<mpsc::Receiver<PingLine>>> + Send;
    /// What a link was like.
    fn history(&self, request: HistoryRequest) -> impl Future<Output = Answer<History>> + Send;
    /// What happened.
    fn events(&self, request: EventsRequest) -> impl Future<Output = Answer<Events>> + Send;
    /// Makes an invite.
    fn invite(&self, request: InviteRequest) -> impl Future<Output = Answer<Invited>> + Send;
    /// Lists the invites.
    fn invites(&self) -> impl Future<Output = Answer<InviteList>> + Send;
    /// Makes an invite useless.
    fn revoke_invite(&self, request: InviteRevokeRequest) -> impl Future<Output = Answer<InviteRevoked>> + Send;
    /// Revokes a node.
    fn revoke(&self, request: RevokeRequest) -> impl Future<Output = Answer<Revoked>> + Send;
    /// The metrics in the best format that an `Accept` header takes: media type and text.
    fn metrics(&self, accept: Option<String>) -> impl Future<Output = Answer<(&'static str, String)>> + Send;
    /// The alerts, and how their receivers do.
    fn alerts(&self) -> impl Future<Output = Answer<AlertList>> + Send;
    /// Tells a receiver a test, and waits for the outcome.
    fn test_alert(&self, request: AlertTestRequest) -> impl Future<Output = Answer<AlertTested>> + Send;
    /// Renews this node's certificate now.
    fn renew(&self) -> impl Future<Output = Answer<Renewed>> + Send;
    /// What a reload would take over.
    fn plan(&self) -> impl Future<Output = Answer<Plan>> + Send;
    /// Takes the changed configuration over, or refuses it whole.
    fn reload(&self) -> impl Future<Output = Answer<Plan>> + Send;
    /// Restarts the daemon in its process, once what will run is checked; the answer comes before.
    fn restart(&self) -> impl Future<Output = Answer<Restarting>> + Send;
}
