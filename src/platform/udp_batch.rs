//! Batches of datagrams with everything the kernel needs preallocated, so that no packet costs an allocation.

use super::control_data::{self, ControlBuffer, Sent};
use super::udp::UdpError;
use nix::errno::Errno;
use socket2::Socket;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;

/// Messages per system call: at 64 the call's own cost is below a tenth of sealing the packets, and more would only
/// add standing queue in front of a latency-bound packet.
pub const BATCH: usize = 64;

/// The longest UDP payload over IPv4, and so the longest run: 65,535 bytes less the headers of IP and UDP.
pub const LONGEST_RUN: usize = 65_507;

/// Datagrams the kernel cuts one buffer into at most (UDP_MAX_SEGMENTS; 128 from Linux 6.9 on, but runs of full-size
/// datagrams end at 45 by their bytes).
const MOST_SEGMENTS: usize = 64;

/// Destinations remembered for not taking runs. Beyond that the oldest is forgotten and costs one refused call when it
/// comes up again.
const MOST_REFUSALS: usize = 32;

/// Bytes of sealed datagrams that wait for one send: four runs of the greatest length, so that one packet read from the
/// device, however finely it is to be cut, nearly always fits. Pages that are never used cost nothing.
const SEND_BYTES: usize = 4 * 65_536;

/// Runs that wait for one send.
const SEND_RUNS: usize = 256;

/// Buffers for one `recvmmsg`.
pub struct ReceiveBatch {
    slots: Slots,
    filled: usize,
    /// Headers from the first on that the kernel has written to since they were pointed at their buffers.
    used: usize,
}

/// One received buffer: one datagram, or several of `stride` bytes each (the last may be shorter).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// Where it came from; IPv4 is never mapped.
    pub source: SocketAddr,
    /// The local address it was sent to, as far as the kernel told.
    pub destination: Option<IpAddr>,
    /// When the kernel received it (CLOCK_REALTIME, nanoseconds since the epoch).
    pub stamp: Option<u64>,
    /// The two ECN bits of the outer header.
    pub ecn: u8,
    /// Bytes in the buffer.
    pub length: usize,
    /// Bytes per datagram in the buffer; equal to `length` where there is one. Never zero, unless `length` is.
    pub stride: usize,
    /// The datagram was longer than the buffer; its rest is lost.
    pub truncated: bool,
}

impl ReceiveBatch {
    /// Makes buffers for `count` datagrams (at least one) of at most `size` bytes.
    pub fn new(count: usize, size: usize) -> Self {
        let slots = Slots::new(count.max(1), size.max(1));
        ReceiveBatch { filled: 0, used: slots.count(), slots }
    }

    /// Returns how many buffers the last receive filled.
    pub fn len(&self) -> usize {
        self.filled
    }

    /// Tells whether the last receive filled nothing.
    pub fn is_empty(&self) -> bool {
        self.filled == 0
    }

    /// Returns what the kernel said about buffer `index`; `None` past [`ReceiveBatch::len`], or where the kernel gave
    /// no source.
    pub fn about(&self, index: usize) -> Option<Received> {
        if index >= self.filled {
            return None;
        }
        let header = &self.slots.headers[index];
        // SAFETY: recvmmsg filled this header's control buffer, which `slots` owns, and set its length.
        let control = unsafe { control_data::read(&header.msg_hdr) };
        let length = (header.msg_len as usize).min(self.slots.size);
        Some(Received {
            source: control_data::address_from(&self.slots.addresses[index])?,
            destination: control.destination,
            stamp: control.stamp,
            ecn: control.ecn,
            length,
            stride: control.stride.map(usize::from).filter(|&s| s > 0 && s < length).unwrap_or(length),
            truncated: header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0,
        })
    }

    /// Returns the bytes of buffer `index`, empty past [`ReceiveBatch::len`].
    pub fn bytes(&self, index: usize) -> &[u8] {
        if index >= self.filled {
            return &[];
        }
        let start = index * self.slots.size;
        let length = (self.slots.headers[index].msg_len as usize).min(self.slots.size);
        &self.slots.bytes[start..start + length]
    }

    /// Returns the bytes of buffer `index` for decryption in place, empty past [`ReceiveBatch::len`].
    pub fn bytes_mut(&mut self, index: usize) -> &mut [u8] {
        if index >= self.filled {
            return &mut [];
        }
        let start = index * self.slots.size;
        let length = (self.slots.headers[index].msg_len as usize).min(self.slots.size);
        &mut self.slots.bytes[start..start + length]
    }

    /// Receives what is there, into `most` buffers at most, without waiting.
    pub(super) fn receive(&mut self, socket: &Socket, most: usize) -> Result<usize, UdpError> {
        self.filled = 0;
        let count = self.slots.count().min(most.max(1));
        for index in 0..self.used {
            self.slots.point_own(index);
        }
        // A failed call may have written to the first.
        self.used = 1;
        let headers = self.slots.headers.as_mut_ptr();
        let flags = libc::MSG_DONTWAIT;
        // SAFETY: `point` has made all `count` headers point into buffers that `slots` owns, which never move nor are
        // touched by anyone else during the call; those that an earlier call wrote to were pointed there again.
        let received =
            unsafe { libc::recvmmsg(socket.as_raw_fd(), headers, count as _, flags as _, std::ptr::null_mut()) };
        match usize::try_from(received) {
            Ok(received) => {
                (self.filled, self.used) = (received, received.max(1));
                Ok(received)
            }
            Err(_) => match Errno::last() {
                // A signal, like an empty queue, means: ask again.
                Errno::EINTR => Err(UdpError::WouldBlock),
                errno => Err(errno.into()),
            },
        }
    }
}

/// What one `sendmmsg` sends: one buffer, filled in place from the front. Datagrams that follow one another with the same
/// way and size form a run, which crosses the kernel as one.
///
/// ```text
/// let slot = batch.slot(least)?;   // free bytes
/// let n = seal(.., slot);          // write the datagram there
/// batch.commit(n, way);            // keep it
/// socket.send(&mut batch, ..);
/// ```
pub struct SendBatch {
    bytes: Box<[u8]>,
    used: usize,
    runs: Vec<Run>,
    /// How much has been sent already, where the socket had no room for all of it.
    cursor: Cursor,
    slots: Slots,
    refusals: Refusals,
}

/// Where a datagram goes, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    /// The destination.
    pub to: SocketAddr,
    /// The address of ours to send from; `None` leaves the choice to the kernel.
    pub source: Option<IpAddr>,
    /// DSCP and ECN of the outer header.
    pub tos: u8,
}

/// Datagrams of one way, `segment` bytes each but the last, which may be shorter.
#[derive(Clone, Copy)]
struct Run {
    start: usize,
    length: usize,
    segment: usize,
    way: Way,
    /// The kernel did not take it as one. Where it then takes the first datagram of it, that is remembered.
    single: bool,
}

impl Run {
    fn is_one(&self) -> bool {
        self.length <= self.segment
    }

    /// Whether a datagram of `length` bytes can be the next one of it.
    fn takes(&self, length: usize, way: &Way) -> bool {
        let room = self.length + length <= LONGEST_RUN && self.length / self.segment.max(1) < MOST_SEGMENTS;
        room && length > 0 && length <= self.segment && self.length.is_multiple_of(self.segment) && self.way == *way
    }
}

impl Default for SendBatch {
    fn default() -> Self {
        Self::new()
    }
}

impl SendBatch {
    /// Makes an empty batch.
    pub fn new() -> Self {
        let release = nix::sys::utsname::uname().map(|name| name.release().to_string_lossy().into_owned());
        SendBatch {
            bytes: vec![0; SEND_BYTES].into_boxed_slice(),
            used: 0,
            runs: Vec::with_capacity(SEND_RUNS),
            cursor: Cursor { run: 0, offset: 0 },
            slots: Slots::new(BATCH, 0),
            refusals: Refusals::new(release.is_ok_and(|release| damages_runs(&release))),
        }
    }

    /// Tells whether nothing waits to be sent.
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// Returns how many bytes wait to be sent.
    pub fn len(&self) -> usize {
        self.used
    }

    /// Returns the free bytes, at least `least` of them, or `None` when the batch is too full for that: send first.
    /// Asking again without a commit returns the same.
    pub fn slot(&mut self, least: usize) -> Option<&mut [u8]> {
        let free = &mut self.bytes[self.used..];
        if free.len() < least || self.runs.len() == SEND_RUNS {
            return None;
        }
        Some(free)
    }

    /// Keeps the first `length` bytes of what [`SendBatch::slot`] gave as one datagram. Without a free place, or with a
    /// length beyond it, nothing is kept and `false` returned.
    pub fn commit(&mut self, length: usize, way: Way) -> bool {
        if self.used + length > self.bytes.len() || self.runs.len() == SEND_RUNS {
            return false;
        }
        match self.runs.last_mut().filter(|run| run.takes(length, &way)) {
            Some(run) => run.length += length,
            None => self.runs.push(Run { start: self.used, length, segment: length, way, single: false }),
        }
        self.used += length;
        true
    }

    /// Sends all there is room for; what is left stays for another call. Returns how many datagrams went out.
    pub(super) fn flush(
        &mut self,
        socket: &Socket,
        mapped: bool,
        mut refused: impl FnMut(SocketAddr, UdpError),
    ) -> usize {
        let mut sent = 0;
        let mut only_one = false;
        while self.cursor.run < self.runs.len() {
            let count = self.prepare(mapped, std::mem::take(&mut only_one));
            let headers = self.slots.headers.as_mut_ptr();
            // SAFETY: `prepare` made the first `count` headers point into buffers that this batch owns; the kernel only
            // reads them.
            let result = unsafe { libc::sendmmsg(socket.as_raw_fd(), headers, count as _, libc::MSG_DONTWAIT as _) };
            match usize::try_from(result) {
                Ok(taken) => {
                    for _ in 0..taken {
                        let run = self.runs[self.cursor.run];
                        if run.single && self.cursor.offset == 0 {
                            self.refusals.remember(run.way.to);
                        }
                        sent += self.step();
                    }
                }
                // An error always belongs to the first message of the call.
                Err(_) => {
                    let whole = self.goes_whole(self.cursor);
                    let run = &mut self.runs[self.cursor.run];
                    match Errno::last() {
                        Errno::EINTR => {}
                        Errno::EAGAIN => return sent,
                        // The run may be at fault, or something that the single datagrams will show as well.
                        errno if whole && refuses_runs(errno) => run.single = true,
                        errno if run.way.source.is_some() && source_is_gone(errno) => {
                            run.way.source = None;
                            only_one = true;
                        }
                        errno => {
                            let to = run.way.to;
                            for _ in 0..self.step() {
                                refused(to, errno.into());
                            }
                        }
                    }
                }
            }
        }
        self.clear();
        sent
    }

    fn clear(&mut self) {
        self.runs.clear();
        (self.used, self.cursor) = (0, Cursor { run: 0, offset: 0 });
    }

    /// Points headers at what is to be sent next and returns how many.
    fn prepare(&mut self, mapped: bool, only_one: bool) -> usize {
        let limit = if only_one { 1 } else { self.slots.count() };
        let mut cursor = self.cursor;
        let mut count = 0;
        while count < limit && cursor.run < self.runs.len() {
            let run = self.runs[cursor.run];
            let whole = self.goes_whole(cursor);
            let length = if whole { run.length } else { (run.length - cursor.offset).min(run.segment) };
            let address = control_data::address_into(&mut self.slots.addresses[count], run.way.to, mapped);
            let segment = u16::try_from(run.segment).ok().filter(|_| whole);
            let sent = Sent { source: run.way.source, tos: run.way.tos, segment };
            let control = control_data::write(&mut self.slots.controls[count], sent, run.way.to.is_ipv4(), mapped);
            let start = run.start + cursor.offset;
            self.slots.point(count, &mut self.bytes[start..start + length], control, address);
            count += 1;
            cursor = self.after(cursor).0;
        }
        count
    }

    /// Whether what is next is a run that the kernel is to cut.
    fn goes_whole(&self, cursor: Cursor) -> bool {
        let run = &self.runs[cursor.run];
        cursor.offset == 0 && !run.is_one() && !run.single && !self.refusals.contain(&run.way.to)
    }

    /// Goes past what was next and returns how many datagrams that were.
    fn step(&mut self) -> usize {
        let (cursor, datagrams) = self.after(self.cursor);
        self.cursor = cursor;
        datagrams
    }

    fn after(&self, cursor: Cursor) -> (Cursor, usize) {
        let run = &self.runs[cursor.run];
        let next = Cursor { run: cursor.run + 1, offset: 0 };
        if self.goes_whole(cursor) {
            return (next, run.length.div_ceil(run.segment));
        }
        let offset = cursor.offset + run.segment.max(1);
        (if offset >= run.length { next } else { Cursor { offset, ..cursor } }, 1)
    }
}

/// The next datagram to send: a run and the offset of a datagram in it.
#[derive(Clone, Copy)]
struct Cursor {
    run: usize,
    offset: usize,
}

/// Destinations whose way does not take runs: a network card without checksums, a smaller MTU, IPsec.
struct Refusals {
    destinations: Vec<SocketAddr>,
    oldest: usize,
    everywhere: bool,
}

impl Refusals {
    fn new(everywhere: bool) -> Self {
        Refusals { destinations: Vec::new(), oldest: 0, everywhere }
    }

    fn contain(&self, to: &SocketAddr) -> bool {
        self.everywhere || self.destinations.contains(to)
    }

    fn remember(&mut self, to: SocketAddr) {
        if self.contain(&to) {
            return;
        }
        if self.destinations.len() < MOST_REFUSALS {
            return self.destinations.push(to);
        }
        self.destinations[self.oldest] = to;
        self.oldest = (self.oldest + 1) % MOST_REFUSALS;
    }
}

/// What the kernel answers to a run it cannot cut: no checksums at the card or none wanted, a datagram above the MTU (two
/// errors, by version), no such option.
fn refuses_runs(errno: Errno) -> bool {
    matches!(errno, Errno::EIO | Errno::EINVAL | Errno::EMSGSIZE | Errno::EOPNOTSUPP | Errno::ENOPROTOOPT)
}

/// Whether the kernel of this release corrupts headers of runs of equal datagrams: those from 7.0 to before 7.1.5.
fn damages_runs(release: &str) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse::<u32>().unwrap_or(0));
    let mut next = || numbers.next().unwrap_or(0);
    let (major, minor, patch) = (next(), next(), next());
    (7, 0, 0) <= (major, minor, patch) && (major, minor, patch) < (7, 1, 5)
}

/// Sends one datagram at once or not at all.
pub(super) fn send_one(
    socket: &Socket,
    mapped: bool,
    bytes: &[u8],
    to: SocketAddr,
    source: Option<IpAddr>,
) -> Result<(), UdpError> {
    let mut storage = control_data::no_address();
    let address_length = control_data::address_into(&mut storage, to, mapped);
    let mut control = ControlBuffer::EMPTY;
    let sent = Sent { source, ..Sent::default() };
    let control_length = control_data::write(&mut control, sent, to.is_ipv4(), mapped);
    let mut vector = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    let mut header = empty_header().msg_hdr;
    header.msg_name = (&raw mut storage).cast();
    header.msg_namelen = address_length;
    header.msg_iov = &raw mut vector;
    header.msg_iovlen = 1;
    if control_length > 0 {
        header.msg_control = (&raw mut control).cast();
        header.msg_controllen = control_length as _;
    }
    loop {
        // SAFETY: every pointer in the header refers to a local or to `bytes`, all alive; the kernel only reads them.
        let result = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const header, libc::MSG_DONTWAIT) };
        if result >= 0 {
            return Ok(());
        }
        match Errno::last() {
            Errno::EINTR => {}
            errno if header.msg_controllen > 0 && source_is_gone(errno) => {
                header.msg_control = std::ptr::null_mut();
                header.msg_controllen = 0;
            }
            errno => return Err(errno.into()),
        }
    }
}

/// What the kernel answers when asked for a source address this host does not have: IPv4 and IPv6 differ.
fn source_is_gone(errno: Errno) -> bool {
    matches!(errno, Errno::EINVAL | Errno::EADDRNOTAVAIL | Errno::ENETUNREACH)
}

const CONTROL_CAPACITY: usize = size_of::<ControlBuffer>();
const ADDRESS_CAPACITY: libc::socklen_t = size_of::<libc::sockaddr_storage>() as libc::socklen_t;

/// The arrays behind a batch. The headers' pointers are set by [`Slots::point`] right before each call and mean
/// nothing at any other time, so moving or sending the struct is harmless.
struct Slots {
    size: usize,
    bytes: Box<[u8]>,
    headers: Box<[libc::mmsghdr]>,
    vectors: Box<[libc::iovec]>,
    addresses: Box<[libc::sockaddr_storage]>,
    controls: Box<[ControlBuffer]>,
}

// SAFETY: the raw pointers inside point into boxes of the same struct, or of the batch it belongs to, and are used only
// through `&mut self`, or, for the control data of a received datagram, through `&self` while nothing writes.
unsafe impl Send for Slots {}

impl Slots {
    fn new(count: usize, size: usize) -> Self {
        let vector = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
        Slots {
            size,
            bytes: vec![0; count * size].into_boxed_slice(),
            headers: vec![empty_header(); count].into_boxed_slice(),
            vectors: vec![vector; count].into_boxed_slice(),
            addresses: vec![control_data::no_address(); count].into_boxed_slice(),
            controls: vec![ControlBuffer::EMPTY; count].into_boxed_slice(),
        }
    }

    fn count(&self) -> usize {
        self.headers.len()
    }

    /// Makes header `index` describe its own buffer, to be received into.
    fn point_own(&mut self, index: usize) {
        let start = index * self.size;
        let vector =
            libc::iovec { iov_base: self.bytes[start..start + self.size].as_mut_ptr().cast(), iov_len: self.size };
        self.describe(index, vector, CONTROL_CAPACITY, ADDRESS_CAPACITY);
    }

    /// Makes header `index` describe `bytes`, with so much content of control data and address. The caller keeps `bytes`
    /// alive and untouched until the system call is over.
    fn point(&mut self, index: usize, bytes: &mut [u8], control: usize, address: libc::socklen_t) {
        let vector = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
        self.describe(index, vector, control, address);
    }

    fn describe(&mut self, index: usize, vector: libc::iovec, control: usize, address: libc::socklen_t) {
        self.vectors[index] = vector;
        let header = &mut self.headers[index];
        header.msg_len = 0;
        header.msg_hdr.msg_name = (&raw mut self.addresses[index]).cast();
        header.msg_hdr.msg_namelen = address.min(ADDRESS_CAPACITY);
        header.msg_hdr.msg_iov = &raw mut self.vectors[index];
        header.msg_hdr.msg_iovlen = 1;
        header.msg_hdr.msg_control =
            if control == 0 { std::ptr::null_mut() } else { (&raw mut self.controls[index]).cast() };
        header.msg_hdr.msg_controllen = control.min(CONTROL_CAPACITY) as _;
        header.msg_hdr.msg_flags = 0;
    }
}

fn empty_header() -> libc::mmsghdr {
    // SAFETY: mmsghdr consists of integers and raw pointers, for which zero is a value.
    unsafe { std::mem::zeroed() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn way(port: u16) -> Way {
        Way { to: SocketAddr::from(([192, 0, 2, 1], port)), source: None, tos: 0 }
    }

    fn runs(batch: &SendBatch) -> Vec<(usize, usize)> {
        batch.runs.iter().map(|run| (run.segment, run.length)).collect()
    }

    #[test]
    fn runs_are_of_one_way_and_size_with_a_shorter_end() {
        let mut batch = SendBatch::new();
        for (length, port) in [(100, 1), (100, 1), (60, 1), (60, 1), (60, 2), (100, 2), (0, 2), (0, 2), (5, 2)] {
            assert!(batch.commit(length, way(port)));
        }
        assert_eq!(runs(&batch), [(100, 260), (60, 60), (60, 60), (100, 100), (0, 0), (0, 0), (5, 5)]);
        assert!(batch.commit(5, Way { tos: 2, ..way(2) }), "another mark is another run");
        assert_eq!(batch.runs.len(), 8);

        batch.clear();
        (0..46).for_each(|_| assert!(batch.commit(1_452, way(1))));
        assert_eq!(runs(&batch), [(1_452, 45 * 1_452), (1_452, 1_452)]);
        batch.clear();
        (0..65).for_each(|_| assert!(batch.commit(96, way(1))));
        assert_eq!(runs(&batch), [(96, 64 * 96), (96, 96)]);

        batch.clear();
        assert!(batch.slot(SEND_BYTES + 1).is_none() && !batch.commit(SEND_BYTES + 1, way(1)));
        (0..SEND_RUNS).for_each(|length| assert!(batch.commit(length, way(1))));
        assert!(batch.slot(1).is_none() && !batch.commit(1, way(1)));
    }

    #[test]
    fn refusals_are_remembered_in_bounded_memory() {
        let mut refusals = Refusals::new(false);
        for port in 0..1_000 {
            refusals.remember(way(port).to);
            assert!(refusals.contain(&way(port).to));
        }
        assert_eq!(refusals.destinations.len(), MOST_REFUSALS);
        assert!(refusals.contain(&way(1_000 - MOST_REFUSALS as u16).to) && !refusals.contain(&way(0).to));
        assert!(Refusals::new(true).contain(&way(0).to));
    }

    #[test]
    fn kernels_that_damage_runs_are_known_by_their_release() {
        for release in ["7.0.0-rc1", "7.0.12-arch1-1", "7.1.0-rc4", "7.1.4", "7.1"] {
            assert!(damages_runs(release), "{release}");
        }
        for release in ["6.18.44-fc-v445", "7.1.5", "7.2.0", "10.0.1", "5.10.0-7-amd64", ""] {
            assert!(!damages_runs(release), "{release}");
        }
    }
}
