//! Alerts in virtual time: what happens, and exactly what is told.

use std::time::Duration;

use super::*;
use crate::config::alert::{Alert, Condition, Limit};
use crate::config::receiver::{HttpReceiver, Receiver, ReceiverKind};
use crate::control::probe::LinkState;
use crate::telemetry::LossEstimate;
use crate::time::{Instant, UnixTime};

/// 2026-11-22T14:00:00Z.
const START: UnixTime = UnixTime::from_secs(1_795_356_000);

/// An engine, its peers as they are now, and everything that was told, with the second it was told in.
struct Script {
    engine: AlertEngine,
    links: Vec<LinkObservation>,
    second: u64,
    told: Vec<(u64, Notice)>,
}

impl Script {
    fn new(rules: Vec<Alert>, peers: usize) -> Script {
        let link = |number| LinkObservation {
            peer: format!("db{number}"),
            state: Some(LinkState::Up),
            rtt: Some(Duration::from_micros(10_300)),
            baseline: Some(Duration::from_micros(10_300)),
            loss: LossEstimate::new(0, 300),
            data_loss: Some(0.0),
            host_delay: Some(Duration::from_micros(150)),
            ..LinkObservation::default()
        };
        let engine = AlertEngine::new("web1", "example", rules);
        Script { engine, links: (1..=peers).map(link).collect(), second: 0, told: Vec::new() }
    }

    fn usual(peers: usize) -> Script {
        Script::new(Alert::defaults(), peers)
    }

    /// Lets time pass, a look every five seconds.
    fn pass(&mut self, seconds: u64) {
        for _ in 0..seconds / 5 {
            self.second += 5;
            let now = Instant::from_millis(1_000_000 + self.second * 1_000);
            let wall = START + Duration::from_secs(self.second);
            for link in &self.links {
                self.engine.observe_link(link, now, wall);
            }
            let node = NodeObservation { certificate_not_after: START + Duration::from_secs(30 * 86_400) };
            self.engine.observe_node(&node, now, wall);
            self.engine.settle(now, wall);
            self.told.extend(self.engine.take_ready().into_iter().map(|notice| (self.second, notice)));
        }
    }

    fn set(&mut self, peers: std::ops::Range<usize>, state: LinkState) {
        for link in &mut self.links[peers] {
            link.state = Some(state);
        }
    }

    /// What was told so far, one line each.
    fn lines(&mut self) -> String {
        let line = |(second, notice): (u64, Notice)| {
            let detail = if notice.detail.is_empty() { String::new() } else { format!(" ({})", notice.detail) };
            format!(
                "{second} s: {} {} [{}] {}{detail}\n",
                notice.status.name(),
                notice.rule,
                notice.severity.name(),
                notice.summary()
            )
        };
        std::mem::take(&mut self.told).into_iter().map(line).collect()
    }
}

#[test]
fn a_cut_link_is_told_once_and_its_return_once() {
    let mut script = Script::usual(10);
    script.pass(60);
    script.set(0..1, LinkState::Down);
    script.pass(300);
    script.set(0..1, LinkState::Up);
    script.pass(300);
    insta::assert_snapshot!(script.lines(), @r#"
        105 s: firing link-down [page] db1 does not answer
        415 s: resolved link-down [page] db1 does not answer
    "#);
}

#[test]
fn a_restart_and_a_flap_wake_nobody() {
    let mut script = Script::usual(10);
    for _ in 0..10 {
        script.set(0..1, LinkState::Down);
        script.pass(25);
        script.set(0..1, LinkState::Up);
        script.pass(60);
    }
    assert_eq!(script.lines(), "");
    // Once told, what comes and goes is one alert.
    script.set(0..1, LinkState::Down);
    script.pass(60);
    for _ in 0..10 {
        script.set(0..1, LinkState::Up);
        script.pass(30);
        script.set(0..1, LinkState::Down);
        script.pass(60);
    }
    script.set(0..1, LinkState::Up);
    script.pass(60);
    assert_eq!(script.told.len(), 2, "{:?}", script.told);
}

#[test]
fn many_at_once_are_one_alert() {
    let mut script = Script::usual(10);
    script.pass(60);
    for peer in 0..8 {
        // One after the other, as their probes notice it.
        script.set(peer..peer + 1, LinkState::Down);
        script.pass(if peer % 4 == 3 { 5 } else { 0 });
    }
    script.pass(300);
    script.set(0..7, LinkState::Up);
    script.pass(300);
    script.set(7..8, LinkState::Up);
    script.pass(300);
    insta::assert_snapshot!(script.lines(), @r#"
        105 s: firing link-down [page] 8 peers at once: link_down (8 of 10 links at once: look at this node's own network first)
        725 s: resolved link-down [page] 8 peers at once: link_down (8 of 10 links at once: look at this node's own network first)
    "#);
}

#[test]
fn links_that_fail_on_different_days_are_told_each() {
    let mut script = Script::usual(10);
    for peer in 0..4 {
        script.set(peer..peer + 1, LinkState::Down);
        script.pass(600);
    }
    assert_eq!(script.told.len(), 4, "{:?}", script.told);
}

#[test]
fn a_dead_node_is_one_alert_of_the_whole_mesh() {
    let mut script = Script::usual(10);
    script.pass(60);
    script.set(2..3, LinkState::Down);
    script.links[2].node_down = Some("unreachable from 5 of 5 asked".to_owned());
    script.links[2].loss = LossEstimate::new(300, 300);
    script.pass(600);
    let [(_, notice)] = &script.told[..] else { panic!("one alert: {:?}", script.told) };
    assert_eq!((notice.what, &notice.node), ("node_down", &None));
    // Another member tells the same of it, word for word, as far as that says which alert it is.
    let mut other = Script::usual(4);
    other.engine = AlertEngine::new("web2", "example", Alert::defaults());
    (other.links[2].state, other.links[2].node_down) = (Some(LinkState::Down), Some("unreachable".to_owned()));
    other.pass(600);
    assert_eq!(other.told[0].1.fingerprint(), notice.fingerprint());
    // A third leaves it to one of them.
    let mut silent = Script::usual(4);
    (silent.links[2].state, silent.links[2].node_down) = (Some(LinkState::Down), Some("unreachable".to_owned()));
    silent.links[2].reporter = Some("web1".to_owned());
    silent.pass(600);
    assert_eq!(silent.lines(), "");
    let untold: Vec<_> = silent.engine.standing().into_iter().filter_map(|standing| standing.untold).collect();
    assert!(untold.contains(&"web1 tells it for all".to_owned()), "{untold:?}");
    // Where that one goes too, it is told from here after all.
    silent.links[2].reporter = None;
    silent.pass(60);
    assert_eq!(silent.told.len(), 1);
}

#[test]
fn delay_and_loss_are_told_with_value_threshold_and_baseline() {
    let ms = Duration::from_millis;
    let rule = |name: &str, condition| Alert {
        name: name.parse().unwrap(),
        condition,
        peers: vec!["db1".parse().unwrap()],
        lasting: ms(60_000),
        severity: None,
        receivers: Vec::new(),
    };
    let share = |text: &str| text.parse().unwrap();
    let rules = vec![
        rule("slow", Condition::LatencyAbove(Limit::OverBaseline(ms(2)))),
        rule("very-slow", Condition::LatencyAbove(Limit::Fixed(ms(20)))),
        rule("lossy", Condition::LossAbove(share("1%"))),
        rule("data", Condition::DataLoss(share("0.1%"))),
        rule("step", Condition::LatencyStep(ms(1))),
        rule("host", Condition::HostDelay(ms(5))),
        rule("certificate", Condition::Certificate(Duration::from_secs(40 * 86_400))),
    ];
    let mut script = Script::new(rules, 3);
    script.pass(60);
    for link in &mut script.links {
        link.rtt = Some(ms(13));
        // 1 % lies in the interval of 6 of 300, and below that of 12.
        link.loss = LossEstimate::new(12, 300);
        link.data_loss = Some(0.004);
        link.step = Some(Duration::from_micros(2_700));
        link.host_delay = Some(ms(7));
    }
    script.pass(120);
    script.links[0].loss = LossEstimate::new(6, 300);
    script.pass(60);
    insta::assert_snapshot!(script.lines(), @r#"
        75 s: firing certificate [ticket] the certificate of this node ends in 29 days, less than 40 days
        135 s: firing data [ticket] 0.40 % of the packets with db1 are lost, more than 0.10 %
        135 s: firing host [ticket] the hosts of the link with db1 add 7.00 ms, more than 5.00 ms
        135 s: firing lossy [ticket] at least 2.30 % of the probes to db1 are lost, more than 1.00 %
        135 s: firing slow [ticket] the path to db1 takes 13.00 ms, more than 12.30 ms
        135 s: firing step [ticket] the path to db1 has become 2.70 ms longer, more than 1.00 ms
        235 s: resolved lossy [ticket] at least 2.30 % of the probes to db1 are lost, more than 1.00 %
    "#);
}

#[test]
fn a_burn_is_told_by_its_speed() {
    let mut script = Script::usual(4);
    let probe = |script: &mut Script, seconds: u64, rtt: Option<Duration>| {
        for _ in 0..seconds / 5 {
            let now = Instant::from_millis(1_000_000 + script.second * 1_000);
            for _ in 0..5 {
                script.engine.probed("db1", &[], rtt, Some(Duration::from_millis(10)), now);
            }
            script.pass(5);
        }
    };
    probe(&mut script, 7_200, Some(Duration::from_millis(14)));
    assert_eq!(script.lines(), "", "4 ms above the baseline are good enough");
    probe(&mut script, 120, Some(Duration::from_millis(16)));
    probe(&mut script, 120, None);
    insta::assert_snapshot!(script.lines(), @r#"
        7265 s: firing slo-burn [page] the link with db1 uses up its budget 18.1 times too fast (in the last 1 h)
    "#);
}

#[test]
fn other_rules_end_what_no_longer_holds() {
    let mut script = Script::usual(10);
    script.set(0..1, LinkState::Down);
    script.pass(60);
    assert_eq!(script.told.len(), 1);
    let mut rules = Alert::defaults();
    script.engine.set_rules(rules.clone(), START);
    assert!(script.engine.take_ready().is_empty(), "the same rules change nothing");
    rules.retain(|rule| rule.condition != Condition::LinkDown);
    script.engine.set_rules(rules, START + Duration::from_secs(60));
    let [over] = &script.engine.take_ready()[..] else { panic!("one") };
    assert_eq!((over.status, over.what), (NoticeStatus::Resolved, "link_down"));
    assert!(script.engine.standing().is_empty());
}

#[test]
fn a_peer_that_is_no_member_any_more_ends_its_alerts() {
    let mut script = Script::usual(10);
    script.set(0..1, LinkState::Down);
    script.pass(60);
    script.links.remove(0);
    script.pass(5);
    let [_, (_, over)] = &script.told[..] else { panic!("two: {:?}", script.told) };
    assert_eq!(over.status, NoticeStatus::Resolved);
    assert!(script.engine.standing().is_empty());
}

#[test]
fn the_bodies_are_those_of_alertmanager() {
    let mut script = Script::usual(10);
    script.set(0..1, LinkState::Down);
    script.pass(60);
    script.set(0..1, LinkState::Up);
    script.pass(120);
    let bodies = script.told.iter().map(|(_, notice)| {
        let webhook = notice.to_webhook(&"ops".parse().unwrap());
        let itself = notice.to_alertmanager(START + Duration::from_secs(300));
        format!("{}\n{}\n", serde_json::to_string_pretty(&webhook).unwrap(), itself)
    });
    insta::assert_snapshot!(bodies.collect::<String>(), @r#"
        {
          "alerts": [
            {
              "annotations": {
                "command": "meshctl status db1",
                "since": "2026-11-22T14:00:05Z",
                "summary": "db1 does not answer"
              },
              "endsAt": "0001-01-01T00:00:00Z",
              "fingerprint": "b1f54a19224fda99",
              "generatorURL": "",
              "labels": {
                "alertname": "link-down",
                "mesh": "example",
                "node": "web1",
                "peer": "db1",
                "severity": "page",
                "what": "link_down"
              },
              "startsAt": "2026-11-22T14:00:05Z",
              "status": "firing"
            }
          ],
          "commonAnnotations": {
            "command": "meshctl status db1",
            "since": "2026-11-22T14:00:05Z",
            "summary": "db1 does not answer"
          },
          "commonLabels": {
            "alertname": "link-down",
            "mesh": "example",
            "node": "web1",
            "peer": "db1",
            "severity": "page",
            "what": "link_down"
          },
          "externalURL": "",
          "groupKey": "{}:{alertname=\"link-down\", fingerprint=\"b1f54a19224fda99\"}",
          "groupLabels": {
            "alertname": "link-down"
          },
          "receiver": "ops",
          "status": "firing",
          "truncatedAlerts": 0,
          "version": "4"
        }
        {"annotations":{"command":"meshctl status db1","since":"2026-11-22T14:00:05Z","summary":"db1 does not answer"},"endsAt":"2026-11-22T14:05:00Z","generatorURL":"","labels":{"alertname":"link-down","mesh":"example","node":"web1","peer":"db1","severity":"page","what":"link_down"},"startsAt":"2026-11-22T14:00:05Z"}
        {
          "alerts": [
            {
              "annotations": {
                "command": "meshctl status db1",
                "since": "2026-11-22T14:00:05Z",
                "summary": "db1 does not answer"
              },
              "endsAt": "2026-11-22T14:01:05Z",
              "fingerprint": "b1f54a19224fda99",
              "generatorURL": "",
              "labels": {
                "alertname": "link-down",
                "mesh": "example",
                "node": "web1",
                "peer": "db1",
                "severity": "page",
                "what": "link_down"
              },
              "startsAt": "2026-11-22T14:00:05Z",
              "status": "resolved"
            }
          ],
          "commonAnnotations": {
            "command": "meshctl status db1",
            "since": "2026-11-22T14:00:05Z",
            "summary": "db1 does not answer"
          },
          "commonLabels": {
            "alertname": "link-down",
            "mesh": "example",
            "node": "web1",
            "peer": "db1",
            "severity": "page",
            "what": "link_down"
          },
          "externalURL": "",
          "groupKey": "{}:{alertname=\"link-down\", fingerprint=\"b1f54a19224fda99\"}",
          "groupLabels": {
            "alertname": "link-down"
          },
          "receiver": "ops",
          "status": "resolved",
          "truncatedAlerts": 0,
          "version": "4"
        }
        {"annotations":{"command":"meshctl status db1","since":"2026-11-22T14:00:05Z","summary":"db1 does not answer"},"endsAt":"2026-11-22T14:01:05Z","generatorURL":"","labels":{"alertname":"link-down","mesh":"example","node":"web1","peer":"db1","severity":"page","what":"link_down"},"startsAt":"2026-11-22T14:00:05Z"}
    "#);
}

fn receiver(kind: ReceiverKind) -> Receiver {
    let name = "ops".parse().unwrap();
    Receiver { name, kind, timeout: Receiver::TIMEOUT, repeat: Duration::from_secs(4 * 3600) }
}

fn http() -> HttpReceiver {
    HttpReceiver { url: "http://127.0.0.1:1/".to_owned(), header_file: None }
}

fn at(second: u64) -> (Instant, UnixTime) {
    (Instant::from_millis(second * 1_000), START + Duration::from_secs(second))
}

fn notices() -> [Notice; 2] {
    let mut script = Script::usual(10);
    script.set(0..1, LinkState::Down);
    script.pass(60);
    script.set(0..1, LinkState::Up);
    script.pass(120);
    let [(_, firing), (_, resolved)] = &script.told[..] else { panic!("two") };
    [firing.clone(), resolved.clone()]
}

/// Runs a delivery until a second, its receiver as it is; returns the seconds of the attempts.
fn run(delivery: &mut Delivery, from: u64, until: u64, outcome: impl Fn(u64) -> Result<(), Failure>) -> Vec<u64> {
    let mut attempts = Vec::new();
    for second in from..until {
        let (now, wall) = at(second);
        while let Some(parcel) = delivery.poll(now, wall) {
            assert!(serde_json::from_str::<serde_json::Value>(&parcel.body).is_ok());
            attempts.push(second);
            delivery.finished(outcome(second), now, wall);
        }
    }
    attempts
}

fn down(is_final: bool) -> Result<(), Failure> {
    Err(Failure { why: "connection refused".to_owned(), is_final })
}

#[test]
fn a_receiver_that_is_down_is_tried_ever_more_rarely_and_then_told_everything_in_order() {
    let mut delivery = Delivery::new(receiver(ReceiverKind::Webhook(http())), 1);
    let [firing, resolved] = notices();
    delivery.offer(firing, at(0).0);
    delivery.offer(resolved, at(5).0);
    let attempts = run(&mut delivery, 0, 1_000, |_| down(false));
    let pauses: Vec<u64> = attempts.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(pauses.iter().all(|pause| *pause <= 301) && attempts.len() < 20, "{attempts:?}");
    assert!(pauses.last().unwrap() > &100, "{pauses:?}");
    assert_eq!((delivery.health().queued, delivery.health().dropped), (2, 0));
    assert_eq!(delivery.health().failure.as_deref(), Some("connection refused"));
    let told = run(&mut delivery, 1_000, 1_400, |_| Ok(()));
    assert_eq!(told.len(), 2, "{told:?}");
    assert_eq!((delivery.health().delivered, delivery.health().queued, &delivery.health().failure), (2, 0, &None));
    assert_eq!(delivery.deadline(), None, "nothing is left to do");
}

#[test]
fn what_cannot_succeed_is_given_up_at_once_and_what_does_not_after_an_hour() {
    let mut delivery = Delivery::new(receiver(ReceiverKind::Command(vec!["/bin/x".to_owned()])), 1);
    delivery.offer(notices()[0].clone(), at(0).0);
    assert_eq!(run(&mut delivery, 0, 60, |_| down(true)).len(), 1);
    assert_eq!((delivery.health().dropped, delivery.health().queued), (1, 0));
    delivery.offer(notices()[1].clone(), at(60).0);
    let attempts = run(&mut delivery, 60, 10_000, |_| down(false));
    assert!(*attempts.last().unwrap() < 60 + 3_600 + 301, "{attempts:?}");
    assert_eq!((delivery.health().dropped, delivery.health().queued), (2, 0));
}

#[test]
fn what_fires_is_told_again() {
    let mut delivery = Delivery::new(receiver(ReceiverKind::Webhook(http())), 1);
    let [firing, resolved] = notices();
    delivery.offer(firing, at(0).0);
    let told = run(&mut delivery, 0, 9 * 3_600, |_| Ok(()));
    assert_eq!(told, [0, 4 * 3_600, 8 * 3_600]);
    assert_eq!(delivery.deadline(), Some(at(12 * 3_600).0));
    delivery.offer(resolved, at(9 * 3_600).0);
    assert_eq!(run(&mut delivery, 9 * 3_600, 24 * 3_600, |_| Ok(())), [9 * 3_600]);
}

#[test]
fn alertmanager_hears_each_minute_of_what_fires_and_once_of_what_is_over() {
    let mut delivery = Delivery::new(receiver(ReceiverKind::Alertmanager(http())), 1);
    let [firing, resolved] = notices();
    delivery.offer(firing, at(0).0);
    let first = delivery.poll(at(0).0, at(0).1).unwrap();
    assert!(first.body.contains("\"endsAt\":\"2026-11-22T14:04:00Z\""), "{}", first.body);
    delivery.finished(Ok(()), at(0).0, at(0).1);
    assert_eq!(run(&mut delivery, 0, 200, |_| Ok(())), [60, 120, 180]);
    delivery.offer(resolved, at(200).0);
    let last = delivery.poll(at(200).0, at(200).1).unwrap();
    assert!(last.body.contains("\"endsAt\":\"2026-11-22T14:01:05Z\""), "{}", last.body);
    delivery.finished(Ok(()), at(200).0, at(200).1);
    assert_eq!(run(&mut delivery, 200, 1_000, |_| Ok(())), [] as [u64; 0]);
    assert_eq!(delivery.deadline(), None);
}

#[test]
fn a_queue_that_is_full_gives_up_the_oldest() {
    let mut delivery = Delivery::new(receiver(ReceiverKind::Webhook(http())), 1);
    for _ in 0..1_000 {
        delivery.offer(notices_once(), at(0).0);
    }
    assert_eq!((delivery.health().queued, delivery.health().dropped), (256, 744));
}

fn notices_once() -> Notice {
    let mut script = Script::usual(10);
    script.set(0..1, LinkState::Down);
    script.pass(45);
    script.told.pop().unwrap().1
}
