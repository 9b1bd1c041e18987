//! Draws the board.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Text};
use ratatui::widgets::{Cell, Paragraph, Row, Table, TableState, Wrap};

use super::board::Board;
use crate::api::{PeerState, PeerStatus};
use crate::cli::top::Sort;
use crate::cli::{past, quantity, sparkline, status};

/// Columns of the list with their widths, those first that a narrow terminal keeps.
const COLUMNS: [(&str, u16); 10] = [
    ("STATE", 9),
    ("RTT p50", 9),
    ("VS 7d", 10),
    ("LOST 5m", 8),
    ("JITTER", 9),
    ("p99", 9),
    ("FOR", 7),
    ("LOSS", 10),
    ("PATH", 16),
    ("LAST MINUTE", 30),
];
/// The columns of the longest name that is shown whole.
const NAME_MOST: usize = 24;
/// Round trips drawn in a line of the list.
const TREND: usize = 28;

const KEYS: &str = "s state  r rtt  d delta  l loss  j jitter  c cost  enter link  ? help  q quit";

/// Draws what is to be seen.
pub fn draw(frame: &mut Frame<'_>, board: &Board) {
    let [head, body, foot] =
        Layout::vertical([Constraint::Length(2), Constraint::Min(1), Constraint::Length(1)]).areas(frame.area());
    frame.render_widget(heading(board), head);
    if board.help {
        frame.render_widget(Paragraph::new(HELP), body);
    } else if board.is_link {
        frame.render_widget(Paragraph::new(page(board, body.width)).wrap(Wrap { trim: false }), body);
    } else {
        links(frame, board, body);
    }
    let keys = if board.is_link { "esc back  ? help  q quit" } else { KEYS };
    frame.render_widget(Paragraph::new(keys).style(Style::new().add_modifier(Modifier::DIM)), foot);
}

const HELP: &str = "
s   by state, the worst first: down, expired, unknown, suspect, degraded
r   by round trip, the longest first
d   by how much longer the round trip is than the median of the last week
l   by loss in the last five minutes
j   by jitter
c   by what a query costs: network, hosts, and 200 ms for each packet lost

up, down, page up, page down, home, end   choose a link
enter   everything about it: the last minutes and the last day, events, budget
esc     back
q       quit

Any key closes this.";

fn heading(board: &Board) -> Paragraph<'static> {
    let counts = anstream::adapter::strip_str(&status::render_counts(&board.status.counts)).to_string();
    let first = Line::from(format!("{}  mesh {}  {counts}", board.status.node.name, board.status.mesh.name));
    let second = match &board.lost {
        Some(why) => {
            let text = format!("as of {}: {}", board.status.now, why.lines().next().unwrap_or_default());
            Line::styled(text, Style::new().fg(Color::Red).add_modifier(Modifier::BOLD))
        }
        None => Line::styled(
            format!("{}  the worst by {} first", board.status.now, sort_name(board.sort)),
            Style::new().add_modifier(Modifier::DIM),
        ),
    };
    Paragraph::new(Text::from(vec![first, second]))
}

fn sort_name(sort: Sort) -> &'static str {
    match sort {
        Sort::State => "state",
        Sort::Rtt => "round trip",
        Sort::Delta => "change",
        Sort::Loss => "loss",
        Sort::Jitter => "jitter",
        Sort::Cost => "cost of a query",
    }
}

fn colour(state: PeerState) -> Style {
    match state {
        PeerState::Up => Style::new().fg(Color::Green),
        PeerState::New => Style::new(),
        PeerState::Degraded | PeerState::Suspect | PeerState::Unknown => Style::new().fg(Color::Yellow),
        PeerState::Down | PeerState::Expired => Style::new().fg(Color::Red).add_modifier(Modifier::BOLD),
    }
}

fn links(frame: &mut Frame<'_>, board: &Board, area: Rect) {
    let peers = board.links();
    let longest = peers.iter().map(|peer| peer.name.len()).max().unwrap_or(4).clamp(4, NAME_MOST);
    let mut widths = vec![Constraint::Length(longest as u16)];
    let (mut used, mut shown) = (longest as u16, 0);
    for (_, width) in COLUMNS {
        used = used.saturating_add(width + 1);
        if used > area.width {
            break;
        }
        widths.push(Constraint::Length(width));
        shown += 1;
    }
    let heads = std::iter::once("PEER").chain(COLUMNS.iter().take(shown).map(|(name, _)| *name));
    let head = Row::new(heads.map(|name| Cell::from(Line::from(name))));
    let rows = peers.iter().map(|peer| {
        let cells = cells(board, peer);
        Row::new(std::iter::once(Cell::from(peer.name.clone())).chain(cells.into_iter().take(shown)))
    });
    let table = Table::new(rows, widths)
        .header(head.style(Style::new().add_modifier(Modifier::DIM)))
        .column_spacing(1)
        .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED));
    let mut state = TableState::new().with_selected(board.place());
    frame.render_stateful_widget(table, area, &mut state);
}

/// The cells of a link, in the order of [`COLUMNS`].
fn cells(board: &Board, peer: &PeerStatus) -> Vec<Cell<'static>> {
    let time = |seconds: Option<f64>| Cell::from(seconds.map_or("-".to_owned(), quantity::seconds));
    let link = peer.link.as_ref();
    let change = status::change(peer).map_or("-".to_owned(), status::render_change);
    let trend: Vec<Option<f64>> = board.recent(&peer.node_id).into_iter().rev().take(TREND).rev().collect();
    vec![
        Cell::from(peer.state.name()).style(colour(peer.state)),
        time(link.map(|link| link.rtt_p50_seconds)),
        Cell::from(change),
        Cell::from(status::render_lost(peer.loss.as_ref())),
        time(link.map(|link| link.jitter_seconds)),
        time(link.map(|link| link.rtt_p99_seconds)),
        Cell::from(quantity::since(board.status.now, peer.since)),
        Cell::from(status::render_loss(peer.loss.as_ref()).unwrap_or("-".to_owned())),
        Cell::from(peer.path.as_ref().map_or("-".to_owned(), status::render_path)),
        Cell::from(sparkline::sparkline(&trend, TREND).map_or(String::new(), |drawn| drawn.text)),
    ]
}

/// Everything about one link, as `meshctl status NODE` has it, with the round trips since this runs.
fn page(board: &Board, width: u16) -> Text<'static> {
    let Some(peer) = board.link() else { return Text::from("this peer has gone") };
    let width = usize::from(width);
    let mut text = status::render_peer(&board.status, peer, width);
    text.push_str(&past::drawn("here since", &board.recent(&peer.node_id), width));
    match &board.past {
        Some(past) => text.push_str(&past::render(past, width)),
        None => text.push_str("asking for its past\n"),
    }
    Text::from(anstream::adapter::strip_str(&text).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::fake::{empty_status, peer, troubled_status};
    use crate::cli::past::Past;
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

    fn drawn(board: &Board, width: u16, height: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(frame, board)).unwrap();
        terminal.backend().to_string()
    }

    #[test]
    fn links_on_a_small_terminal() {
        insta::assert_snapshot!(drawn(&Board::new(troubled_status(), Sort::State), 80, 24), @r#"
            "web1  mesh example  7 peers: 1 down, 1 expired, 1 suspect, 1 new, 3 up          "
            "2026-11-22T14:02:00Z  the worst by state first                                  "
            "PEER       STATE     RTT p50   VS 7d      LOST 5m  JITTER    p99       FOR      "
            "db-par-22  down      -         -          60/60    -         -         4m00s    "
            "old1       expired   -         -          -        -         -         1d00h    "
            "sto-lim-03 suspect   10.28 ms  -          3/300    94 us     11.02 ms  3s       "
            "web9       new       -         -          -        -         -         1m00s    "
            "db-par-17  up        10.28 ms  -          0/300    94 us     11.02 ms  91d00h   "
            "db-par-18  up        214 us    -          0/300    94 us     388 us    91d00h   "
            "web2       up        10.28 ms  -          0/300    94 us     11.02 ms  91d00h   "
            "                                                                                "
            "                                                                                "
            "                                                                                "
            "                                                                                "
            "                                                                                "
            "                                                                                "
            "                                                                                "
            "                                                                                "
            "                                                                                "
            "                                                                                "
            "                                                                                "
            "                                                                                "
            "                                                                                "
            "s state  r rtt  d delta  l loss  j jitter  c cost  enter link  ? help  q quit   "
        "#);
    }

    #[test]
    fn links_on_a_wide_terminal() {
        insta::assert_snapshot!(drawn(&Board::new(troubled_status(), Sort::Loss), 160, 12), @r#"
            "web1  mesh example  7 peers: 1 down, 1 expired, 1 suspect, 1 new, 3 up                                                                                          "
            "2026-11-22T14:02:00Z  the worst by loss first                                                                                                                   "
            "PEER       STATE     RTT p50   VS 7d      LOST 5m  JITTER    p99       FOR     LOSS       PATH             LAST MINUTE                                          "
            "db-par-22  down      -         -          60/60    -         -         4m00s   >93%       -                                                                     "
            "sto-lim-03 suspect   10.28 ms  -          3/300    94 us     11.02 ms  3s      0.34-2.9%  via db-par-18    ▁                                                    "
            "db-par-17  up        10.28 ms  -          0/300    94 us     11.02 ms  91d00h  <1.3%      direct           ▁                                                    "
            "db-par-18  up        214 us    -          0/300    94 us     388 us    91d00h  <1.3%      direct           ▁                                                    "
            "web2       up        10.28 ms  -          0/300    94 us     11.02 ms  91d00h  <1.3%      direct           ▁                                                    "
            "old1       expired   -         -          -        -         -         1d00h   -          -                                                                     "
            "web9       new       -         -          -        -         -         1m00s   -          -                                                                     "
            "                                                                                                                                                                "
            "s state  r rtt  d delta  l loss  j jitter  c cost  enter link  ? help  q quit                                                                                   "
        "#);
    }

    #[test]
    fn one_link_and_what_is_not_known_of_it() {
        let mut board = Board::new(troubled_status(), Sort::State);
        board.is_link = true;
        let why = || "no history is kept".to_owned();
        board.past = Some(Past { day: Err(why()), month: Err(why()), events: Err(why()) });
        insta::assert_snapshot!(drawn(&board, 80, 24), @r#"
            "web1  mesh example  7 peers: 1 down, 1 expired, 1 suspect, 1 new, 3 up          "
            "2026-11-22T14:02:00Z  the worst by state first                                  "
            "db-par-22  down for 4m00s, since 2026-11-22T13:58:00Z                           "
            "                                                                                "
            "critical  db-par-22 does not answer (4m00s)                                     "
            "          look at the host, and whether UDP 7655 reaches it                     "
            "                                                                                "
            "node         00000000000000000000000000000005                                   "
            "addresses    10.77.0.5, fd12:3456:789a::a4d:5                                   "
            "path         none                                                               "
            "loss         60 of 60 probes lost, >93%                                         "
            "class        active, a probe every 1.000 s                                      "
            "session      none, 65520 handshakes so far                                      "
            "received     1.15 GiB in 1000000 packets                                        "
            "sent         96.5 KiB in 1024 packets                                           "
            "record       12m00s old                                                         "
            "certificate  until 2027-06-10T14:02:00Z                                         "
            "here since   nothing is known                                                   "
            "last 24 h    not known: no history is kept                                      "
            "budget       not known: no history is kept                                      "
            "events       not known: no history is kept                                      "
            "                                                                                "
            "                                                                                "
            "esc back  ? help  q quit                                                        "
        "#);
    }

    #[test]
    fn help_and_a_daemon_that_went_away() {
        let mut board = Board::new(troubled_status(), Sort::State);
        board.help = true;
        board.lose("no daemon answers at /run/meshd/meshd.sock\nstart it".into());
        insta::assert_snapshot!(drawn(&board, 80, 24), @r#"
            "web1  mesh example  7 peers: 1 down, 1 expired, 1 suspect, 1 new, 3 up          "
            "as of 2026-11-22T14:02:00Z: no daemon answers at /run/meshd/meshd.sock          "
            "                                                                                "
            "s   by state, the worst first: down, expired, unknown, suspect, degraded        "
            "r   by round trip, the longest first                                            "
            "d   by how much longer the round trip is than the median of the last week       "
            "l   by loss in the last five minutes                                            "
            "j   by jitter                                                                   "
            "c   by what a query costs: network, hosts, and 200 ms for each packet lost      "
            "                                                                                "
            "up, down, page up, page down, home, end   choose a link                         "
            "enter   everything about it: the last minutes and the last day, events, budget  "
            "esc     back                                                                    "
            "q       quit                                                                    "
            "                                                                                "
            "Any key closes this.                                                            "
            "                                                                                "
            "                                                                                "
            "                                                                                "
            "                                                                                "
            "                                                                                "
            "                                                                                "
            "                                                                                "
            "s state  r rtt  d delta  l loss  j jitter  c cost  enter link  ? help  q quit   "
        "#);
    }

    #[test]
    fn two_hundred_links_scroll_and_no_size_breaks_it() {
        let mut status = empty_status();
        status.peers = (0..200).map(|at| peer(&format!("web-{at:03}"), (at % 250) as u8)).collect();
        for (at, peer) in status.peers.iter_mut().enumerate() {
            peer.node_id = format!("{at:032x}");
        }
        let mut board = Board::new(status, Sort::State);
        board.press(KeyEvent::new(KeyCode::End, KeyModifiers::NONE));
        let text = drawn(&board, 80, 24);
        assert!(text.contains("web-199") && !text.contains("web-000"), "{text}");
        for (width, height) in [(1, 1), (10, 3), (20, 5), (400, 100)] {
            for (is_link, help) in [(false, false), (true, false), (false, true)] {
                (board.is_link, board.help) = (is_link, help);
                drawn(&board, width, height);
            }
        }
    }
}
