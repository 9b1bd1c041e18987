//! Which datagrams from outside any tunnel were served already, so that copies of them are not.

use std::collections::{BTreeSet, VecDeque};

/// Bytes of the MAC at a datagram's end. It covers all that stands before it, so a copy has the same one, and whoever seals
/// anew has another.
const MAC: usize = 16;

/// The newest introductions and joins that were served.
///
/// Somebody on the way can keep them and send them again from anywhere. They say nothing new then, but an answer would tell
/// that a node of a mesh lives here, and an introduction would leave its source behind as an endpoint to try. Only what was
/// served is remembered, so strangers cannot push anything out; what was pushed out by honest members, or by a restart, is
/// served once more, which does no more than the above.
#[derive(Debug, Default)]
pub struct Served {
    order: VecDeque<[u8; MAC]>,
    known: BTreeSet<[u8; MAC]>,
}

impl Served {
    /// How many are remembered: the first contacts of a thousand nodes that restart together, in some 50 KiB.
    const KEPT: usize = 1024;

    /// Whether this datagram was served before.
    pub fn contains(&self, datagram: &[u8]) -> bool {
        datagram.last_chunk().is_some_and(|mac| self.known.contains(mac))
    }

    /// Remembers a datagram that was served.
    pub fn note(&mut self, datagram: &[u8]) {
        let Some(mac) = datagram.last_chunk::<MAC>().filter(|mac| !self.known.contains(*mac)) else { return };
        if self.order.len() == Self::KEPT
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
        self.order.push_back(*mac);
        self.known.insert(*mac);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn datagram(number: usize) -> Vec<u8> {
        [&[0x10; 100][..], &(number as u128).to_be_bytes()].concat()
    }

    #[test]
    fn copies_are_known_until_newer_ones_push_them_out() {
        let mut served = Served::default();
        for number in 0..=Served::KEPT {
            assert!(!served.contains(&datagram(number)));
            served.note(&datagram(number));
            served.note(&datagram(number));
            assert!(served.contains(&datagram(number)));
        }
        assert!(!served.contains(&datagram(0)), "the oldest made room");
        assert!((1..=Served::KEPT).all(|number| served.contains(&datagram(number))));
        assert_eq!((served.order.len(), served.known.len()), (Served::KEPT, Served::KEPT));
        assert!(!served.contains(&[]) && !served.contains(&[0; MAC - 1]));
    }
}
