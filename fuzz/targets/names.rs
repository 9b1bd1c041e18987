//! What this host and members ask the name server.

use meshd::names::{Alias, LARGEST, Member, Picture, Zone, answer};

fn member(name: &str, last: u8) -> Member {
    let v6 = format!("fd12:3456:789a::a4d:{last:x}").parse().unwrap();
    Member { name: name.parse().unwrap(), v4: [10, 77, 0, last].into(), v6 }
}

fn zone() -> Zone {
    let addresses = vec!["192.0.2.7".parse().unwrap()];
    let picture = Picture {
        suffix: "prod".parse().unwrap(),
        own: member("web1", 1),
        members: vec![member("db1", 2)],
        aliases: vec![Alias { name: "orders.forward".into(), of: "192.0.2.7".into(), addresses }],
        overlay: ("10.77.0.0/16".parse().unwrap(), "fd12:3456:789a::/64".parse().unwrap()),
        guests: Vec::new(),
    };
    Zone::new(&picture, 1)
}

/// A datagram to the name server.
pub fn dns_question(data: &[u8]) {
    let Some(told) = answer(&zone(), data) else { return };
    assert!((12..=LARGEST).contains(&told.len()), "{} B", told.len());
    assert_eq!(told[..2], data[..2], "the number of the question");
    assert_eq!(told[2] & 0x80, 0x80, "an answer");
    assert_eq!(data[2] & 0x80, 0, "to no answer");
    assert_eq!(told[2] & 0x02, 0, "and never cut short");
    assert_eq!(answer(&zone(), &told), None, "nobody answers it");
}

/// Inputs to begin with.
pub mod seeds {
    use super::super::Seed;

    /// A question of the class IN, recursion desired, with an OPT record where `edns`.
    fn ask(name: &str, rtype: u16, edns: bool) -> Vec<u8> {
        let mut bytes = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, u8::from(edns)];
        for label in name.split('.') {
            bytes.push(label.len() as u8);
            bytes.extend(label.as_bytes());
        }
        bytes.push(0);
        bytes.extend(rtype.to_be_bytes());
        bytes.extend([0, 1]);
        if edns {
            bytes.extend([0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0]);
        }
        bytes
    }

    pub fn dns_question() -> Vec<Seed> {
        let with = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut bytes = ask("db1.prod", 1, true);
            change(&mut bytes);
            bytes
        };
        vec![
            ("empty", vec![]),
            ("address", ask("db1.prod", 1, true)),
            ("address-v6", ask("Db1.PROD", 28, false)),
            ("forward", ask("orders.forward.prod", 255, true)),
            ("missing", ask("gone.prod", 1, true)),
            ("elsewhere", ask("example.com", 1, true)),
            ("zone", ask("prod", 6, false)),
            ("reverse", ask("2.0.77.10.in-addr.arpa", 12, true)),
            ("answer", with(&|bytes| bytes[2] |= 0x80)),
            ("update", with(&|bytes| bytes[2] |= 0x28)),
            ("later-edns", with(&|bytes| bytes[32] = 1)),
            ("cut", with(&|bytes| bytes.truncate(17))),
            ("pointer-to-itself", vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0xc0, 12, 0, 1, 0, 1]),
        ]
    }
}
