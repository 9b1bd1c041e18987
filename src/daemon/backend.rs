//! The local interface's way to the one task that decides: every call becomes a command on its queue.

use tokio::sync::{mpsc, oneshot};

use super::driver::{Command, Driver};
use super::{alerts, commands, forwards, history, lockdown, matrix, restart, trace};
use crate::api::{
    AlertList, AlertTestRequest, AlertTested, Answer, ApiError, Backend, Certificates, CertificatesRequest,
    CertificatesTaken, DrainRequest, ErrorKind, Events, EventsRequest, ForwardList, GatewayList, Health, History,
    HistoryRequest, InviteList, InviteRequest, InviteRevokeRequest, InviteRevoked, Invited, LinkLedger, LockdownInfo,
    LockdownTrialRequest, Matrix, Members, NameList, NodeInfo, PathList, PingLine, PingRequest, Plan,
    PolicyCheckRequest, PolicyChecked, PolicyInfo, Renewed, Restarting, RevokeRequest, Revoked, SiteMatrix, Status,
    SwitchRequest, Switched, Version,
};
use crate::api::{PolicyTraceRequest, TraceLine};

use crate::telemetry::metrics::{Format, render};

/// Lines of a ping that wait for a slow reader.
const PING_LINES: usize = 16;

/// The daemon behind the local interface.
pub(super) struct LocalBackend {
    commands: mpsc::Sender<Command>,
}

impl LocalBackend {
    pub(super) fn new(commands: mpsc::Sender<Command>) -> Self {
        LocalBackend { commands }
    }

    /// Runs `command` on the driver's task and returns what it says.
    async fn call<T: Send + 'static>(&self, command: impl FnOnce(&mut Driver) -> T + Send + 'static) -> Answer<T> {
        call(&self.commands, command).await
    }
}

/// Runs `command` on the driver's task and returns what it says.
pub(super) async fn call<T: Send + 'static>(
    commands: &mpsc::Sender<Command>,
    command: impl FnOnce(&mut Driver) -> T + Send + 'static,
) -> Answer<T> {
    let (answer, answered) = oneshot::channel();
    let stopping = || ApiError::new(ErrorKind::Busy, "the daemon is stopping");
    let boxed: Command = Box::new(move |driver| {
        // Whoever asked may have gone.
        let _ = answer.send(command(driver));
    });
    commands.send(boxed).await.map_err(|_| stopping())?;
    answered.await.map_err(|_| stopping())
}

impl Backend for LocalBackend {
    async fn status(&self) -> Answer<Status> {
        self.call(|driver| driver.status()).await
    }

    async fn node(&self) -> Answer<NodeInfo> {
        self.call(|driver| driver.node_info()).await
    }

    async fn members(&self) -> Answer<Members> {
        self.call(|driver| driver.members()).await
    }

    async fn matrix(&self) -> Answer<Matrix> {
        matrix::by_node(&self.commands).await
    }

    async fn site_matrix(&self) -> Answer<SiteMatrix> {
        matrix::by_site(&self.commands).await
    }

    async fn paths(&self) -> Answer<PathList> {
        self.call(|driver| driver.paths()).await
    }

    async fn ledger(&self) -> Answer<LinkLedger> {
        self.call(|driver| driver.ledger_answer()).await
    }

    async fn policy(&self) -> Answer<PolicyInfo> {
        self.call(|driver| driver.policy_info()).await
    }

    async fn policy_check(&self, request: PolicyCheckRequest) -> Answer<PolicyChecked> {
        self.call(move |driver| driver.policy_check(&request)).await?
    }

    async fn certificates(&self) -> Answer<Certificates> {
        self.call(|driver| driver.certificates()).await
    }

    async fn take_certificates(&self, request: CertificatesRequest) -> Answer<CertificatesTaken> {
        self.call(move |driver| driver.take_certificates(&request)).await?
    }

    async fn gateways(&self) -> Answer<GatewayList> {
        self.call(|driver| driver.gateway_list()).await
    }

    async fn drain(&self, request: DrainRequest) -> Answer<GatewayList> {
        self.call(move |driver| driver.drain_gateway(&request)).await?
    }

    async fn lockdown(&self) -> Answer<LockdownInfo> {
        lockdown::info(&self.commands).await
    }

    async fn try_lockdown(&self, request: LockdownTrialRequest) -> Answer<LockdownInfo> {
        lockdown::trial(&self.commands, &request).await
    }

    async fn confirm_lockdown(&self) -> Answer<LockdownInfo> {
        lockdown::confirm(&self.commands).await
    }

    async fn lift_lockdown(&self) -> Answer<LockdownInfo> {
        lockdown::lift(&self.commands).await
    }

    async fn policy_trace(&self, request: PolicyTraceRequest) -> Answer<mpsc::Receiver<TraceLine>> {
        trace::start(&self.commands, request).await
    }

    async fn forwards(&self) -> Answer<ForwardList> {
        self.call(|driver| driver.forward_list()).await
    }

    async fn switch_forward(&self, request: SwitchRequest) -> Answer<Switched> {
        forwards::switch(&self.commands, request).await
    }

    async fn names(&self) -> Answer<NameList> {
        self.call(|driver| driver.name_list()).await
    }

    async fn health(&self) -> Answer<Health> {
        self.call(|driver| driver.health()).await
    }

    async fn version(&self) -> Answer<Version> {
        self.call(|driver| driver.version()).await
    }

    async fn ping(&self, request: PingRequest) -> Answer<mpsc::Receiver<PingLine>> {
        let target = self.call({
            let request = request.clone();
            move |driver| commands::ping_target(driver, &request)
        });
        let target = target.await??;
        let (lines, reader) = mpsc::channel(PING_LINES);
        tokio::spawn(commands::ping(self.commands.clone(), target, request, lines));
        Ok(reader)
    }

    async fn history(&self, request: HistoryRequest) -> Answer<History> {
        history::history(&self.commands, request).await
    }

    async fn events(&self, request: EventsRequest) -> Answer<Events> {
        history::events(&self.commands, request).await
    }

    async fn invite(&self, request: InviteRequest) -> Answer<Invited> {
        self.call(move |driver| commands::invite(driver, &request)).await?
    }

    async fn invites(&self) -> Answer<InviteList> {
        self.call(commands::invites).await
    }

    async fn revoke_invite(&self, request: InviteRevokeRequest) -> Answer<InviteRevoked> {
        self.call(move |driver| commands::revoke_invite(driver, &request)).await?
    }

    async fn revoke(&self, request: RevokeRequest) -> Answer<Revoked> {
        self.call(move |driver| commands::revoke(driver, &request)).await?
    }

    async fn alerts(&self) -> Answer<AlertList> {
        self.call(|driver| driver.alert_list()).await
    }

    async fn test_alert(&self, request: AlertTestRequest) -> Answer<AlertTested> {
        let (receiver, notice) = self.call(move |driver| driver.alert_test(&request)).await??;
        alerts::test(receiver, notice).await
    }

    async fn metrics(&self, accept: Option<String>) -> Answer<(&'static str, String)> {
        let snapshot = self.call(|driver| driver.metrics_snapshot()).await?;
        let format = Format::accepted(accept.as_deref());
        // A thousand links are a megabyte of text: made where it keeps nobody waiting.
        let text = tokio::task::spawn_blocking(move || render(snapshot, format)).await;
        let failed = |_| ApiError::new(ErrorKind::Internal, "the metrics could not be rendered");
        Ok((format.content_type(), text.map_err(failed)?))
    }

    async fn renew(&self) -> Answer<Renewed> {
        commands::renew(&self.commands).await
    }

    async fn plan(&self) -> Answer<Plan> {
        self.call(|driver| driver.plan()).await?
    }

    async fn reload(&self) -> Answer<Plan> {
        self.call(Driver::reload).await?
    }

    async fn restart(&self) -> Answer<Restarting> {
        restart::restart(&self.commands).await
    }
}
