//! Forwards on loopback: connections, switches under load, what is closed and what goes on.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use meshd::config::{Forward as Settings, ForwardSource, Target, TargetHost};
use meshd::forward::{Forward, Service};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// How long a test that hangs may do so.
const PATIENCE: Duration = Duration::from_secs(60);

/// A server that answers each byte with its letter, and ends when its client does.
async fn server(letter: u8) -> (SocketAddr, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serving = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut byte = [0];
                while matches!(stream.read(&mut byte).await, Ok(1)) {
                    if stream.write_all(&[letter]).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    (address, serving)
}

fn target(address: SocketAddr) -> Target {
    Target { host: TargetHost::Address(address.ip()), port: address.port() }
}

fn settings(targets: &[SocketAddr]) -> Settings {
    Settings {
        name: "orders".parse().unwrap(),
        listen: vec!["127.0.0.1:0".parse().unwrap()],
        targets: targets.iter().map(|address| target(*address)).collect(),
        failover: false,
        check_interval: Duration::from_secs(1),
        connect_timeout: Duration::from_secs(10),
        source: ForwardSource::None,
        max_connections: 100,
    }
}

/// A service with one forward, the forward, and where it listens.
fn forward(settings: Settings) -> (Service, Arc<Forward>, SocketAddr) {
    let mut service = Service::start().unwrap();
    service.apply(&[settings]).unwrap();
    let forward = Arc::clone(service.get("orders").unwrap());
    let listen = service.listening().next().unwrap();
    (service, forward, listen)
}

/// The letter of whoever answers on a connection.
async fn ask(stream: &mut TcpStream) -> std::io::Result<u8> {
    stream.write_all(b"?").await?;
    stream.read_u8().await
}

async fn ask_once(listen: SocketAddr) -> std::io::Result<u8> {
    ask(&mut TcpStream::connect(listen).await?).await
}

#[tokio::test]
async fn ten_switches_there_and_back_fail_no_request_and_serve_none_from_both_sides() {
    let ((a, _serving_a), (b, _serving_b)) = (server(b'a').await, server(b'b').await);
    let (_service, forward, listen) = forward(settings(&[a, b]));
    let (stop, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let clients: Vec<JoinHandle<()>> = (0..8)
        .map(|_| {
            let (stop, asked) = (Arc::clone(&stop), Arc::clone(&asked));
            tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    let mut stream = TcpStream::connect(listen).await.expect("never refused");
                    let first = ask(&mut stream).await.expect("never failed");
                    assert_eq!(ask(&mut stream).await.expect("never failed"), first, "a connection sees one side");
                    asked.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    let rounds = async {
        for (address, letter) in [(b, b'b'), (a, b'a')].repeat(10) {
            let before = asked.load(Ordering::Relaxed);
            forward.switch(&target(address), true, false).await.unwrap();
            // Whatever connects from here on is after the moment of the switch.
            for _ in 0..20 {
                assert_eq!(ask_once(listen).await.expect("never failed"), letter);
            }
            while asked.load(Ordering::Relaxed) < before + 20 {
                assert!(!clients.iter().any(JoinHandle::is_finished), "a client failed");
                tokio::task::yield_now().await;
            }
        }
    };
    tokio::time::timeout(PATIENCE, rounds).await.unwrap();
    stop.store(true, Ordering::Relaxed);
    for client in clients {
        client.await.expect("no request failed");
    }
    let made: u64 = forward.picture().targets.iter().map(|target| target.opened).sum();
    assert_eq!(made, asked.load(Ordering::Relaxed) + 400, "each connection was made once, to one target");
}

#[tokio::test]
async fn old_connections_go_on_or_are_closed_as_the_operator_says() {
    let ((a, _serving_a), (b, _serving_b)) = (server(b'a').await, server(b'b').await);
    let (_service, forward, listen) = forward(settings(&[a, b]));
    let mut old = TcpStream::connect(listen).await.unwrap();
    assert_eq!(ask(&mut old).await.unwrap(), b'a');
    assert_eq!(forward.switch(&target(b), true, false).await.unwrap(), 1, "one goes on");
    assert_eq!((ask(&mut old).await.unwrap(), ask_once(listen).await.unwrap()), (b'a', b'b'));
    assert_eq!(forward.switch(&target(a), true, true).await.unwrap(), 0);
    assert_eq!(ask_once(listen).await.unwrap(), b'a');
    // That one was of a side that was left, twice.
    assert!(ask(&mut old).await.is_err(), "closed");
}

#[tokio::test]
async fn each_direction_ends_by_itself() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (_service, _forward, listen) = forward(settings(&[listener.local_addr().unwrap()]));
    let mut client = TcpStream::connect(listen).await.unwrap();
    let big = vec![7; 3 << 20];
    let talk = async {
        // Looks come before the connection, which says something.
        let question = loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut question = Vec::new();
            if stream.read_to_end(&mut question).await.is_ok() && !question.is_empty() {
                stream.write_all(b"all of it").await.unwrap();
                break question;
            }
        };
        question.len()
    };
    let ask = async {
        client.write_all(&big).await.unwrap();
        client.shutdown().await.unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        answer
    };
    let (length, answer) = tokio::time::timeout(PATIENCE, async { tokio::join!(talk, ask) }).await.unwrap();
    assert_eq!((length, answer.as_str()), (big.len(), "all of it"));
}

#[tokio::test]
async fn a_target_that_asks_for_it_learns_where_connections_come_from() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (_service, _forward, listen) = forward(Settings { source: ForwardSource::ProxyV2, ..settings(&[address]) });
    let mut client = TcpStream::connect(listen).await.unwrap();
    client.write_all(b"hello").await.unwrap();
    let read = async {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut bytes = [0; 33];
            if stream.read_exact(&mut bytes).await.is_ok() {
                return bytes;
            }
        }
    };
    let bytes = tokio::time::timeout(PATIENCE, read).await.unwrap();
    let header = meshd::forward::proxy_header::encode(client.local_addr().unwrap(), listen);
    assert_eq!((&bytes[..28], &bytes[28..]), (&header[..], &b"hello"[..]));
}

#[tokio::test]
async fn a_new_connection_waits_for_a_target_that_restarts() {
    let (a, serving) = server(b'a').await;
    let (_service, _forward, listen) = forward(settings(&[a]));
    assert_eq!(ask_once(listen).await.unwrap(), b'a');
    serving.abort();
    let _ = serving.await;
    let waiting = tokio::spawn(ask_once(listen));
    // Refused at least once before the target is back.
    let refused = async {
        while _forward.picture().targets[0].failed == 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, refused).await.unwrap();
    let listener = TcpListener::bind(a).await.unwrap();
    let serve = async {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            if stream.read_u8().await.is_ok() {
                return stream.write_all(b"z").await.unwrap();
            }
        }
    };
    tokio::time::timeout(PATIENCE, serve).await.unwrap();
    assert_eq!(waiting.await.unwrap().unwrap(), b'z');
}

#[tokio::test]
async fn a_reload_leaves_sockets_and_connections_alone_and_refuses_whole() {
    let ((a, _serving_a), (b, _serving_b)) = (server(b'a').await, server(b'b').await);
    let (mut service, _forward, listen) = forward(settings(&[a]));
    let mut old = TcpStream::connect(listen).await.unwrap();
    assert_eq!(ask(&mut old).await.unwrap(), b'a');
    service.apply(&[settings(&[b])]).unwrap();
    assert_eq!(service.listening().next(), Some(listen), "the same socket");
    assert_eq!((ask_once(listen).await.unwrap(), ask(&mut old).await.unwrap()), (b'b', b'a'));
    let taken = Settings { name: "more".parse().unwrap(), listen: vec![a], ..settings(&[b]) };
    assert!(service.apply(&[settings(&[a]), taken]).is_err());
    assert_eq!((ask_once(listen).await.unwrap(), service.iter().count()), (b'b', 1), "nothing has changed");
    service.apply(&[]).unwrap();
    assert_eq!(ask(&mut old).await.unwrap(), b'a', "connections outlive their forward");
}

#[tokio::test]
async fn no_more_connections_are_taken_than_allowed() {
    let (a, _serving) = server(b'a').await;
    let (_service, forward, listen) = forward(Settings { max_connections: 1, ..settings(&[a]) });
    let mut first = TcpStream::connect(listen).await.unwrap();
    assert_eq!(ask(&mut first).await.unwrap(), b'a');
    assert!(ask_once(listen).await.is_err());
    assert_eq!(forward.picture().refused, 1);
    assert_eq!(ask(&mut first).await.unwrap(), b'a');
}
