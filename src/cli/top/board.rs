//! What `meshctl top` shows, and what its keys do.

use std::collections::{BTreeMap, VecDeque};

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use crate::api::{LinkMeasure, PeerStatus, Status};
use crate::cli::past::Past;
use crate::cli::status::change;
use crate::cli::top::Sort;
use crate::telemetry::LOSS_COST;

/// Round trips kept of each link while this runs, one a second: as many as a line of a wide terminal shows.
const RECENT: usize = 240;

/// What a key asks of the loop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wish {
    /// Nothing that the board has not done.
    Stay,
    /// The end.
    Quit,
    /// The past of the link to that peer.
    Past(String),
}

/// The state of the screen.
#[derive(Debug)]
pub struct Board {
    /// The newest state.
    pub status: Status,
    /// What orders the links.
    pub sort: Sort,
    /// One link is shown instead of all.
    pub is_link: bool,
    /// What the keys do is shown instead.
    pub help: bool,
    /// Why the state is not newer.
    pub lost: Option<String>,
    /// The past of the link that is shown.
    pub past: Option<Past>,
    /// The selected peer's identifier.
    selected: Option<String>,
    /// Round trips since this runs, by peer, oldest first.
    recent: BTreeMap<String, VecDeque<Option<f64>>>,
}

impl Board {
    /// Starts with a first state.
    pub fn new(status: Status, sort: Sort) -> Self {
        let mut board = Board {
            status: status.clone(),
            sort,
            is_link: false,
            help: false,
            lost: None,
            past: None,
            selected: None,
            recent: BTreeMap::new(),
        };
        board.refresh(status);
        board
    }

    /// Takes a newer state.
    pub fn refresh(&mut self, status: Status) {
        self.lost = None;
        self.recent.retain(|node, _| status.peers.iter().any(|peer| peer.node_id == *node));
        for peer in &status.peers {
            let recent = self.recent.entry(peer.node_id.clone()).or_default();
            if recent.len() == RECENT {
                recent.pop_front();
            }
            recent.push_back(peer.link.as_ref().map(|link| link.rtt_p50_seconds));
        }
        self.status = status;
        if self.place().is_none() {
            self.selected = self.links().first().map(|peer| peer.node_id.clone());
        }
    }

    /// The daemon has not answered: what is shown gets old.
    pub fn lose(&mut self, why: String) {
        self.lost = Some(why);
    }

    /// Shows what the daemon remembers of a peer, where that one is still looked at.
    pub fn show_past(&mut self, peer: &str, past: Past) {
        if self.is_link && self.link().is_some_and(|link| link.name == peer) {
            self.past = Some(past);
        }
    }

    /// Returns the links, the worst first.
    pub fn links(&self) -> Vec<&PeerStatus> {
        let mut links: Vec<&PeerStatus> = self.status.peers.iter().collect();
        let worse =
            |a: Option<f64>, b: Option<f64>| b.unwrap_or(f64::NEG_INFINITY).total_cmp(&a.unwrap_or(f64::NEG_INFINITY));
        links.sort_by(|a, b| {
            let order = match self.sort {
                Sort::State => b.state.severity().cmp(&a.state.severity()),
                sort => worse(measure(a, sort), measure(b, sort)),
            };
            order.then_with(|| a.name.cmp(&b.name))
        });
        links
    }

    /// Returns the place of the selected link in [`Board::links`].
    pub fn place(&self) -> Option<usize> {
        self.links().iter().position(|peer| Some(&peer.node_id) == self.selected.as_ref())
    }

    /// Returns the selected link.
    pub fn link(&self) -> Option<&PeerStatus> {
        self.status.peers.iter().find(|peer| Some(&peer.node_id) == self.selected.as_ref())
    }

    /// Returns the median round trips of the link to a node, each second since this runs.
    pub fn recent(&self, node_id: &str) -> Vec<Option<f64>> {
        self.recent.get(node_id).map(|recent| recent.iter().copied().collect()).unwrap_or_default()
    }

    /// Does what a key says.
    pub fn press(&mut self, key: KeyEvent) -> Wish {
        if key.modifiers.contains(KeyModifiers::CONTROL) {
            return if key.code == KeyCode::Char('c') { Wish::Quit } else { Wish::Stay };
        }
        match key.code {
            KeyCode::Char('q') => return Wish::Quit,
            _ if self.help => self.help = false,
            KeyCode::Char('?') => self.help = true,
            KeyCode::Esc | KeyCode::Backspace | KeyCode::Left if self.is_link => {
                (self.is_link, self.past) = (false, None)
            }
            _ if self.is_link => {}
            KeyCode::Char('s') => self.sort = Sort::State,
            KeyCode::Char('r') => self.sort = Sort::Rtt,
            KeyCode::Char('d') => self.sort = Sort::Delta,
            KeyCode::Char('l') => self.sort = Sort::Loss,
            KeyCode::Char('j') => self.sort = Sort::Jitter,
            KeyCode::Char('c') => self.sort = Sort::Cost,
            KeyCode::Down => self.move_by(1),
            KeyCode::Up => self.move_by(-1),
            KeyCode::PageDown => self.move_by(10),
            KeyCode::PageUp => self.move_by(-10),
            KeyCode::Home => self.move_by(isize::MIN),
            KeyCode::End => self.move_by(isize::MAX),
            KeyCode::Enter | KeyCode::Right => {
                if let Some(name) = self.link().map(|peer| peer.name.clone()) {
                    self.is_link = true;
                    return Wish::Past(name);
                }
            }
            _ => {}
        }
        Wish::Stay
    }

    fn move_by(&mut self, places: isize) {
        let links = self.links();
        let last = links.len().saturating_sub(1);
        let place = self.place().unwrap_or(0).saturating_add_signed(places).min(last);
        self.selected = links.get(place).map(|peer| peer.node_id.clone());
    }
}

/// What orders a link, the larger the worse; `None` where it is not known.
fn measure(peer: &PeerStatus, sort: Sort) -> Option<f64> {
    let link = peer.link.as_ref();
    match sort {
        Sort::State => None,
        Sort::Rtt => link.map(|link| link.rtt_p50_seconds),
        Sort::Delta => change(peer),
        Sort::Loss => peer.loss.as_ref().map(|loss| loss.ratio),
        Sort::Jitter => link.map(|link| link.jitter_seconds),
        Sort::Cost => link.map(|link| query(link, peer.loss.map_or(0.0, |loss| loss.ratio))),
    }
}

/// Seconds that a query waits for the link on average: the network, both hosts' daemons, and what is lost, a share of 0 to 1.
fn query(link: &LinkMeasure, loss: f64) -> f64 {
    link.rtt_p50_seconds + link.own_delay_p50_seconds + link.peer_delay_p50_seconds + LOSS_COST.as_secs_f64() * loss
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::fake::{peer, troubled_status};

    fn press(board: &mut Board, code: KeyCode) -> Wish {
        board.press(KeyEvent::new(code, KeyModifiers::NONE))
    }

    fn names(board: &Board) -> Vec<&str> {
        board.links().iter().map(|peer| peer.name.as_str()).collect()
    }

    #[test]
    fn keys_order_the_links() {
        let mut board = Board::new(troubled_status(), Sort::State);
        assert_eq!(names(&board)[..3], ["db-par-22", "old1", "sto-lim-03"]);
        press(&mut board, KeyCode::Char('l'));
        assert_eq!(names(&board)[..2], ["db-par-22", "sto-lim-03"]);
        press(&mut board, KeyCode::Char('r'));
        assert_eq!(names(&board)[0], "db-par-17");
        assert_eq!(names(&board)[3], "db-par-18", "the nearest, before those that are not measured");
        let status = &mut board.status;
        status.peers[5].link.as_mut().unwrap().rtt_baseline_seconds = Some(0.000_1);
        status.peers[5].link.as_mut().unwrap().jitter_seconds = 0.5;
        for key in ['d', 'j'] {
            press(&mut board, KeyCode::Char(key));
            assert_eq!(names(&board)[0], "db-par-18", "{key}");
        }
        press(&mut board, KeyCode::Char('s'));
        assert_eq!(names(&board)[0], "db-par-22");
    }

    #[test]
    fn a_query_costs_what_the_network_the_hosts_and_losses_take() {
        let mut board = Board::new(troubled_status(), Sort::Rtt);
        assert_eq!(names(&board)[..3], ["db-par-17", "sto-lim-03", "web2"], "all of them 10.28 ms");
        press(&mut board, KeyCode::Char('c'));
        assert_eq!(names(&board)[..3], ["sto-lim-03", "db-par-17", "web2"], "1 % lost is 2 ms more");
        let slow = board.status.peers.iter_mut().find(|peer| peer.name == "web2").unwrap();
        slow.link.as_mut().unwrap().peer_delay_p50_seconds = 0.005;
        assert_eq!(names(&board)[..3], ["web2", "sto-lim-03", "db-par-17"], "a host that takes 5 ms");
        assert_eq!(names(&board)[3..5], ["db-par-18", "db-par-22"], "those that are not measured come last");
    }

    #[test]
    fn the_selection_stays_with_its_link_and_within_the_list() {
        let mut board = Board::new(troubled_status(), Sort::State);
        press(&mut board, KeyCode::Down);
        assert_eq!(board.link().unwrap().name, "old1");
        press(&mut board, KeyCode::Char('r'));
        assert_eq!(board.link().unwrap().name, "old1");
        press(&mut board, KeyCode::End);
        press(&mut board, KeyCode::Down);
        assert_eq!(board.place(), Some(6));
        press(&mut board, KeyCode::PageUp);
        assert_eq!(board.place(), Some(0));
        let mut fewer = troubled_status();
        let gone = board.link().unwrap().name.clone();
        fewer.peers.retain(|peer| peer.name != gone);
        board.refresh(fewer);
        assert_eq!(board.place(), Some(0), "the selected one has gone");
        board.refresh(crate::api::fake::empty_status());
        assert_eq!((board.place(), press(&mut board, KeyCode::Enter)), (None, Wish::Stay));
        press(&mut board, KeyCode::Down);
    }

    #[test]
    fn a_link_s_page_opens_and_closes() {
        let mut board = Board::new(troubled_status(), Sort::State);
        assert_eq!(press(&mut board, KeyCode::Enter), Wish::Past("db-par-22".into()));
        let why = || "no history is kept".to_owned();
        let past = || Past { day: Err(why()), month: Err(why()), events: Err(why()) };
        board.show_past("db-par-22", past());
        press(&mut board, KeyCode::Char('?'));
        press(&mut board, KeyCode::Char('x'));
        assert_eq!((board.help, board.is_link, board.past.is_some()), (false, true, true));
        press(&mut board, KeyCode::Esc);
        assert_eq!((board.is_link, board.past.is_none()), (false, true));
        board.show_past("db-par-22", past());
        assert!(board.past.is_none(), "it came too late");
        assert_eq!(press(&mut board, KeyCode::Esc), Wish::Stay, "nothing is left to go back from");
        assert_eq!(press(&mut board, KeyCode::Char('q')), Wish::Quit);
        assert_eq!(board.press(KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL)), Wish::Quit);
    }

    #[test]
    fn what_is_kept_while_it_runs_is_bounded() {
        let mut board = Board::new(troubled_status(), Sort::State);
        for number in 0..500u32 {
            let mut status = troubled_status();
            status.peers.push(peer(&format!("new-{number}"), 9));
            board.refresh(status);
        }
        assert_eq!(board.recent.len(), 8);
        assert!(board.recent.values().all(|recent| recent.len() <= RECENT));
    }
}
