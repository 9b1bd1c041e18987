//! Two gateways in front of one network: how long the others send into the void when one of them goes, and where they send then.

use std::collections::BTreeSet;
use std::time::Duration;

use ipnet::IpNet;
use meshd::config::GatewayCheck;
use meshd::control::check::Check;
use meshd::control::gateway::{Cause, RETURN_AFTER};
use meshd::control::output::Event;
use meshd::time::Instant;
use rand_core::RngCore;

use crate::mesh::Mesh;

/// What is asked for: the switch of a gateway in use, from its death.
const BOUND: Duration = Duration::from_millis(1_500);
const SEEDS: std::ops::Range<u64> = 4_000..4_030;
const GATEWAYS: [usize; 2] = [1, 2];
const CLIENTS: [usize; 4] = [0, 3, 4, 5];

fn network() -> IpNet {
    "10.20.0.0/16".parse().expect("a constant")
}

/// A mesh whose clients use the first gateway, at some moment of the probes' schedule.
fn pair(seed: u64) -> Mesh {
    let mut mesh = Mesh::new(seed, 6);
    mesh.share(network(), &[(GATEWAYS[0], 110), (GATEWAYS[1], 100)]);
    (0..6).for_each(|host| mesh.start(host));
    let hosts: Vec<usize> = (0..6).collect();
    assert!(mesh.run_until(Duration::from_secs(60), |mesh| mesh.connected(&hosts)), "{}", mesh.describe());
    assert!(mesh.run_until(Duration::from_secs(5), |mesh| carried_by(mesh, GATEWAYS[0])), "{}", mesh.describe());
    use_gateways(&mut mesh);
    let moment = Duration::from_millis(20_000 + u64::from(mesh.net.rng.next_u32() % 2_000));
    mesh.run(moment);
    mesh
}

/// Data passes between the clients and the gateway that each uses, as the daemon tells both ends.
fn use_gateways(mesh: &mut Mesh) {
    for client in CLIENTS {
        let gateway = mesh.carrier(client, network()).expect("one carries it");
        let (near, far, now) = (mesh.node(client), mesh.node(gateway), mesh.now);
        mesh.command(client, |engine| engine.handle_data(far, now, now));
        mesh.command(gateway, |engine| engine.handle_data(near, now, now));
    }
}

fn carried_by(mesh: &Mesh, gateway: usize) -> bool {
    CLIENTS.iter().all(|client| mesh.carrier(*client, network()) == Some(gateway))
}

/// The causes of a client's switches since an instant.
fn switches(mesh: &Mesh, client: usize, since: Instant) -> Vec<Cause> {
    let events = mesh.hosts[client].events.iter().filter(|(at, _)| *at > since);
    events
        .filter_map(
            |(_, event)| if let Event::GatewayChanged { switch, .. } = event { Some(switch.cause) } else { None },
        )
        .collect()
}

/// How long each client sent to the gateway that is gone.
fn times(mesh: &mut Mesh, to: usize) -> Vec<Duration> {
    let began = mesh.now;
    let mut times = vec![None; CLIENTS.len()];
    mesh.run_until(Duration::from_secs(10), |mesh| {
        for (client, time) in CLIENTS.iter().zip(&mut times) {
            if time.is_none() && mesh.carrier(*client, network()) == Some(to) {
                *time = Some(mesh.now.saturating_since(began));
            }
        }
        times.iter().all(Option::is_some)
    });
    times.into_iter().map(|time| time.unwrap_or(Duration::MAX)).collect()
}

fn report(what: &str, mut times: Vec<Duration>) {
    times.sort();
    let at = |share: usize| times[(times.len() * share / 100).min(times.len() - 1)];
    println!("{what}: {} switches, median {:?}, p99 {:?}, longest {:?}", times.len(), at(50), at(99), at(100));
    assert!(at(99) <= BOUND, "{:?}", at(99));
}

#[test]
fn a_dead_gateway_costs_less_than_its_bound() {
    let mut all = Vec::new();
    for seed in SEEDS {
        let mut mesh = pair(seed);
        mesh.kill(GATEWAYS[0]);
        all.extend(times(&mut mesh, GATEWAYS[1]));
    }
    report("gateway killed", all);
}

#[test]
fn a_gateway_that_is_cut_off_one_way_is_left_as_fast() {
    let mut all = Vec::new();
    for seed in SEEDS.take(8) {
        let mut mesh = pair(seed);
        mesh.net.cuts.extend(CLIENTS.map(|client| (GATEWAYS[0], client)));
        all.extend(times(&mut mesh, GATEWAYS[1]));
    }
    report("nothing comes from the gateway", all);
}

#[test]
fn a_gateway_that_says_so_is_left_at_once_and_on_a_lossy_network() {
    let mut drained = Vec::new();
    for seed in SEEDS {
        let mut mesh = pair(seed);
        mesh.net.loss = 10;
        let [first, second] = GATEWAYS;
        let now = mesh.now;
        mesh.command(first, |engine| engine.set_drained(true, now));
        drained.extend(times(&mut mesh, second));
        // Both are: nothing is gained by another change.
        let (now, since) = (mesh.now, mesh.now);
        mesh.command(second, |engine| engine.set_drained(true, now));
        mesh.run(Duration::from_secs(20));
        for client in CLIENTS {
            assert_eq!(switches(&mesh, client, since), [], "seed {seed}");
        }
    }
    report("gateway drained, 1% loss", drained);
}

#[test]
fn what_was_told_outlives_a_restart_of_either_end_and_a_clock_set_back() {
    for seed in SEEDS.take(4) {
        let mut mesh = pair(seed);
        let [first, second] = GATEWAYS;
        let now = mesh.now;
        mesh.command(first, |engine| engine.set_drained(true, now));
        times(&mut mesh, second);
        mesh.kill(CLIENTS[1]);
        mesh.start(CLIENTS[1]);
        let moved = |mesh: &Mesh, to| CLIENTS.iter().all(|client| mesh.carrier(*client, network()) == Some(to));
        assert!(mesh.run_until(Duration::from_secs(20), |mesh| moved(mesh, second)), "seed {seed}: told again");
        // The gateway comes back an hour in the past, not drained any more: its word counts all the same.
        mesh.kill(first);
        mesh.hosts[first].skew = -3_600;
        mesh.start(first);
        mesh.run(Duration::from_secs(30));
        let now = mesh.now;
        mesh.command(second, |engine| engine.set_drained(true, now));
        let took = times(&mut mesh, first);
        assert!(took.iter().all(|took| *took <= BOUND), "seed {seed}: {took:?}");
    }
}

#[test]
fn what_came_back_gets_its_flows_after_minutes_and_once() {
    for seed in SEEDS.take(3) {
        let mut mesh = pair(seed);
        let since = mesh.now;
        // Down for five seconds, up for twenty, ten times.
        for _ in 0..10 {
            mesh.kill(GATEWAYS[0]);
            mesh.run(Duration::from_secs(5));
            mesh.start(GATEWAYS[0]);
            mesh.run(Duration::from_secs(20));
        }
        for client in CLIENTS {
            assert_eq!(switches(&mesh, client, since), [Cause::Silence], "seed {seed}: no flapping back");
        }
        let back = mesh.now;
        assert!(mesh.run_until(RETURN_AFTER, |mesh| carried_by(mesh, GATEWAYS[0])), "seed {seed}");
        assert!(mesh.now.saturating_since(back) > RETURN_AFTER - Duration::from_secs(21));
        mesh.run(Duration::from_secs(60));
        for client in CLIENTS {
            assert_eq!(switches(&mesh, client, since), [Cause::Silence, Cause::Priority], "seed {seed}");
        }
    }
}

#[test]
fn loss_and_the_node_s_own_uplink_move_nothing() {
    let mut moved = 0;
    let seeds = SEEDS.take(8);
    for seed in seeds.clone() {
        let mut mesh = pair(seed);
        let since = mesh.now;
        for other in 0..6 {
            mesh.net.cuts.extend([(4, other), (other, 4)]);
        }
        mesh.run(Duration::from_secs(20));
        mesh.net.cuts.clear();
        mesh.run(Duration::from_secs(20));
        assert_eq!(switches(&mesh, 4, since), [], "seed {seed}: everybody was silent");
        mesh.net.loss = 10;
        mesh.run(Duration::from_secs(120));
        moved += CLIENTS.iter().map(|client| switches(&mesh, *client, since).len()).sum::<usize>();
    }
    let minutes = seeds.count() * CLIENTS.len() * 2;
    println!("1% loss each way for {minutes} minutes of a client's: {moved} switches");
    assert!(moved <= 1, "{moved}");
}

/// The gateway's own link to what lies behind it is cut, at a moment between two looks of the usual check: none is answered from
/// now on. Returns once the gateway says so.
fn cut_behind(mesh: &mut Mesh, gateway: usize) {
    let mut check = Check::new(1, GatewayCheck::TRIES);
    check.looked(0, true);
    let interval = GatewayCheck::INTERVAL.as_nanos() as u64;
    let moment = (u64::from(mesh.net.rng.next_u32()) * interval) >> 32;
    mesh.run(Duration::from_nanos(moment));
    let failed = |_: &u8| {
        mesh.run(GatewayCheck::INTERVAL);
        check.looked(0, false) == Some(true)
    };
    let looks = (1..=20).find(failed).expect("it fails");
    assert_eq!(looks, GatewayCheck::TRIES);
    say(mesh, gateway, true);
}

/// Has a gateway say that its check fails, or that it does not any more.
fn say(mesh: &mut Mesh, gateway: usize, failing: bool) {
    let now = mesh.now;
    let failing = BTreeSet::from_iter(failing.then(network));
    mesh.command(gateway, |engine| engine.set_failing(failing, now));
}

#[test]
fn a_gateway_whose_own_network_is_gone_is_left_within_the_bound() {
    let mut all = Vec::new();
    for seed in SEEDS {
        let mut mesh = pair(seed);
        mesh.net.loss = 10;
        let [first, second] = GATEWAYS;
        let (cut, since) = (mesh.now, mesh.now);
        cut_behind(&mut mesh, first);
        let said = mesh.now.saturating_since(cut);
        all.extend(times(&mut mesh, second).into_iter().map(|heard| said + heard));
        // The other one's is, too: it is what lies there, and nothing is gained by another change.
        say(&mut mesh, second, true);
        mesh.run(Duration::from_secs(20));
        // It alone comes back, drained or not: one that serves goes before one that does not.
        say(&mut mesh, first, false);
        let took = times(&mut mesh, first);
        assert!(took.iter().all(|took| *took <= BOUND), "seed {seed}: {took:?}");
        for client in CLIENTS {
            assert_eq!(switches(&mesh, client, since), [Cause::Health, Cause::Health], "seed {seed}");
        }
    }
    report("link behind the gateway cut, 1% loss", all);
}

#[test]
fn a_check_that_flaps_moves_the_flows_once_and_back_after_minutes() {
    for seed in SEEDS.take(3) {
        let mut mesh = pair(seed);
        let since = mesh.now;
        for _ in 0..10 {
            say(&mut mesh, GATEWAYS[0], true);
            mesh.run(Duration::from_secs(5));
            say(&mut mesh, GATEWAYS[0], false);
            mesh.run(Duration::from_secs(20));
        }
        for client in CLIENTS {
            assert_eq!(switches(&mesh, client, since), [Cause::Health], "seed {seed}: no flapping back");
        }
        assert!(mesh.run_until(RETURN_AFTER, |mesh| carried_by(mesh, GATEWAYS[0])), "seed {seed}");
        for client in CLIENTS {
            assert_eq!(switches(&mesh, client, since), [Cause::Health, Cause::Priority], "seed {seed}");
        }
    }
}

#[test]
fn a_check_that_fails_outlives_a_restart_of_those_who_heard_it() {
    let mut mesh = pair(SEEDS.start);
    let [first, second] = GATEWAYS;
    say(&mut mesh, first, true);
    times(&mut mesh, second);
    mesh.kill(CLIENTS[1]);
    mesh.start(CLIENTS[1]);
    assert!(mesh.run_until(Duration::from_secs(20), |mesh| carried_by(mesh, second)), "it is told again");
}
