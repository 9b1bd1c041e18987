//! Making runs of consecutive packets of one flow, which the kernel then handles as one.

use super::super::inner::InnerPacket;
use super::VirtioHeader;
use std::ops::Range;

/// Which runs the device takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offloads {
    /// Runs of TCP segments.
    pub tcp: bool,
    /// Runs of UDP datagrams (Linux 6.2 and later).
    pub udp: bool,
}

/// Whom a packet is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// This host: its own address.
    Host,
    /// Others: this host only forwards it.
    Forwarded,
}

/// Collects the opened packets of one batch and gives them back as runs.
///
/// Packets lie in one buffer of the caller's, which must not change between the first [`Coalescer::push`] and
/// [`Coalescer::finish`].
#[derive(Debug)]
pub struct Coalescer {
    offloads: Offloads,
    pieces: Vec<Range<usize>>,
}

/// What is to be written in one call: the header, then all pieces.
#[derive(Debug)]
pub struct Run<'a> {
    /// What the kernel is asked to do.
    pub header: VirtioHeader,
    /// The caller's buffer.
    pub buffer: &'a [u8],
    /// Where the pieces lie in it: the first packet whole, then the payloads of the others.
    pub pieces: &'a [Range<usize>],
}

impl Run<'_> {
    /// The pieces themselves, one per packet.
    pub fn pieces(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        self.pieces.iter().map(|piece| &self.buffer[piece.clone()])
    }
}

impl Coalescer {
    /// Makes one that has room for `packets` packets at a time; it grows where there are more.
    pub fn new(packets: usize, offloads: Offloads) -> Self {
        Coalescer { offloads, pieces: Vec::with_capacity(packets) }
    }

    /// Changes what the device takes, for the next batch: after it refused a run, for one.
    pub fn set_offloads(&mut self, offloads: Offloads) {
        self.offloads = offloads;
    }

    /// Takes the packet at `start` of `buffer`, whose headers are `inner`.
    pub fn push(&mut self, buffer: &[u8], start: usize, inner: &InnerPacket, delivery: Delivery) {
        let _ = (buffer, delivery);
        self.pieces.push(start..start + inner.length);
    }

    /// Gives back all packets as runs, each flow in its order, and forgets them.
    ///
    /// A run the device refuses can be cut again into its packets: gather it and give it to
    /// [`Segments`](super::Segments) with its header.
    pub fn finish(&mut self, buffer: &mut [u8], mut write: impl FnMut(Run<'_>)) {
        for piece in self.pieces.drain(..) {
            write(Run { header: VirtioHeader::PLAIN, buffer, pieces: &[piece] });
        }
    }
}
