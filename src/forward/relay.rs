//! The bytes of one connection, both ways.

use std::cell::RefCell;
use std::io;
use std::net::Shutdown;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
use tokio::task::coop;

use crate::platform::clock;

/// Bytes moved at once: what a fast link delivers in a millisecond or two.
const CHUNK: usize = 256 << 10;
/// When a silent connection is asked whether it still stands, how often, and how many times without an answer: a dead
/// client is gone within two minutes, and firewalls on the way see traffic before their usual five.
const KEEPALIVE: TcpKeepalive =
    TcpKeepalive::new().with_time(Duration::from_secs(60)).with_interval(Duration::from_secs(15)).with_retries(4);

thread_local! {
    /// One for all connections of the thread, so that a silent one holds no buffer.
    static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; CHUNK]);
}

/// What went through a connection.
#[derive(Debug, Default)]
pub(super) struct Moved {
    /// Bytes from the client to the target.
    pub(super) to_target: AtomicU64,
    /// Bytes from the target to the client.
    pub(super) to_client: AtomicU64,
    /// When the last ones went, in nanoseconds of the monotonic clock.
    pub(super) last: AtomicU64,
}

/// Makes a socket prompt and watchful. What is refused costs only that.
pub(super) fn prepare(stream: &TcpStream) {
    let socket = SockRef::from(stream);
    let _ = socket.set_tcp_nodelay(true);
    let _ = socket.set_tcp_keepalive(&KEEPALIVE);
}

/// Closes a connection so that its peer learns of a failure, not of an orderly end.
pub(super) fn reset(stream: &TcpStream) {
    // Where it is refused, an orderly end is what remains.
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

/// Moves bytes until both ends have finished, each passed on when it comes; the error of whichever end fails first.
pub(super) async fn relay(client: &TcpStream, target: &TcpStream, moved: &Moved) -> io::Result<()> {
    let up = carry(client, target, &moved.to_target, &moved.last);
    let down = carry(target, client, &moved.to_client, &moved.last);
    tokio::try_join!(up, down).map(|_| ())
}

/// Moves one direction to its end, and passes the end on.
async fn carry(from: &TcpStream, to: &TcpStream, count: &AtomicU64, last: &AtomicU64) -> io::Result<()> {
    let mut rest: Vec<u8> = Vec::new();
    loop {
        // A fast connection must not keep the others waiting.
        coop::consume_budget().await;
        from.readable().await?;
        let read = SCRATCH.with_borrow_mut(|scratch| pass(from, to, scratch, &mut rest));
        match read {
            Ok(0) => return SockRef::from(to).shutdown(Shutdown::Write),
            Ok(read) => {
                write_all(to, &rest).await?;
                rest.clear();
                count.fetch_add(read as u64, Ordering::Relaxed);
                last.store(clock::now().as_nanos(), Ordering::Relaxed);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}

/// Reads once and writes what the other end takes at once; what it does not take is left in `rest`.
fn pass(from: &TcpStream, to: &TcpStream, scratch: &mut [u8], rest: &mut Vec<u8>) -> io::Result<usize> {
    let read = from.try_read(scratch)?;
    let data = &scratch[..read];
    let written = match read {
        0 => 0,
        _ => match to.try_write(data) {
            Ok(written) => written,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            Err(error) => return Err(error),
        },
    };
    rest.extend_from_slice(&data[written..]);
    Ok(read)
}

/// Writes all of it.
pub(super) async fn write_all(to: &TcpStream, mut data: &[u8]) -> io::Result<()> {
    while !data.is_empty() {
        to.writable().await?;
        match to.try_write(data) {
            Ok(written) => data = &data[written..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
