//! `meshctl invite --authority`, `join` and `revoke --authority` against an inviting node that answers as the daemon does:
//! over its socket, and over a UDP path that loses the first datagrams.

use std::net::{SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use meshd::api::*;
use meshd::identity::*;
use meshd::platform::clock::wall;
use meshd::wire::Recipient;
use meshd::wire::join::{JoinMember, JoinRefusal, JoinReply, JoinRequest, Joined};
use rand_core::OsRng;
use tokio::sync::{mpsc, oneshot};

/// An inviting node without the authority's key.
struct Inviter {
    keys: NodeKeys,
    certificate: SignedCertificate,
    anchor: TrustAnchor,
    endpoint: SocketAddr,
    book: Mutex<InviteBook>,
    revoked: Mutex<Vec<SignedRevocation>>,
    joined: Mutex<Vec<SignedCertificate>>,
    drop_first: Mutex<u32>,
}

impl Inviter {
    /// Answers one datagram, unless the path loses it.
    fn answer(&self, datagram: &[u8]) -> Option<Vec<u8>> {
        let mut left = self.drop_first.lock().unwrap();
        if *left > 0 {
            *left -= 1;
            return None;
        }
        let recipient = Recipient::new(&self.keys.wireguard);
        let request = JoinRequest::open(&recipient, datagram).ok()?;
        let mut book = self.book.lock().unwrap();
        let outcome = match book.present(&request.presentation(), wall()) {
            Ok(grant) => {
                let certificate = grant.issue(None, &self.keys.signing, &self.anchor, wall()).ok()?;
                book.issued(grant.invite, &certificate);
                self.joined.lock().unwrap().push(certificate.clone());
                let name = self.certificate.certificate().name.clone();
                let wireguard_key = self.keys.public().wireguard;
                Ok(Joined { certificate, members: vec![JoinMember { name, wireguard_key, endpoint: self.endpoint }] })
            }
            Err(refusal) => Err(JoinRefusal::Invite(refusal)),
        };
        let key = book.get(request.presentation().invite)?.key.clone();
        request.reply(&key, &JoinReply { now: wall(), outcome }, &mut OsRng)
    }
}

fn refuse<T>() -> Answer<T> {
    Err(ApiError::new(ErrorKind::Internal, "not part of this test"))
}

impl Backend for Inviter {
    async fn status(&self) -> Answer<Status> {
        refuse()
    }

    async fn node(&self) -> Answer<NodeInfo> {
        let certificate = self.certificate.certificate();
        Ok(NodeInfo {
            schema: SCHEMA,
            name: certificate.name.to_string(),
            node_id: certificate.node.to_string(),
            wireguard_key: certificate.wireguard_key.to_string(),
            verifying_key: certificate.verifying_key.to_string(),
            mesh_name: self.anchor.mesh_name.clone(),
            mesh_id: self.anchor.mesh.to_string(),
            overlay_v4: self.anchor.overlay_v4,
            overlay_v6: self.anchor.overlay_v6,
            authorities: self.anchor.authorities.iter().map(ToString::to_string).collect(),
            endpoints: vec![self.endpoint],
            holds_authority: false,
        })
    }

    async fn members(&self) -> Answer<Members> {
        let member = |signed: &SignedCertificate| {
            let certificate = signed.certificate();
            Member {
                name: certificate.name.to_string(),
                node_id: certificate.node.to_string(),
                wireguard_key: certificate.wireguard_key.to_string(),
                verifying_key: certificate.verifying_key.to_string(),
                address_v4: certificate.address_v4,
                address_v6: certificate.address_v6,
                prefixes: certificate.prefixes.clone(),
                tags: Vec::new(),
                endpoints: Vec::new(),
                certificate_expires: certificate.not_after.into(),
                protocol_version: None,
                relays: false,
                revoked: false,
                is_self: false,
            }
        };
        Ok(Members { schema: SCHEMA, members: self.joined.lock().unwrap().iter().map(member).collect() })
    }

    async fn matrix(&self) -> Answer<Matrix> {
        refuse()
    }

    async fn ledger(&self) -> Answer<LinkLedger> {
        refuse()
    }

    async fn paths(&self) -> Answer<PathList> {
        refuse()
    }

    async fn policy(&self) -> Answer<PolicyInfo> {
        refuse()
    }

    async fn policy_check(&self, _request: PolicyCheckRequest) -> Answer<PolicyChecked> {
        refuse()
    }

    async fn site_matrix(&self) -> Answer<SiteMatrix> {
        refuse()
    }

    async fn certificates(&self) -> Answer<Certificates> {
        refuse()
    }

    async fn take_certificates(&self, _: CertificatesRequest) -> Answer<CertificatesTaken> {
        refuse()
    }

    async fn gateways(&self) -> Answer<GatewayList> {
        refuse()
    }

    async fn drain(&self, _: DrainRequest) -> Answer<GatewayList> {
        refuse()
    }

    async fn lockdown(&self) -> Answer<LockdownInfo> {
        refuse()
    }

    async fn try_lockdown(&self, _: LockdownTrialRequest) -> Answer<LockdownInfo> {
        refuse()
    }

    async fn confirm_lockdown(&self) -> Answer<LockdownInfo> {
        refuse()
    }

    async fn lift_lockdown(&self) -> Answer<LockdownInfo> {
        refuse()
    }

    async fn policy_trace(&self, _: PolicyTraceRequest) -> Answer<mpsc::Receiver<TraceLine>> {
        refuse()
    }

    async fn forwards(&self) -> Answer<ForwardList> {
        refuse()
    }

    async fn names(&self) -> Answer<NameList> {
        refuse()
    }

    async fn switch_forward(&self, _: SwitchRequest) -> Answer<Switched> {
        refuse()
    }

    async fn health(&self) -> Answer<Health> {
        refuse()
    }

    async fn version(&self) -> Answer<Version> {
        refuse()
    }

    async fn alerts(&self) -> Answer<AlertList> {
        refuse()
    }

    async fn test_alert(&self, _: AlertTestRequest) -> Answer<AlertTested> {
        refuse()
    }

    async fn metrics(&self, _: Option<String>) -> Answer<(&'static str, String)> {
        refuse()
    }

    async fn history(&self, _: HistoryRequest) -> Answer<History> {
        refuse()
    }

    async fn events(&self, _: EventsRequest) -> Answer<Events> {
        refuse()
    }

    async fn ping(&self, _: PingRequest) -> Answer<mpsc::Receiver<PingLine>> {
        refuse()
    }

    async fn invite(&self, request: InviteRequest) -> Answer<Invited> {
        let delegated = request.delegated.expect("this node does not hold the authority's key");
        let bytes = STANDARD.decode(delegated.delegation).unwrap();
        let admission = Admission {
            node: delegated.node_id.parse().unwrap(),
            name: request.name.parse().unwrap(),
            address_v4: request.address.expect("a delegated invite names its address"),
            prefixes: request.prefixes,
            tags: request.tags.iter().map(|tag| tag.parse().unwrap()).collect(),
            permissions: Permissions::default(),
            serial: delegated.serial,
            shares: Default::default(),
        };
        let (id, secret) = (InviteId::generate(&mut OsRng), InviteSecret::generate(&mut OsRng));
        let expires = wall() + std::time::Duration::from_secs(request.lifetime_seconds);
        let invite = Invite {
            id,
            key: secret.key(self.anchor.mesh, id),
            admission: admission.clone().ordered(),
            delegation: Some(SignedDelegation::verify(&bytes, &self.anchor).expect("signed by the authority")),
            expires,
            state: meshd::identity::InviteState::Open,
        };
        self.book.lock().unwrap().add(invite, wall()).unwrap();
        let token = Token {
            mesh: self.anchor.mesh,
            mesh_name: self.anchor.mesh_name.clone(),
            overlay_v4: self.anchor.overlay_v4,
            authorities: self.anchor.authorities.clone(),
            contact: self.keys.public().wireguard,
            endpoints: vec![self.endpoint],
            invite: id,
            secret,
            name: admission.name.clone(),
            expires,
        };
        Ok(Invited {
            schema: SCHEMA,
            invite: id.to_string(),
            name: admission.name.to_string(),
            address: admission.address_v4,
            expires: expires.into(),
            token: token.to_text().to_string(),
        })
    }

    async fn invites(&self) -> Answer<InviteList> {
        refuse()
    }

    async fn revoke_invite(&self, _: InviteRevokeRequest) -> Answer<InviteRevoked> {
        refuse()
    }

    async fn revoke(&self, request: RevokeRequest) -> Answer<Revoked> {
        let bytes = STANDARD.decode(request.revocation.expect("signed by meshctl")).unwrap();
        let signed = SignedRevocation::verify(&bytes, &self.anchor).expect("signed by the authority");
        let revocation = signed.revocation().clone();
        self.revoked.lock().unwrap().push(signed);
        Ok(Revoked {
            schema: SCHEMA,
            name: revocation.name.to_string(),
            node_id: revocation.node.to_string(),
            addresses: Vec::new(),
            sent_to: 1,
        })
    }

    async fn renew(&self) -> Answer<Renewed> {
        refuse()
    }

    async fn plan(&self) -> Answer<Plan> {
        refuse()
    }

    async fn reload(&self) -> Answer<Plan> {
        refuse()
    }

    async fn restart(&self) -> Answer<Restarting> {
        refuse()
    }
}

/// The inviting node's directory, its socket served and its UDP port answered until dropped.
struct Running {
    directory: tempfile::TempDir,
    inviter: Arc<Inviter>,
    udp: UdpSocket,
    threads: Vec<std::thread::JoinHandle<()>>,
    stop: Option<oneshot::Sender<()>>,
}

impl Running {
    fn start(drop_first: u32) -> Running {
        let directory = tempfile::tempdir().unwrap();
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let endpoint = udp.local_addr().unwrap();
        let init = ["init", "--mesh", "example", "--node", "web1", "--offline-authority", "--endpoint"];
        let run = meshctl(directory.path(), &[&init[..], &[&endpoint.to_string()]].concat());
        assert_eq!(run.0, 0, "{}", run.2);
        let read = |name: &str| std::fs::read_to_string(directory.path().join(name)).unwrap();
        let config = meshd::config::Config::parse(&read("meshd.toml"), &directory.path().join("meshd.toml")).unwrap();
        assert_eq!(config.files.authority, None);
        let anchor = config.mesh.trust_anchor().unwrap();
        let inviter = Arc::new(Inviter {
            keys: NodeKeys::from_armor(&read("identity.key")).unwrap(),
            certificate: SignedCertificate::from_armor(&read("node.cert"), &anchor).unwrap(),
            anchor,
            endpoint,
            book: Mutex::default(),
            revoked: Mutex::default(),
            joined: Mutex::default(),
            drop_first: Mutex::new(drop_first),
        });
        let (stop, stopped) = oneshot::channel();
        let threads = vec![
            serve_socket(config.files.socket, inviter.clone(), stopped),
            serve_udp(udp.try_clone().unwrap(), inviter.clone()),
        ];
        Running { directory, inviter, udp, threads, stop: Some(stop) }
    }

    fn meshctl(&self, arguments: &[&str]) -> (i32, String, String) {
        meshctl(self.directory.path(), arguments)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // A datagram of no bytes ends the UDP thread.
        let _ = self.udp.send_to(&[], self.inviter.endpoint);
        let _ = self.stop.take().map(|stop| stop.send(()));
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn serve_socket(path: PathBuf, inviter: Arc<Inviter>, stopped: oneshot::Receiver<()>) -> std::thread::JoinHandle<()> {
    let (bound, wait) = std::sync::mpsc::channel();
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let server = Server::bind(&path, None).unwrap();
            bound.send(()).unwrap();
            server.serve(inviter, async { drop(stopped.await) }).await;
        });
    });
    wait.recv().unwrap();
    thread
}

fn serve_udp(udp: UdpSocket, inviter: Arc<Inviter>) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || {
        let mut buffer = [0; 2_000];
        while let Ok((length @ 1.., from)) = udp.recv_from(&mut buffer) {
            if let Some(reply) = inviter.answer(&buffer[..length]) {
                // A stranger's datagram and a damaged reply come first, and must change nothing.
                let mut damaged = reply.clone();
                damaged[60] ^= 1;
                for datagram in [&b"hello"[..], &damaged, &reply] {
                    udp.send_to(datagram, from).unwrap();
                }
            }
        }
    })
}

fn meshctl(directory: &Path, arguments: &[&str]) -> (i32, String, String) {
    let Output { status, stdout, stderr } = Command::new(env!("CARGO_BIN_EXE_meshctl"))
        .args(arguments)
        .current_dir(directory)
        .env_clear()
        .env("MESHD_CONFIG", directory.join("meshd.toml"))
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code().unwrap(), text(stdout), text(stderr))
}

#[test]
fn a_host_joins_by_a_delegated_invite_over_a_lossy_path_and_is_revoked() {
    let running = Running::start(2);
    let invite = ["invite", "web2", "--tag", "web", "--route", "192.0.2.0/24", "--authority", "authority.key"];
    let (code, token, err) = running.meshctl(&invite);
    assert_eq!(code, 0, "{err}");
    assert_eq!(token.lines().count(), 1, "the token stands alone: {token}");
    assert!(err.contains("web2 will be 10.77.0.2"), "{err}");

    let host = tempfile::tempdir().unwrap();
    let (code, out, err) = meshctl(host.path(), &["join", token.trim(), "--endpoint", "198.51.100.7:7700"]);
    assert_eq!(code, 0, "{err}");
    assert!(out.starts_with("web2 is 10.77.0.2 in mesh example"), "{out}");
    let read = |name: &str| std::fs::read_to_string(host.path().join(name)).unwrap();
    let config = meshd::config::Config::parse(&read("meshd.toml"), &host.path().join("meshd.toml")).unwrap();
    assert_eq!(config.underlay.listen, ["[::]:7700".parse().unwrap()]);
    assert_eq!(config.bootstrap[0].endpoint, running.inviter.endpoint);
    assert_eq!(config.bootstrap[0].key, running.inviter.keys.public().wireguard);
    let anchor = config.mesh.trust_anchor().unwrap();
    assert_eq!(anchor, running.inviter.anchor);
    let certificate = SignedCertificate::from_armor(&read("node.cert"), &anchor).unwrap();
    assert_eq!(certificate.certificate().keys(), NodeKeys::from_armor(&read("identity.key")).unwrap().public());
    assert_eq!(certificate.validity(wall()), Validity::Valid);
    assert_eq!(certificate.certificate().prefixes, ["192.0.2.0/24".parse().unwrap()]);

    // A second time there is something to lose, and nothing is written.
    let (code, _, err) = meshctl(host.path(), &["join", token.trim()]);
    assert_eq!(code, 1);
    assert!(err.contains("there already"), "{err}");
    // Another host comes too late.
    let thief = tempfile::tempdir().unwrap();
    let (code, _, err) = meshctl(thief.path(), &["join", token.trim()]);
    assert_eq!(code, 1);
    assert!(err.contains("already used by another host"), "{err}");
    assert!(!thief.path().join("node.cert").exists() && !thief.path().join("meshd.toml").exists());

    let revoke = ["revoke", "web2", "--yes", "--authority", "authority.key"];
    let (code, out, err) = running.meshctl(&revoke);
    assert_eq!(code, 0, "{err}");
    assert!(out.contains("is out of the mesh"), "{out}");
    assert!(running.inviter.revoked.lock().unwrap()[0].revocation().refuses(certificate.certificate()));
    let ledger = std::fs::read_to_string(running.directory.path().join("authority.ledger")).unwrap();
    assert!(ledger.contains("revoked = "), "{ledger}");
    let (code, _, err) = running.meshctl(&["revoke", "web3", "--yes", "--authority", "authority.key"]);
    assert_eq!(code, 4);
    assert!(err.contains("did you mean `web2`?"), "{err}");
}

#[test]
fn a_host_that_gets_no_answer_keeps_its_keys_and_may_try_again() {
    let running = Running::start(u32::MAX);
    let (_, token, _) = running.meshctl(&["invite", "web2", "--authority", "authority.key"]);
    let host = tempfile::tempdir().unwrap();
    let (code, out, err) = meshctl(host.path(), &["join", token.trim(), "--timeout", "300ms"]);
    assert_eq!((code, out.as_str()), (3, ""), "{err}");
    assert!(err.contains("no answer from 127.0.0.1:"), "{err}");
    let keys = std::fs::read_to_string(host.path().join("identity.key")).unwrap();
    assert_eq!(std::fs::read_dir(host.path()).unwrap().count(), 1);
    *running.inviter.drop_first.lock().unwrap() = 0;
    let (code, _, err) = meshctl(host.path(), &["join", token.trim()]);
    assert_eq!(code, 0, "{err}");
    assert_eq!(std::fs::read_to_string(host.path().join("identity.key")).unwrap(), keys);
}

#[test]
fn an_authority_of_another_mesh_invites_nobody() {
    let running = Running::start(0);
    let other = tempfile::tempdir().unwrap();
    let init = ["init", "--mesh", "other", "--node", "a", "--endpoint", "192.0.2.1:7655"];
    assert_eq!(meshctl(other.path(), &init).0, 0);
    let key = other.path().join("authority.key");
    let (code, out, err) = running.meshctl(&["invite", "web2", "--authority", key.to_str().unwrap()]);
    assert_eq!((code, out.as_str()), (1, ""));
    assert!(err.contains("is of mesh other"), "{err}");
}
