//! Which of a row of numbered messages came: what tells a lost request from a lost reply.

/// The highest sequence seen, and which of the 64 up to it came.
///
/// Sequences begin at 1. What lies further back than the window is forgotten; at the fastest schedule it covers some 13
/// seconds, longer than any answer is waited for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Receipts {
    /// The highest sequence that came; 0 before the first.
    pub highest: u32,
    /// Bit `n` is set where the sequence `highest - n` came.
    pub window: u64,
    /// Messages that came after one with a higher sequence; wraps.
    pub reordered: u16,
    /// Messages that came again; wraps.
    pub duplicated: u16,
}

/// What a message is among those that came before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Receipt {
    /// Its sequence is the highest yet.
    InOrder,
    /// A higher sequence came before it (RFC 4737).
    Reordered,
    /// It came before.
    Duplicated,
}

impl Receipts {
    /// Sequences the window covers.
    pub const WINDOW: u32 = u64::BITS;

    /// Takes note of a message.
    pub fn note(&mut self, sequence: u32) -> Receipt {
        if sequence > self.highest || self.window == 0 {
            let ahead = sequence.saturating_sub(self.highest);
            self.window = self.window.checked_shl(ahead).unwrap_or(0) | 1;
            self.highest = sequence;
            return Receipt::InOrder;
        }
        let behind = self.highest - sequence;
        let bit = 1u64.checked_shl(behind).unwrap_or(0);
        if self.window & bit != 0 {
            self.duplicated = self.duplicated.wrapping_add(1);
            return Receipt::Duplicated;
        }
        // Too far back to know whether it came before: the likelier story is that it was late.
        self.window |= bit;
        self.reordered = self.reordered.wrapping_add(1);
        Receipt::Reordered
    }

    /// Returns whether a message came; `None` where that is not known yet, or not any more.
    pub fn tells(&self, sequence: u32) -> Option<bool> {
        let behind = self.highest.checked_sub(sequence)?;
        (behind < Self::WINDOW).then(|| self.window >> behind & 1 == 1)
    }
}

/// The requests of a peer, which begins to count anew with each run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Requests {
    run: u32,
    receipts: Receipts,
}

impl Requests {
    /// Takes note of a request; one of another run than the last begins a new row.
    pub fn note(&mut self, run: u32, sequence: u32) -> Receipt {
        if run != self.run {
            *self = Requests { run, receipts: Receipts::default() };
        }
        self.receipts.note(sequence)
    }

    /// The run of the last request.
    pub fn run(&self) -> u32 {
        self.run
    }

    /// Which requests of the run came.
    pub fn receipts(&self) -> Receipts {
        self.receipts
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[test]
    fn each_message_is_told_for_what_it_is() {
        let mut receipts = Receipts::default();
        let told: Vec<Receipt> = [3, 5, 4, 5, 4, 200, 3, 199].into_iter().map(|seq| receipts.note(seq)).collect();
        use Receipt::{Duplicated, InOrder, Reordered};
        assert_eq!(told, [InOrder, InOrder, Reordered, Duplicated, Duplicated, InOrder, Reordered, Reordered]);
        assert_eq!((receipts.reordered, receipts.duplicated), (3, 2));
        assert_eq!([198, 199, 200, 201].map(|seq| receipts.tells(seq)), [Some(false), Some(true), Some(true), None]);
        assert_eq!(receipts.tells(136), None, "too far back");
    }

    #[test]
    fn a_new_run_begins_a_new_row() {
        let mut requests = Requests::default();
        assert_eq!([(1, 90), (1, 91), (2, 1)].map(|(run, seq)| requests.note(run, seq)), [Receipt::InOrder; 3]);
        assert_eq!((requests.run(), requests.receipts().highest), (2, 1));
    }

    proptest! {
        #[test]
        fn the_window_tells_what_came(sequences in proptest::collection::vec(1u32..200, 1..100)) {
            let (mut receipts, mut came) = (Receipts::default(), BTreeSet::new());
            for sequence in sequences {
                // What comes too late for the window is not told of either.
                receipts.note(sequence);
                came.insert(sequence);
                for asked in receipts.highest.saturating_sub(Receipts::WINDOW - 1).max(1)..=receipts.highest {
                    prop_assert_eq!(receipts.tells(asked), Some(came.contains(&asked)));
                }
            }
        }

        #[test]
        fn hostile_sequences_do_not_panic(sequences in proptest::collection::vec(any::<u32>(), 0..50)) {
            let mut receipts = Receipts::default();
            for sequence in sequences {
                receipts.note(sequence);
                let _ = receipts.tells(sequence.wrapping_add(1));
            }
        }
    }
}
