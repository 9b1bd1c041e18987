//! Every link of the mesh, as its nodes say.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::identity::NodeId;
use crate::time::Instant;
use crate::wire::row::{CELL_LEN, Cell, CellState};

/// A round trip this much above or below its baseline is outside of it, or by a twentieth where that is more: the same step
/// that makes a link degraded.
const OUTSIDE: Duration = Duration::from_micros(500);
/// Two ends that differ by less than this agree, whatever the ratio: a host's own scheduling moves a median that far.
const AGREEMENT: Duration = Duration::from_micros(100);

/// The rows that were pulled. A clone shares them, so that one can be read elsewhere while newer rows come in.
#[derive(Clone, Debug, Default)]
pub struct Matrix {
    rows: BTreeMap<NodeId, Arc<Row>>,
}

/// What one node said of its links.
#[derive(Clone, Debug)]
pub struct Row {
    /// When.
    pub taken: Instant,
    /// As they crossed the wire, 30 bytes each, ascending by node: a mesh of a thousand has a million of them.
    links: Vec<(NodeId, [u8; CELL_LEN])>,
}

/// The links from the nodes of one site to those of another, together.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct SitePair {
    /// Links that are known, each as one of its ends sees it.
    pub links: u32,
    /// Of those, the ones that are neither up nor new.
    pub troubled: u32,
    /// Of those, the ones whose round trip is outside its baseline.
    pub outside: u32,
    /// Of those, the ones whose two ends disagree.
    pub disagreeing: u32,
    /// The median of their median round trips.
    pub rtt: Option<Duration>,
    /// The largest of them.
    pub rtt_max: Option<Duration>,
    /// The median of their baselines.
    pub baseline: Option<Duration>,
    /// The largest loss.
    pub loss_max: Option<f64>,
}

impl Row {
    /// Makes a row of the links of one node.
    pub fn new(links: &BTreeMap<NodeId, Cell>, taken: Instant) -> Self {
        Row { taken, links: links.iter().map(|(node, cell)| (*node, cell.encode())).collect() }
    }

    /// Returns what it says of the link to `node`.
    pub fn link(&self, node: NodeId) -> Option<Cell> {
        let at = self.links.binary_search_by_key(&node, |(peer, _)| *peer).ok()?;
        Cell::decode(&self.links[at].1)
    }

    /// Returns its links by the node at the other end.
    pub fn links(&self) -> impl Iterator<Item = (NodeId, Cell)> {
        self.links.iter().filter_map(|(node, cell)| Some((*node, Cell::decode(cell)?)))
    }
}

impl Matrix {
    /// Takes a node's row in the place of its last one.
    pub fn take(&mut self, from: NodeId, row: Row) {
        self.rows.insert(from, Arc::new(row));
    }

    /// Forgets the rows of nodes that are not wanted any more.
    pub fn retain(&mut self, mut wanted: impl FnMut(NodeId) -> bool) {
        self.rows.retain(|node, _| wanted(*node));
    }

    /// Returns a node's row.
    pub fn row(&self, node: NodeId) -> Option<&Row> {
        self.rows.get(&node).map(Arc::as_ref)
    }

    /// Tells whether the two ends of a link disagree about it: in their state, or by more than a fifth of the round trip.
    /// Nothing is said of a link of which only one end is known.
    pub fn disagree(&self, a: NodeId, b: NodeId) -> bool {
        let link = |from, to| self.row(from)?.link(to);
        let (Some(there), Some(back)) = (link(a, b), link(b, a)) else { return false };
        if there.state != back.state {
            return true;
        }
        let (Some(there), Some(back)) = (there.rtt, back.rtt) else { return false };
        there.abs_diff(back) > AGREEMENT.max(there.min(back) / 5)
    }

    /// Gathers the links by the sites of their ends. `site` places a node among `sites`; where it does not, the node's links
    /// are left out. The result has a line for each site, and a pair for each site in a line.
    pub fn site_pairs(&self, sites: usize, site: impl Fn(NodeId) -> Option<usize>) -> Vec<Vec<SitePair>> {
        let mut pairs = vec![vec![SitePair::default(); sites]; sites];
        let mut times = vec![vec![(Vec::new(), Vec::new()); sites]; sites];
        for (from, row) in &self.rows {
            let Some(line) = site(*from).filter(|line| *line < sites) else { continue };
            for (to, cell) in row.links() {
                let Some(column) = site(to).filter(|column| *column < sites) else { continue };
                let pair = &mut pairs[line][column];
                pair.links += 1;
                pair.troubled += u32::from(!matches!(cell.state, CellState::Up | CellState::New));
                pair.outside += u32::from(is_outside(&cell));
                pair.disagreeing += u32::from(self.disagree(*from, to));
                pair.loss_max = pair.loss_max.into_iter().chain(cell.loss).reduce(f64::max);
                let (rtts, baselines) = &mut times[line][column];
                rtts.extend(cell.rtt);
                baselines.extend(cell.baseline);
            }
        }
        for (line, times) in pairs.iter_mut().zip(&mut times) {
            for (pair, (rtts, baselines)) in line.iter_mut().zip(times) {
                rtts.sort_unstable();
                baselines.sort_unstable();
                pair.rtt = rtts.get(rtts.len() / 2).copied();
                pair.rtt_max = rtts.last().copied();
                pair.baseline = baselines.get(baselines.len() / 2).copied();
            }
        }
        pairs
    }
}

/// Tells whether a link's round trip is outside its baseline; false where one of them is not known.
pub fn is_outside(cell: &Cell) -> bool {
    let (Some(rtt), Some(baseline)) = (cell.rtt, cell.baseline) else { return false };
    rtt.abs_diff(baseline) > OUTSIDE.max(baseline / 20)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::row::{CellPath, short_id};

    fn node(number: u8) -> NodeId {
        NodeId::from_bytes([number; 16])
    }

    fn cell(to: u8, micros: u64, state: CellState) -> (NodeId, Cell) {
        let cell = Cell {
            peer: short_id(node(to)),
            rtt: Some(Duration::from_micros(micros)),
            baseline: Some(Duration::from_millis(10)),
            loss: Some(f64::from(to) / 100.0),
            jitter: None,
            state,
            path: CellPath::Direct,
            age: None,
        };
        (node(to), cell)
    }

    fn matrix(rows: &[(u8, &[(NodeId, Cell)])]) -> Matrix {
        let mut matrix = Matrix::default();
        for (from, links) in rows {
            matrix.take(node(*from), Row::new(&links.iter().copied().collect(), Instant::ZERO));
        }
        matrix
    }

    #[test]
    fn outside_is_a_twentieth_or_half_a_millisecond() {
        let outside = |micros, baseline| {
            let (_, link) = cell(2, micros, CellState::Up);
            is_outside(&Cell { baseline, ..link })
        };
        let (ms, short) = (Some(Duration::from_millis(10)), Some(Duration::from_micros(200)));
        assert!(outside(10_600, ms) && outside(9_400, ms) && !outside(10_450, ms));
        assert!(outside(800, short) && !outside(600, short));
        assert!(!outside(10_600, None), "nothing is outside of what is not known");
        assert!(!outside(84_000, Some(Duration::from_millis(81))));
    }

    #[test]
    fn two_ends_agree_or_not() {
        let up = CellState::Up;
        let disagree = |a: &[(NodeId, Cell)], b: &[(NodeId, Cell)]| {
            let matrix = matrix(&[(1, a), (2, b)]);
            assert_eq!(matrix.disagree(node(1), node(2)), matrix.disagree(node(2), node(1)));
            matrix.disagree(node(1), node(2))
        };
        assert!(!disagree(&[cell(2, 10_000, up)], &[cell(1, 11_900, up)]));
        assert!(disagree(&[cell(2, 10_000, up)], &[cell(1, 12_100, up)]));
        assert!(!disagree(&[cell(2, 40, up)], &[cell(1, 120, up)]), "a host's own scheduling");
        assert!(disagree(&[cell(2, 10_000, up)], &[cell(1, 10_000, CellState::Suspect)]));
        assert!(!disagree(&[cell(2, 10_000, up)], &[]), "one end alone disagrees with nobody");
    }

    #[test]
    fn sites_gather_their_links() {
        let (up, down) = (CellState::Up, CellState::Down);
        let first = [cell(2, 200, up), cell(3, 10_000, up), cell(4, 12_000, up)];
        let second = [cell(1, 200, up), cell(3, 10_400, up), cell(4, 0, down)];
        let matrix = matrix(&[(1, &first), (2, &second)]);
        // 1 and 2 stand here, 3 there, 4 nowhere.
        let site = |at: NodeId| [None, Some(0), Some(0), Some(1)].get(usize::from(at.as_bytes()[0])).copied().flatten();
        let pairs = matrix.site_pairs(2, site);
        let (here, across) = (pairs[0][0], pairs[0][1]);
        assert_eq!((here.links, across.links, pairs[1][0].links), (2, 2, 0));
        assert_eq!((across.outside, across.troubled, here.outside), (0, 0, 2));
        let near =
            |time: Option<Duration>, micros: f64| (time.unwrap().as_secs_f64() * 1e6 / micros - 1.0).abs() < 0.001;
        assert!(near(across.rtt, 10_400.0) && near(across.rtt_max, 10_400.0) && near(here.rtt, 200.0));
        assert!((across.loss_max.unwrap() - 0.03).abs() < 0.001);
        // With 4 there too, its broken link is counted.
        let pairs = matrix.site_pairs(2, |at| site(at).or(Some(1)));
        assert_eq!((pairs[0][1].links, pairs[0][1].troubled, pairs[0][1].outside), (4, 1, 2));
    }

    #[test]
    fn rows_of_those_who_went_are_forgotten() {
        let mut matrix = matrix(&[(1, &[cell(2, 1, CellState::Up)]), (2, &[])]);
        matrix.retain(|at| at == node(2));
        assert!(matrix.row(node(1)).is_none() && matrix.row(node(2)).is_some());
    }
}
