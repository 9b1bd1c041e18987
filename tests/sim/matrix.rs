//! The matrix: every row pulled from any node, for few bytes, and nobody's word about another.

use std::collections::BTreeMap;
use std::time::Duration;

use meshd::control::output::Event;
use meshd::identity::NodeId;
use meshd::wire::control::{ControlMessage, Row, RowRequest};
use meshd::wire::row::{CELL_LEN, Cell, CellPath, CellState, short_id};

use crate::mesh::Mesh;
use crate::scenarios::{formed, secs};

/// What host `from` says of its link to `to`.
fn cell(mesh: &Mesh, from: usize, to: usize) -> Cell {
    Cell {
        peer: short_id(mesh.node(to)),
        rtt: Some(Duration::from_micros(1_000 + 100 * (from * 31 + to) as u64)),
        baseline: None,
        loss: Some(0.0),
        jitter: None,
        state: CellState::Up,
        path: CellPath::Direct,
        age: Some(Duration::from_secs(1)),
    }
}

/// Pulls the rows as host 0 sees them; every other host answers as its daemon would, except those in `silent`.
fn pull(mesh: &mut Mesh, silent: &[usize]) -> BTreeMap<NodeId, BTreeMap<NodeId, Cell>> {
    let mut seen: Vec<usize> = mesh.hosts.iter().map(|host| host.events.len()).collect();
    let now = mesh.now;
    mesh.hosts[0].engine.as_mut().expect("running").pull_rows(usize::MAX, now);
    mesh.drain(0);
    let mut rows = BTreeMap::new();
    loop {
        mesh.run_until(Duration::from_millis(10), |_| false);
        for (host, seen) in seen.iter_mut().enumerate() {
            let events = &mesh.hosts[host].events;
            let news: Vec<Event> = events[*seen..].iter().map(|(_, event)| event.clone()).collect();
            *seen = events.len();
            for event in news {
                match event {
                    Event::RowAsked { by, number } if !silent.contains(&host) => {
                        let others = (0..mesh.hosts.len()).filter(|other| *other != host);
                        let cells: Vec<Cell> = others.map(|other| cell(mesh, host, other)).collect();
                        mesh.hosts[host].engine.as_mut().expect("running").answer_row(by, number, &cells);
                        mesh.drain(host);
                    }
                    Event::Row { from, links } if host == 0 => drop(rows.insert(from, links)),
                    Event::RowsPulled if host == 0 => return rows,
                    _ => {}
                }
            }
        }
    }
}

fn sent(mesh: &Mesh) -> u64 {
    mesh.net.sent.iter().map(|(_, bytes)| *bytes).sum()
}

/// Host 0 of a mesh that has formed pulls all rows: whole, true, and for few bytes.
pub fn sees_every_link(mesh: &mut Mesh) {
    let count = mesh.hosts.len();
    let (before, began) = (sent(mesh), mesh.now);
    let rows = pull(mesh, &[]);
    let took = mesh.now.saturating_since(began);
    let pulled = sent(mesh) - before;
    // What the mesh sends anyway, in as long a time.
    let before = sent(mesh);
    mesh.run(took);
    let spent = pulled.saturating_sub(sent(mesh) - before);
    let links = (count - 1) * (count - 1);
    println!("{} rows of {} links in {took:?}: {spent} bytes, {} a link", count - 1, count - 1, spent / links as u64);
    assert_eq!(rows.len(), count - 1, "every row is here");
    let hosts: BTreeMap<NodeId, usize> = (0..count).map(|host| (mesh.node(host), host)).collect();
    for host in 1..count {
        let row = &rows[&mesh.node(host)];
        assert_eq!(row.len(), count - 1, "the row of host {host} is whole");
        for (other, said) in row {
            let meant = Cell::decode(&cell(mesh, host, hosts[other]).encode());
            assert_eq!(Some(*said), meant, "what host {host} says of {}", hosts[other]);
        }
    }
    // A question, and an answer of as many messages as it takes, each less than 1,300 bytes with all that is around it.
    let messages = (count - 1).div_ceil(Row::MAX_CELLS);
    assert!(spent < (count - 1) as u64 * (messages as u64 * 1_300 + 120), "{spent} bytes");
}

#[test]
fn rows_come_although_every_twentieth_packet_is_lost_and_the_silent_are_left_out() {
    let mut mesh = formed(42, 40);
    mesh.net.loss = 50;
    let rows = pull(&mut mesh, &[7]);
    assert!(!rows.contains_key(&mesh.node(7)));
    // A question and an answer of one message: all three attempts of a row fail in one of a thousand.
    assert!(rows.len() >= 36, "{} rows", rows.len());
    mesh.net.loss = 0;
    mesh.run(secs(5));
    mesh.kill(9);
    let rows = pull(&mut mesh, &[]);
    assert_eq!(rows.len(), 38, "whoever is away is left out, and holds up nobody else");
}

#[test]
fn a_liar_speaks_for_its_own_links_alone() {
    let mut mesh = formed(43, 8);
    let (liar, victim) = (5, 3);
    let now = mesh.now;
    mesh.hosts[0].engine.as_mut().expect("running").pull_rows(usize::MAX, now);
    mesh.drain(0);
    let number = asked_number(&mut mesh, liar);
    // In its own name, twice, with links of nobody, to itself, and to the victim.
    let said =
        |mesh: &Mesh, peer: NodeId| Cell { peer: short_id(peer), state: CellState::Down, ..cell(mesh, liar, victim) };
    let lie = |mesh: &Mesh, number| {
        let peers = [mesh.node(victim), mesh.node(liar), NodeId::from_bytes([9; 16])];
        let cells = peers.iter().flat_map(|peer| said(mesh, *peer).encode()).collect();
        ControlMessage::Row(Row { number, part: 0, parts: 1, cell_len: CELL_LEN as u8, cells }).encode()
    };
    for lie in [lie(&mesh, number.wrapping_add(1)), lie(&mesh, number), lie(&mesh, number)] {
        mesh.whisper(liar, 0, &lie);
    }
    mesh.run(secs(5));
    let rows: Vec<_> = mesh.hosts[0]
        .events
        .iter()
        .filter_map(
            |(_, event)| if let Event::Row { from, links } = event { Some((*from, links.clone())) } else { None },
        )
        .collect();
    assert_eq!(rows.len(), 1, "nobody else has answered, and the liar counts once");
    assert_eq!(rows[0].0, mesh.node(liar));
    assert_eq!(rows[0].1.keys().copied().collect::<Vec<_>>(), [mesh.node(victim)], "links to members, not to itself");
}

#[test]
fn a_member_that_keeps_asking_is_not_answered_more_often() {
    let mut mesh = formed(44, 3);
    let asked =
        |mesh: &Mesh| mesh.hosts[1].events.iter().filter(|(_, event)| matches!(event, Event::RowAsked { .. })).count();
    for number in 0..200 {
        mesh.whisper(2, 1, &ControlMessage::RowRequest(RowRequest { number }).encode());
    }
    mesh.run(secs(10));
    println!("of 200 questions {} are answered in ten seconds", asked(&mesh));
    assert!(asked(&mesh) <= 6 + 10, "{}", asked(&mesh));
    mesh.whisper(0, 1, &ControlMessage::RowRequest(RowRequest { number: 1 }).encode());
    let before = asked(&mesh);
    mesh.run(secs(1));
    assert_eq!(asked(&mesh), before + 1, "which is not held against the others");
}

/// The number under which host 0 asked `host` for its row.
fn asked_number(mesh: &mut Mesh, host: usize) -> u32 {
    let number = |mesh: &Mesh| {
        mesh.hosts[host].events.iter().find_map(|(_, event)| match event {
            Event::RowAsked { number, .. } => Some(*number),
            _ => None,
        })
    };
    assert!(mesh.run_until(secs(1), |mesh| number(mesh).is_some()), "{}", mesh.describe());
    number(mesh).expect("asked")
}
