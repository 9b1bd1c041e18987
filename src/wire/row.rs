//! What a node knows of its links, for the matrix of the whole mesh (docs/protocol.md §6.4).
//!
//! A row travels as one or more control messages ([`crate::wire::control::Row`]) whose cells have a fixed layout, because a
//! mesh of n nodes has n² of them. A newer version's cells may be longer; what follows [`CELL_LEN`] bytes is ignored.
//!
//! ```text
//! 0..6 first bytes of the peer's node id | 6..8 path RTT p50 | 8..10 baseline | 10 loss | 11 jitter |
//! 12 path kind (high four bits), state (low four bits) | 13 age in seconds
//! ```
//!
//! Times are logarithms, so that 50 µs and 300 ms are told with the same relative error: a round trip within 0.014 %, a
//! jitter within 3.5 %.

use std::time::Duration;

use crate::identity::NodeId;

/// Bytes of one cell.
pub const CELL_LEN: usize = 14;
/// Bytes of a node id that name a peer in a cell: two of 4,096 members share them once in 30 million meshes, and then neither
/// is shown.
pub const SHORT_ID_LEN: usize = 6;

/// Steps of a round trip's code in an octave: 65,534 of them reach from a microsecond to a minute.
const RTT_STEPS: f64 = 2_528.0;
/// Steps of a jitter's code in an octave: 253 of them reach from a microsecond to 41 s.
const JITTER_STEPS: f64 = 10.0;
/// The code of a loss of everything; the codes are square roots, because one in a thousand matters more than ten in a hundred
/// and one.
const LOSS_SCALE: f64 = 254.0;
/// Says that a byte is not known.
const UNKNOWN: u8 = 255;

/// The beginning of a node id.
pub type ShortId = [u8; SHORT_ID_LEN];

/// How a link is, as its node says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum CellState {
    /// The node cannot tell, or says something that this version does not know.
    Unknown = 0,
    /// Answers.
    Up = 1,
    /// Answers, and works badly.
    Degraded = 2,
    /// Has missed answers.
    Suspect = 3,
    /// Does not answer.
    Down = 4,
    /// Has not answered yet.
    New = 5,
    /// Its certificate is no longer valid.
    Expired = 6,
}

/// How packets cross a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum CellPath {
    /// They do not, or in a way that this version does not know.
    None = 0,
    /// UDP straight to the peer.
    Direct = 1,
    /// Through another member.
    Relay = 2,
    /// TCP straight to the peer.
    Tcp = 3,
}

/// One link of a row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cell {
    /// The peer.
    pub peer: ShortId,
    /// Median round trip on the path in the last five minutes, 1 µs to 63 s.
    pub rtt: Option<Duration>,
    /// Median round trip of the last seven days, in the same range.
    pub baseline: Option<Duration>,
    /// Loss of the last five minutes, between 0 and 1.
    pub loss: Option<f64>,
    /// Jitter.
    pub jitter: Option<Duration>,
    /// The link's state.
    pub state: CellState,
    /// The path in use.
    pub path: CellPath,
    /// How long ago the link was last measured when the row was made; 254 s stand for more.
    pub age: Option<Duration>,
}

/// The beginning of a node's id.
pub fn short_id(node: NodeId) -> ShortId {
    let mut short = [0; SHORT_ID_LEN];
    short.copy_from_slice(&node.as_bytes()[..SHORT_ID_LEN]);
    short
}

/// The first and the last node id with this beginning.
pub fn range_of(short: ShortId) -> (NodeId, NodeId) {
    let [mut first, mut last] = [[0; 16], [255; 16]];
    first[..SHORT_ID_LEN].copy_from_slice(&short);
    last[..SHORT_ID_LEN].copy_from_slice(&short);
    (NodeId::from_bytes(first), NodeId::from_bytes(last))
}

impl Cell {
    /// Encodes the cell; what is out of range becomes the end of the range.
    pub fn encode(&self) -> [u8; CELL_LEN] {
        let mut out = [0; CELL_LEN];
        out[..6].copy_from_slice(&self.peer);
        out[6..8].copy_from_slice(&rtt_code(self.rtt).to_be_bytes());
        out[8..10].copy_from_slice(&rtt_code(self.baseline).to_be_bytes());
        out[10] = self.loss.map_or(UNKNOWN, loss_code);
        out[11] = self.jitter.map_or(UNKNOWN, jitter_code);
        out[12] = (self.path as u8) << 4 | self.state as u8;
        out[13] = self.age.map_or(UNKNOWN, |age| u8::try_from(age.as_secs()).unwrap_or(UNKNOWN).min(UNKNOWN - 1));
        out
    }

    /// Decodes a cell; `None` where there are fewer than [`CELL_LEN`] bytes.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; CELL_LEN] = bytes.first_chunk()?;
        let mut peer = [0; SHORT_ID_LEN];
        peer.copy_from_slice(&bytes[..6]);
        let known = |byte: u8| (byte != UNKNOWN).then_some(byte);
        Some(Cell {
            peer,
            rtt: rtt_of(u16::from_be_bytes([bytes[6], bytes[7]])),
            baseline: rtt_of(u16::from_be_bytes([bytes[8], bytes[9]])),
            loss: known(bytes[10]).map(|code| (f64::from(code) / LOSS_SCALE).powi(2)),
            jitter: known(bytes[11]).map(jitter_of),
            state: state_of(bytes[12] & 0x0f),
            path: path_of(bytes[12] >> 4),
            age: known(bytes[13]).map(|age| Duration::from_secs(age.into())),
        })
    }
}

/// 0 for what is not known, else one more than the steps above a microsecond.
fn rtt_code(rtt: Option<Duration>) -> u16 {
    rtt.map_or(0, |rtt| (octaves(rtt) * RTT_STEPS).round().clamp(0.0, 65_534.0) as u16 + 1)
}

fn rtt_of(code: u16) -> Option<Duration> {
    code.checked_sub(1).map(|steps| after_octaves(f64::from(steps) / RTT_STEPS))
}

/// 0 for what is below a microsecond, else one more than the steps above it.
fn jitter_code(jitter: Duration) -> u8 {
    if jitter < Duration::from_micros(1) {
        return 0;
    }
    (octaves(jitter) * JITTER_STEPS).round().clamp(0.0, 253.0) as u8 + 1
}

fn jitter_of(code: u8) -> Duration {
    code.checked_sub(1).map_or(Duration::ZERO, |steps| after_octaves(f64::from(steps) / JITTER_STEPS))
}

/// Any loss at all has a code above 0.
fn loss_code(loss: f64) -> u8 {
    let code = (loss.clamp(0.0, 1.0).sqrt() * LOSS_SCALE).round() as u8;
    if loss > 0.0 { code.max(1) } else { 0 }
}

/// How often a microsecond must be doubled; below a microsecond 0.
fn octaves(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).max(1.0).log2()
}

fn after_octaves(octaves: f64) -> Duration {
    Duration::from_secs_f64(octaves.exp2() / 1e6)
}

fn state_of(number: u8) -> CellState {
    match number {
        1 => CellState::Up,
        2 => CellState::Degraded,
        3 => CellState::Suspect,
        4 => CellState::Down,
        5 => CellState::New,
        6 => CellState::Expired,
        _ => CellState::Unknown,
    }
}

fn path_of(number: u8) -> CellPath {
    match number {
        1 => CellPath::Direct,
        2 => CellPath::Relay,
        3 => CellPath::Tcp,
        _ => CellPath::None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn cell() -> Cell {
        Cell {
            peer: [1, 2, 3, 4, 5, 6],
            rtt: Some(Duration::from_micros(12_610)),
            baseline: Some(Duration::from_micros(10_300)),
            loss: Some(0.01),
            jitter: Some(Duration::from_micros(210)),
            state: CellState::Degraded,
            path: CellPath::Direct,
            age: Some(Duration::from_secs(3)),
        }
    }

    fn crossed(cell: Cell) -> Cell {
        Cell::decode(&cell.encode()).unwrap()
    }

    #[test]
    fn what_is_not_known_stays_unknown() {
        let nothing = Cell { rtt: None, baseline: None, loss: None, jitter: None, age: None, ..cell() };
        assert_eq!(crossed(nothing), nothing);
        let newer = Cell::decode(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255, 255, 0xff, 255, 7, 7]).unwrap();
        assert_eq!((newer.state, newer.path), (CellState::Unknown, CellPath::None));
    }

    #[test]
    fn every_state_and_path_survives() {
        use CellState::{Degraded, Down, Expired, New, Suspect, Unknown, Up};
        for state in [Unknown, Up, Degraded, Suspect, Down, New, Expired] {
            for path in [CellPath::None, CellPath::Direct, CellPath::Relay, CellPath::Tcp] {
                let there = crossed(Cell { state, path, ..cell() });
                assert_eq!((there.state, there.path), (state, path));
            }
        }
    }

    #[test]
    fn the_ends_of_the_ranges_hold() {
        let extreme = crossed(Cell {
            rtt: Some(Duration::ZERO),
            baseline: Some(Duration::from_secs(3_600)),
            jitter: Some(Duration::ZERO),
            loss: Some(1.0),
            age: Some(Duration::from_secs(9_999)),
            ..cell()
        });
        assert_eq!((extreme.rtt, extreme.jitter), (Some(Duration::from_micros(1)), Some(Duration::ZERO)));
        assert!(extreme.baseline.unwrap() > Duration::from_secs(60));
        assert_eq!((extreme.loss, extreme.age), (Some(1.0), Some(Duration::from_secs(254))));
        assert!(crossed(Cell { loss: Some(1e-9), ..cell() }).loss.unwrap() > 0.0, "a loss is never told as none");
    }

    #[test]
    fn a_short_id_finds_its_node() {
        let node = NodeId::from_bytes(*b"0123456789abcdef");
        let (first, last) = range_of(short_id(node));
        assert!(first <= node && node <= last);
        assert!(NodeId::from_bytes(*b"0123466789abcdef") > last);
    }

    proptest! {
        #[test]
        fn times_keep_their_digits(micros in 1u64..60_000_000, jitter in 1u64..40_000_000) {
            let (rtt, jitter) = (Duration::from_micros(micros), Duration::from_micros(jitter));
            let there = crossed(Cell { rtt: Some(rtt), jitter: Some(jitter), ..cell() });
            let error = |is: Duration, was: Duration| (is.as_secs_f64() / was.as_secs_f64() - 1.0).abs();
            prop_assert!(error(there.rtt.unwrap(), rtt) < 0.000_14);
            prop_assert!(error(there.jitter.unwrap(), jitter) < 0.036);
        }

        #[test]
        fn any_bytes_are_handled(bytes in proptest::collection::vec(any::<u8>(), 0..20)) {
            if let Some(cell) = Cell::decode(&bytes) {
                prop_assert_eq!(crossed(cell), cell);
            } else {
                prop_assert!(bytes.len() < CELL_LEN);
            }
        }
    }
}
