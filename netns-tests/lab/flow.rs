//! Conversations between two hosts: what an application would notice of the network under it.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use super::error::{Context, Result};
use super::host::Host;

/// Longer than any exchange takes that succeeds at all, retransmissions over a restart of a daemon included.
const PATIENCE: Duration = Duration::from_secs(60);

/// A TCP connection between two hosts, both ends held by this process.
#[derive(Debug)]
pub struct Flow {
    near: TcpStream,
    far: TcpStream,
    sent: u64,
}

impl Flow {
    /// Connects from one host's address to another's.
    ///
    /// # Errors
    /// Where the connection is not made within a minute.
    pub fn open(from: &Host, source: IpAddr, to: &Host, target: IpAddr) -> Result<Flow> {
        let what = format!("connect {} ({source}) to {} ({target})", from.name(), to.name());
        let listener = to.enter(|| TcpListener::bind(SocketAddr::new(target, 0))).context(&what)?;
        let address = listener.local_addr().context(&what)?;
        let near = from.enter(|| connect(source, address)).context(&what)?;
        let (far, _) = listener.accept().context(&what)?;
        for end in [&near, &far] {
            end.set_nodelay(true).context(&what)?;
            end.set_read_timeout(Some(PATIENCE)).context(&what)?;
            end.set_write_timeout(Some(PATIENCE)).context(&what)?;
        }
        Ok(Flow { near, far, sent: 0 })
    }

    /// Sends bytes there and back and checks that both ends got them.
    ///
    /// # Errors
    /// Where the connection broke, or a minute passed.
    pub fn exchange(&mut self, payload: &[u8]) -> Result<()> {
        self.sent += 1;
        let numbered = [&self.sent.to_be_bytes(), payload].concat();
        let mut buffer = vec![0; numbered.len()];
        for (mut from, mut to, way) in [(&self.near, &self.far, "there"), (&self.far, &self.near, "back")] {
            from.write_all(&numbered).context(format_args!("send {way}"))?;
            to.read_exact(&mut buffer).context(format_args!("receive {way}"))?;
            assert_eq!(buffer, numbered, "TCP delivers what was sent");
        }
        Ok(())
    }

    /// Gives the kernel bytes to deliver, now or when it can.
    ///
    /// # Errors
    /// Where the connection is broken.
    pub fn send(&mut self, payload: &[u8]) -> Result<()> {
        self.near.write_all(payload).context("send")
    }

    /// Receives at the far end what was given to [`Flow::send`].
    ///
    /// # Errors
    /// Where the connection broke, or a minute passed.
    pub fn receive(&mut self, expected: &[u8]) -> Result<()> {
        let mut buffer = vec![0; expected.len()];
        self.far.read_exact(&mut buffer).context("receive")?;
        assert_eq!(buffer, expected, "TCP delivers what was sent");
        Ok(())
    }

    /// Sends bytes from the end that did not open the connection, and checks that the other got them.
    ///
    /// # Errors
    /// Where the connection broke, or a minute passed.
    pub fn answer(&mut self, payload: &[u8]) -> Result<()> {
        self.far.write_all(payload).context("send back")?;
        let mut buffer = vec![0; payload.len()];
        self.near.read_exact(&mut buffer).context("receive back")?;
        assert_eq!(buffer, payload, "TCP delivers what was sent");
        Ok(())
    }
}

/// Connects from an address to another, within a minute.
///
/// # Errors
/// Where it does not come about.
pub fn connect(source: IpAddr, target: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = socket2::Socket::new(socket2::Domain::for_address(target), socket2::Type::STREAM, None)?;
    socket.bind(&SocketAddr::new(source, 0).into())?;
    socket.connect_timeout(&target.into(), PATIENCE)?;
    Ok(socket.into())
}

/// Sends one UDP datagram from one host to another and waits for it.
///
/// # Errors
/// Where it cannot be sent or does not come.
pub fn datagram(from: &Host, source: IpAddr, to: &Host, target: IpAddr, payload: &[u8]) -> Result<()> {
    let what = format!("a datagram from {} ({source}) to {} ({target})", from.name(), to.name());
    let near = from.enter(|| UdpSocket::bind(SocketAddr::new(source, 0))).context(&what)?;
    let far = to.enter(|| UdpSocket::bind(SocketAddr::new(target, 0))).context(&what)?;
    far.set_read_timeout(Some(Duration::from_secs(10))).context(&what)?;
    near.send_to(payload, far.local_addr().context(&what)?).context(&what)?;
    let mut buffer = vec![0; payload.len() + 1];
    let (len, seen) = far.recv_from(&mut buffer).context(&what)?;
    assert_eq!(&buffer[..len], payload, "UDP delivers what was sent");
    assert_eq!(seen.ip(), source, "the mesh translates no addresses");
    Ok(())
}
