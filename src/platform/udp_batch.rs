//! Batches of datagrams with everything the kernel needs preallocated, so that no packet costs an allocation.

use super::control_data::{self, ControlBuffer};
use super::udp::UdpError;
use nix::errno::Errno;
use socket2::Socket;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;

/// Datagrams per system call: at 64 the call's own cost is below a tenth of sealing the packets, and more would only
/// add standing queue in front of a latency-bound packet.
pub const BATCH: usize = 64;

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

    /// Forgets what the last receive filled, and returns how much that was.
    pub(super) fn clear(&mut self) -> usize {
        std::mem::take(&mut self.filled)
    }

    /// Receives what is there without waiting.
    pub(super) fn receive(&mut self, socket: &Socket) -> Result<usize, UdpError> {
        self.filled = 0;
        let count = self.slots.count();
        for index in 0..self.used {
            let size = self.slots.size;
            self.slots.point(index, index * size, size, CONTROL_CAPACITY, ADDRESS_CAPACITY);
        }
        // A failed call may have written to the first.
        self.used = 1;
        let flags = libc::MSG_DONTWAIT | libc::MSG_WAITFORONE;
        let headers = self.slots.headers.as_mut_ptr();
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

/// Buffers for one `sendmmsg`, filled in place.
///
/// ```text
/// let slot = batch.slot()?;        // free bytes
/// let n = seal(.., slot);          // write the datagram there
/// batch.commit(n, to, None, None); // keep it
/// socket.send(&mut batch, ..);
/// ```
pub struct SendBatch {
    slots: Slots,
    entries: Vec<Entry>,
}

#[derive(Clone, Copy)]
struct Entry {
    start: usize,
    length: usize,
    to: SocketAddr,
    source: Option<IpAddr>,
    segment: usize,
}

impl SendBatch {
    /// Makes buffers for `count` datagrams (at least one) of at most `size` bytes.
    pub fn new(count: usize, size: usize) -> Self {
        let slots = Slots::new(count.max(1), size.max(1));
        SendBatch { entries: Vec::with_capacity(slots.count()), slots }
    }

    /// Returns how many datagrams wait for the next send.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Tells whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Tells whether there is no free buffer: send first.
    pub fn is_full(&self) -> bool {
        self.entries.len() == self.slots.count()
    }

    /// Returns the next free buffer, or `None` when the batch is full. Asking again without a commit returns the same.
    pub fn slot(&mut self) -> Option<&mut [u8]> {
        if self.is_full() {
            return None;
        }
        let start = self.entries.len() * self.slots.size;
        Some(&mut self.slots.bytes[start..start + self.slots.size])
    }

    /// Keeps the first `length` bytes of the buffer [`SendBatch::slot`] gave, to be sent to `to`.
    ///
    /// `source` asks for a source address. `segment` says that the buffer holds several datagrams of that many bytes
    /// (the last may be shorter). Without a free buffer, or with a length beyond it, nothing is kept and `false`
    /// returned.
    pub fn commit(&mut self, length: usize, to: SocketAddr, source: Option<IpAddr>, segment: Option<u16>) -> bool {
        if self.is_full() || length > self.slots.size {
            return false;
        }
        let start = self.entries.len() * self.slots.size;
        let segment = segment.map(usize::from).filter(|&s| s > 0).unwrap_or(length).min(length);
        self.entries.push(Entry { start, length, to, source, segment });
        true
    }

    pub(super) fn flush(
        &mut self,
        socket: &Socket,
        mapped: bool,
        mut refused: impl FnMut(SocketAddr, UdpError),
    ) -> usize {
        let mut sent = 0;
        let mut cursor = Cursor { entry: 0, offset: 0 };
        let mut without_source = false;
        while cursor.entry < self.entries.len() {
            let count = self.prepare(cursor, mapped, without_source);
            without_source = false;
            let headers = self.slots.headers.as_mut_ptr();
            // SAFETY: `prepare` made the first `count` headers point into buffers that `slots` owns; the kernel only
            // reads them.
            let result = unsafe { libc::sendmmsg(socket.as_raw_fd(), headers, count as _, 0) };
            match usize::try_from(result) {
                Ok(taken) => {
                    sent += taken;
                    for _ in 0..taken {
                        self.step(&mut cursor);
                    }
                }
                // An error always belongs to the first datagram of the call.
                Err(_) => {
                    let entry = self.entries[cursor.entry];
                    match Errno::last() {
                        Errno::EINTR => {}
                        errno if entry.source.is_some() && source_is_gone(errno) => {
                            self.entries[cursor.entry].source = None;
                            without_source = true;
                        }
                        // The wait for room was in vain: what is left would wait as long, each.
                        Errno::EAGAIN => {
                            while cursor.entry < self.entries.len() {
                                refused(self.entries[cursor.entry].to, UdpError::WouldBlock);
                                self.step(&mut cursor);
                            }
                        }
                        errno => {
                            refused(entry.to, errno.into());
                            self.step(&mut cursor);
                        }
                    }
                }
            }
        }
        self.entries.clear();
        sent
    }

    /// Points headers at the datagrams from `cursor` on and returns how many.
    fn prepare(&mut self, mut cursor: Cursor, mapped: bool, only_one: bool) -> usize {
        let limit = if only_one { 1 } else { self.slots.count() };
        let mut count = 0;
        while count < limit && cursor.entry < self.entries.len() {
            let entry = self.entries[cursor.entry];
            let length = (entry.length - cursor.offset).min(entry.segment.max(1));
            let address = control_data::address_into(&mut self.slots.addresses[count], entry.to, mapped);
            let control = entry
                .source
                .map_or(0, |source| control_data::write_source(&mut self.slots.controls[count], source, mapped));
            self.slots.point(count, entry.start + cursor.offset, length, control, address);
            count += 1;
            self.step(&mut cursor);
        }
        count
    }

    fn step(&self, cursor: &mut Cursor) {
        let entry = self.entries[cursor.entry];
        cursor.offset += entry.segment.max(1);
        if cursor.offset >= entry.length {
            *cursor = Cursor { entry: cursor.entry + 1, offset: 0 };
        }
    }
}

/// The next datagram to send: an entry and the offset of a segment in it.
#[derive(Clone, Copy)]
struct Cursor {
    entry: usize,
    offset: usize,
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
    let control_length = source.map_or(0, |source| control_data::write_source(&mut control, source, mapped));
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

// SAFETY: the raw pointers inside point into boxes of the same struct and are used only through `&mut self`, or, for
// the control data of a received datagram, through `&self` while nothing writes.
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

    /// Makes header `index` describe `length` bytes from `start`, with so much room or content for control data and
    /// address. Slicing bounds-checks what the kernel will trust.
    fn point(&mut self, index: usize, start: usize, length: usize, control: usize, address: libc::socklen_t) {
        self.vectors[index] =
            libc::iovec { iov_base: self.bytes[start..start + length].as_mut_ptr().cast(), iov_len: length };
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
