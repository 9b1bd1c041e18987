//! What WireGuard's own tools read: `wg show` asks a socket named after the interface, in the language of
//! <https://www.wireguard.com/xplatform/>. Nothing can be set there, and secrets are not told.

use std::fmt::Write;
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ipnet::IpNet;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::timeout;
use zeroize::Zeroizing;

use super::backend::Backend;
use super::membership::Members;
use super::status::{PeerStatus, Status, WireguardStatus};

/// The directory `wg` looks in, for INTERFACE.sock.
pub const UAPI_DIRECTORY: &str = "/var/run/wireguard";

/// How long a question may take to arrive and its answer to leave.
const LIMIT: Duration = Duration::from_secs(5);
/// Bytes of a request that are kept: the question has seven.
const QUESTION_LIMIT: usize = 64;
/// What a kernel calls "not permitted", "try again" and "invalid"; negative, as `wg` reads them.
const NOT_PERMITTED: i32 = -1;
const TRY_AGAIN: i32 = -11;
const INVALID: i32 = -22;

/// Bytes of a request that are heard to its end at most: `wg setconf` of a thousand peers.
const REQUEST_LIMIT: usize = 1 << 20;

/// Answers questions one after the other until `shutdown` is done.
pub(super) async fn serve<B: Backend>(listener: &UnixListener, backend: Arc<B>, shutdown: impl Future<Output = ()>) {
    tokio::pin!(shutdown);
    loop {
        let stream = tokio::select! {
            () = &mut shutdown => return,
            accepted = listener.accept() => accepted,
        };
        match stream {
            // Whoever is slow is left where it is: `wg` asks at once.
            Ok((stream, _)) => drop(timeout(LIMIT, serve_one(stream, &backend)).await),
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

async fn serve_one<B: Backend>(mut stream: UnixStream, backend: &Arc<B>) -> std::io::Result<()> {
    let question = hear(&mut stream).await?;
    let told = if question == b"get=1\n\n" {
        match (backend.status().await, backend.members().await) {
            (Ok(status), Ok(members)) => answer(&status, &members),
            _ => failed(TRY_AGAIN),
        }
    } else if question.starts_with(b"set=1\n") {
        failed(NOT_PERMITTED)
    } else {
        failed(INVALID)
    };
    stream.write_all(told.as_bytes()).await
}

/// Reads a request to the empty line at its end, and returns the beginning. The rest is let go: it may hold keys.
async fn hear(stream: &mut UnixStream) -> std::io::Result<Vec<u8>> {
    let (mut kept, mut heard) = (Vec::new(), 0);
    let mut last = [0; 2];
    let mut bytes = Zeroizing::new([0; 4_096]);
    while last != *b"\n\n" && heard < REQUEST_LIMIT {
        let read = stream.read(&mut *bytes).await?;
        let Some(&newest) = bytes[..read].last() else { break };
        last = [if read > 1 { bytes[read - 2] } else { last[1] }, newest];
        kept.extend_from_slice(&bytes[..read.min(QUESTION_LIMIT - kept.len())]);
        heard += read;
    }
    Ok(kept)
}

fn failed(errno: i32) -> String {
    format!("errno={errno}\n\n")
}

/// The device and its peers: members with a known key, then stock peers.
fn answer(status: &Status, members: &Members) -> String {
    let mut text = String::new();
    if let Some(listen) = status.node.listen.first() {
        // Writing into a String cannot fail.
        let _ = writeln!(text, "listen_port={}", listen.port());
    }
    for peer in &status.peers {
        let key =
            members.members.iter().find(|member| member.node_id == peer.node_id).map(|member| &member.wireguard_key);
        if let Some(key) = key.and_then(|key| hex(key)) {
            text += &member(&key, peer, status);
        }
    }
    for peer in &status.wireguard {
        if let Some(key) = hex(&peer.public_key) {
            text += &stock(&key, peer, status);
        }
    }
    text + "errno=0\n\n"
}

fn member(key: &str, peer: &PeerStatus, status: &Status) -> String {
    let endpoint = peer.path.as_ref().map(|path| path.endpoint);
    let own = [IpNet::from(IpAddr::from(peer.address_v4)), IpNet::from(IpAddr::from(peer.address_v6))];
    let allowed = own.iter().chain(&peer.prefixes);
    entry(key, endpoint, (peer.rx_bytes, peer.tx_bytes), peer.session_age_seconds, status, allowed)
}

fn stock(key: &str, peer: &WireguardStatus, status: &Status) -> String {
    let traffic = (peer.rx_bytes, peer.tx_bytes);
    entry(key, peer.endpoint, traffic, peer.session_age_seconds, status, peer.addresses.iter())
}

fn entry<'a>(
    key: &str,
    endpoint: Option<SocketAddr>,
    (received, sent): (u64, u64),
    session_age_seconds: Option<u64>,
    status: &Status,
    allowed: impl Iterator<Item = &'a IpNet>,
) -> String {
    let mut text = format!("public_key={key}\n");
    if let Some(endpoint) = endpoint {
        // A socket for both families names an IPv4 address in the form of IPv6.
        let _ = writeln!(text, "endpoint={}", SocketAddr::new(endpoint.ip().to_canonical(), endpoint.port()));
    }
    let handshake = session_age_seconds.map_or(0, |age| status.now.0.as_secs().saturating_sub(age));
    let _ = writeln!(text, "last_handshake_time_sec={handshake}\nlast_handshake_time_nsec=0");
    let _ = writeln!(text, "tx_bytes={sent}\nrx_bytes={received}\npersistent_keepalive_interval=0");
    for net in allowed {
        let _ = writeln!(text, "allowed_ip={net}");
    }
    text + "protocol_version=1\n"
}

/// A key as this language writes it.
fn hex(base64: &str) -> Option<String> {
    let bytes = STANDARD.decode(base64).ok().filter(|bytes| bytes.len() == 32)?;
    Some(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::super::fake::{Fake, healthy_status, ping_lines};
    use super::*;

    async fn ask(question: &[u8]) -> String {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("mesh0.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let backend = Arc::new(Fake { status: healthy_status(), ping: ping_lines() });
        let serving = serve(&listener, backend, std::future::pending());
        let asking = async {
            let mut stream = UnixStream::connect(&path).await.unwrap();
            stream.write_all(question).await.unwrap();
            let mut told = String::new();
            stream.read_to_string(&mut told).await.unwrap();
            told
        };
        tokio::select! {
            () = serving => unreachable!("it serves until it is told to stop"),
            told = asking => told,
        }
    }

    #[tokio::test]
    async fn the_state_is_told_and_nothing_can_be_set() {
        let told = ask(b"get=1\n\n").await;
        assert!(told.starts_with("listen_port=7655\n") && told.ends_with("errno=0\n\n"), "{told}");
        assert!(!told.contains("private_key") && !told.contains("preshared_key"), "{told}");
        assert_eq!(ask(b"set=1\nlisten_port=1\n\n").await, "errno=-1\n\n");
        assert_eq!(ask(b"get=2\n\n").await, "errno=-22\n\n");
        assert_eq!(ask(b"get=1\nlisten_port=1\n\n").await, "errno=-22\n\n");
        let long = format!("set=1\n{}\n", "allowed_ip=192.0.2.0/24\n".repeat(9_000));
        assert_eq!(ask(long.as_bytes()).await, "errno=-1\n\n", "heard to its end, so that it is no broken pipe");
        assert_eq!(ask(&[b'x'; REQUEST_LIMIT]).await, "errno=-22\n\n");
    }

    #[test]
    fn a_peer_is_told_in_the_order_wg_reads() {
        let status = healthy_status();
        let peer = &status.peers[0];
        let told = member("00ff", peer, &status);
        assert!(told.starts_with("public_key=00ff\n") && told.ends_with("protocol_version=1\n"), "{told}");
        assert!(told.contains(&format!("allowed_ip={}/32\n", peer.address_v4)), "{told}");
        assert!(told.contains(&format!("rx_bytes={}\n", peer.rx_bytes)), "{told}");
        assert_eq!(hex("AP8="), None);
        assert_eq!(hex(&STANDARD.encode([255; 32])).unwrap(), "ff".repeat(32));
    }
}
