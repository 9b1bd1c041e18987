//! `meshctl`'s end of the socket.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::{
    AlertList, AlertTestRequest, AlertTested, ApiError, Certificates, CertificatesRequest, CertificatesTaken,
    DrainRequest, Events, EventsRequest, ForwardList, GatewayList, Health, History, HistoryRequest, InviteList,
    InviteRequest, InviteRevokeRequest, InviteRevoked, Invited, LinkLedger, LockdownInfo, LockdownTrialRequest, Matrix,
    Members, NameList, NodeInfo, PathList, PingLine, PingRequest, Plan, PolicyCheckRequest, PolicyChecked, PolicyInfo,
    Renewed, Restarting, RevokeRequest, Revoked, SCHEMA, SiteMatrix, Status, SwitchRequest, Switched, Version,
};
use super::{PolicyTraceRequest, TraceLine};

/// How long an answer may take: the daemon gives up on its own after 30 s.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(35);
/// Bytes of an answer at most: the status of 1,000 peers is about one MiB.
const ANSWER_LIMIT: usize = 64 * 1024 * 1024;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody answers at the socket.
    #[error("no daemon answers at {}: {source}\nstart it with `systemctl start meshd` or `meshd --config FILE`, or name its socket with --socket", socket.display())]
    NotRunning {
        /// The socket.
        socket: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The socket may not be opened.
    #[error("you may not open {}\nrun it as root, or join the socket's group", socket.display())]
    Forbidden {
        /// The socket.
        socket: PathBuf,
    },
    /// The daemon refused.
    #[error("{0}")]
    Refused(ApiError),
    /// The daemon did not answer.
    #[error("the daemon at {} did not answer within {} s", socket.display(), ANSWER_TIMEOUT.as_secs())]
    TimedOut {
        /// The socket.
        socket: PathBuf,
    },
    /// What answers does not speak this protocol.
    #[error("the answer of the daemon at {} cannot be read: {reason}", socket.display())]
    Protocol {
        /// The socket.
        socket: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

/// A client. Each call is a connection of its own.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    /// Makes a client of the daemon at a socket; nothing is opened yet.
    pub fn new(socket: impl Into<PathBuf>) -> Client {
        Client { socket: socket.into() }
    }

    /// Returns the socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The whole state.
    pub async fn status(&self) -> Result<Status, ClientError> {
        self.get("/v1/status").await
    }

    /// The node's public identity.
    pub async fn node(&self) -> Result<NodeInfo, ClientError> {
        self.get("/v1/node").await
    }

    /// The members the node knows.
    pub async fn members(&self) -> Result<Members, ClientError> {
        self.get("/v1/members").await
    }

    /// The ways to each peer.
    pub async fn paths(&self) -> Result<PathList, ClientError> {
        self.get("/v1/paths").await
    }

    /// Which connections use which link.
    pub async fn ledger(&self) -> Result<LinkLedger, ClientError> {
        self.get("/v1/ledger").await
    }

    /// The members' certificates.
    pub async fn certificates(&self) -> Result<Certificates, ClientError> {
        self.get("/v1/certificates").await
    }

    /// Has the daemon take certificates of members, and spread them.
    pub async fn take_certificates(&self, request: &CertificatesRequest) -> Result<CertificatesTaken, ClientError> {
        self.post("/v1/certificates", request).await
    }

    /// Who carries which shared prefix.
    pub async fn gateways(&self) -> Result<GatewayList, ClientError> {
        self.get("/v1/gateways").await
    }

    /// Moves flows away from the node's gateway, or back.
    pub async fn drain(&self, request: &DrainRequest) -> Result<GatewayList, ClientError> {
        self.post("/v1/gateways/drain", request).await
    }

    /// The rules of what may come in, and what they did.
    pub async fn policy(&self) -> Result<PolicyInfo, ClientError> {
        self.get("/v1/policy").await
    }

    /// What the rules make of something.
    pub async fn policy_check(&self, request: &PolicyCheckRequest) -> Result<PolicyChecked, ClientError> {
        self.post("/v1/policy/check", request).await
    }

    /// How far the lock-down of the public side has come.
    pub async fn lockdown(&self) -> Result<LockdownInfo, ClientError> {
        self.get("/v1/lockdown").await
    }

    /// Puts the configured lock-down on trial.
    pub async fn try_lockdown(&self, request: &LockdownTrialRequest) -> Result<LockdownInfo, ClientError> {
        self.post("/v1/lockdown/trial", request).await
    }

    /// Keeps what is on trial.
    pub async fn confirm_lockdown(&self) -> Result<LockdownInfo, ClientError> {
        self.post("/v1/lockdown/confirm", &serde_json::Value::Null).await
    }

    /// Opens everything again.
    pub async fn lift_lockdown(&self) -> Result<LockdownInfo, ClientError> {
        self.post("/v1/lockdown/off", &serde_json::Value::Null).await
    }

    /// The forwards and their connections.
    pub async fn forwards(&self) -> Result<ForwardList, ClientError> {
        self.get("/v1/forwards").await
    }

    /// The names and how they are answered.
    pub async fn names(&self) -> Result<NameList, ClientError> {
        self.get("/v1/names").await
    }

    /// Switches a forward.
    pub async fn switch_forward(&self, request: &SwitchRequest) -> Result<Switched, ClientError> {
        self.post("/v1/forwards/switch", request).await
    }

    /// Every link of the mesh.
    pub async fn matrix(&self) -> Result<Matrix, ClientError> {
        self.get("/v1/matrix").await
    }

    /// The links between sites.
    pub async fn site_matrix(&self) -> Result<SiteMatrix, ClientError> {
        self.get("/v1/matrix/sites").await
    }

    /// Whether the daemon does its work.
    pub async fn health(&self) -> Result<Health, ClientError> {
        self.get("/v1/health").await
    }

    /// What the daemon is.
    pub async fn version(&self) -> Result<Version, ClientError> {
        self.get("/v1/version").await
    }

    /// What a link was like.
    pub async fn history(&self, request: &HistoryRequest) -> Result<History, ClientError> {
        self.get(&self.query("/v1/history", request)?).await
    }

    /// What happened.
    pub async fn events(&self, request: &EventsRequest) -> Result<Events, ClientError> {
        self.get(&self.query("/v1/events", request)?).await
    }

    /// Makes an invite.
    pub async fn invite(&self, request: &InviteRequest) -> Result<Invited, ClientError> {
        self.post("/v1/invites", request).await
    }

    /// Lists the invites.
    pub async fn invites(&self) -> Result<InviteList, ClientError> {
        self.get("/v1/invites").await
    }

    /// Makes an invite useless.
    pub async fn revoke_invite(&self, request: &InviteRevokeRequest) -> Result<InviteRevoked, ClientError> {
        self.post("/v1/invites/revoke", request).await
    }

    /// Revokes a node.
    pub async fn revoke(&self, request: &RevokeRequest) -> Result<Revoked, ClientError> {
        self.post("/v1/revoke", request).await
    }

    /// The alerts, and how their receivers do.
    pub async fn alerts(&self) -> Result<AlertList, ClientError> {
        self.get("/v1/alerts").await
    }

    /// Tells a receiver a test.
    pub async fn test_alert(&self, request: &AlertTestRequest) -> Result<AlertTested, ClientError> {
        self.post("/v1/alerts/test", request).await
    }

    /// Renews the node's certificate.
    pub async fn renew(&self) -> Result<Renewed, ClientError> {
        self.post("/v1/renew", &serde_json::Value::Null).await
    }

    /// What a reload would take over.
    pub async fn plan(&self) -> Result<Plan, ClientError> {
        self.get("/v1/plan").await
    }

    /// Has the daemon take its changed configuration over.
    pub async fn reload(&self) -> Result<Plan, ClientError> {
        self.post("/v1/reload", &serde_json::Value::Null).await
    }

    /// Restarts the daemon in its process; it answers before it does.
    pub async fn restart(&self) -> Result<Restarting, ClientError> {
        self.post("/v1/restart", &serde_json::Value::Null).await
    }

    /// Pings a peer and hands over each line when it comes.
    pub async fn ping(&self, request: &PingRequest, line: impl FnMut(PingLine)) -> Result<(), ClientError> {
        let silence = Duration::from_secs_f64(request.interval_seconds.clamp(0.0, 60.0)) + ANSWER_TIMEOUT;
        self.lines("/v1/ping", request, silence, line).await
    }

    /// Watches packets and gives each line to `line` when it arrives.
    ///
    /// # Errors
    /// As every call.
    pub async fn policy_trace(
        &self,
        request: &PolicyTraceRequest,
        line: impl FnMut(TraceLine),
    ) -> Result<(), ClientError> {
        let silence = Duration::from_secs(request.seconds.into()) + ANSWER_TIMEOUT;
        self.lines("/v1/policy/trace", request, silence, line).await
    }

    /// Posts a request that is answered line by line, with at most `silence` between two.
    async fn lines<T: DeserializeOwned>(
        &self,
        path: &str,
        request: &impl Serialize,
        silence: Duration,
        mut line: impl FnMut(T),
    ) -> Result<(), ClientError> {
        let response = self.call(Method::POST, path, self.encode(request)?).await?;
        let mut response = self.admitted(response).await?;
        let mut pending: Vec<u8> = Vec::new();
        let body = response.body_mut();
        loop {
            let frame = timeout(silence, body.frame()).await.map_err(|_| self.timed_out())?;
            let Some(frame) = frame else { break };
            let frame = frame.map_err(|error| self.protocol(error))?;
            pending.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data));
            while let Some(end) = pending.iter().position(|byte| *byte == b'\n') {
                let text: Vec<u8> = pending.drain(..=end).collect();
                line(serde_json::from_slice(&text).map_err(|error| self.protocol(error))?);
            }
            if pending.len() > ANSWER_LIMIT {
                return Err(self.protocol("a line without end"));
            }
        }
        if pending.is_empty() { Ok(()) } else { Err(self.protocol("it ended within a line")) }
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        let response = self.call(Method::GET, path, Bytes::new()).await?;
        self.read(response).await
    }

    async fn post<T: DeserializeOwned>(&self, path: &str, request: &impl Serialize) -> Result<T, ClientError> {
        let response = self.call(Method::POST, path, self.encode(request)?).await?;
        self.read(response).await
    }

    /// A path with what is asked for behind it.
    fn query(&self, path: &str, request: &impl Serialize) -> Result<String, ClientError> {
        let fields = serde_json::to_value(request).map_err(|error| self.protocol(error))?;
        let mut text = path.to_owned();
        for (i, (name, value)) in fields.as_object().into_iter().flatten().enumerate() {
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            text.push_str(&format!("{}{name}=", if i == 0 { '?' } else { '&' }));
            for byte in value.bytes() {
                match byte {
                    b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' | b'-' | b'.' | b'_' | b'~' => text.push(char::from(byte)),
                    other => text.push_str(&format!("%{other:02X}")),
                }
            }
        }
        Ok(text)
    }

    fn encode(&self, request: &impl Serialize) -> Result<Bytes, ClientError> {
        serde_json::to_vec(request).map(Bytes::from).map_err(|error| self.protocol(error))
    }

    async fn call(&self, method: Method, path: &str, body: Bytes) -> Result<Response<Incoming>, ClientError> {
        let stream = UnixStream::connect(&self.socket).await.map_err(|source| match source.kind() {
            io::ErrorKind::PermissionDenied => ClientError::Forbidden { socket: self.socket.clone() },
            _ => ClientError::NotRunning { socket: self.socket.clone(), source },
        })?;
        let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = handshake.map_err(|error| self.protocol(error))?;
        tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "meshd")
            .header("content-type", "application/json")
            .body(Full::new(body))
            .map_err(|error| self.protocol(error))?;
        let response = timeout(ANSWER_TIMEOUT, sender.send_request(request)).await.map_err(|_| self.timed_out())?;
        response.map_err(|error| self.protocol(error))
    }

    async fn read<T: DeserializeOwned>(&self, response: Response<Incoming>) -> Result<T, ClientError> {
        let response = self.admitted(response).await?;
        let body = self.collect(response).await?;
        let value: serde_json::Value = serde_json::from_slice(&body).map_err(|error| self.protocol(error))?;
        match value.get("schema").and_then(serde_json::Value::as_u64) {
            Some(schema) if schema == u64::from(SCHEMA) => {}
            schema => {
                let schema = schema.map_or("none".to_owned(), |schema| schema.to_string());
                let reason =
                    format!("its schema is {schema}, this meshctl reads {SCHEMA}; use the daemon's own meshctl");
                return Err(self.protocol(reason));
            }
        }
        serde_json::from_value(value).map_err(|error| self.protocol(error))
    }

    /// Passes a good response on, and turns any other into its error.
    async fn admitted(&self, response: Response<Incoming>) -> Result<Response<Incoming>, ClientError> {
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let body = self.collect(response).await?;
        match serde_json::from_slice(&body) {
            Ok(error) => Err(ClientError::Refused(error)),
            Err(_) => Err(self.protocol(format!("HTTP status {status}"))),
        }
    }

    async fn collect(&self, response: Response<Incoming>) -> Result<Bytes, ClientError> {
        let body = http_body_util::Limited::new(response.into_body(), ANSWER_LIMIT);
        let body = timeout(ANSWER_TIMEOUT, body.collect()).await.map_err(|_| self.timed_out())?;
        Ok(body.map_err(|error| self.protocol(error))?.to_bytes())
    }

    fn timed_out(&self) -> ClientError {
        ClientError::TimedOut { socket: self.socket.clone() }
    }

    fn protocol(&self, reason: impl ToString) -> ClientError {
        ClientError::Protocol { socket: self.socket.clone(), reason: reason.to_string() }
    }
}
