//! What this host and members ask the name server.

use meshd::names::{Alias, Bounds, Handed, HostsBlock, LARGEST, Member, Picture, Zone, answer};

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

/// What a daemon without root's rights hands to root, and what root makes of it in a file of hosts.
pub fn handed_names(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let bounds = Bounds {
        suffix: "prod".parse().unwrap(),
        overlay: ("10.77.0.0/16".parse().unwrap(), "fd12:3456:789a::/64".parse().unwrap()),
        targets: vec!["192.0.2.7".parse().unwrap()],
    };
    let Ok(handed) = Handed::parse(text, &bounds) else { return };
    assert_eq!(Handed::parse(&handed.to_text(), &bounds).as_ref(), Ok(&handed));
    let theirs = b"127.0.0.1 localhost";
    let block = HostsBlock { mesh: "prod".to_owned(), hosts: handed.hosts };
    let put = block.put(theirs);
    for line in String::from_utf8(put.clone()).unwrap().lines().skip(1).filter(|line| !line.starts_with('#')) {
        assert!(line.ends_with(".prod") && line.split_whitespace().count() == 2, "{line}");
    }
    assert_eq!(HostsBlock::take_out("prod", &put), theirs);
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

    pub fn handed_names() -> Vec<Seed> {
        let text = |lines: &str| format!("meshd names 1\n{lines}").into_bytes();
        vec![
            ("empty", vec![]),
            ("nothing", text("")),
            ("server", text("server 10.77.0.1:53\n")),
            ("hosts", text("10.77.0.2 db1.prod\nfd12:3456:789a::2 db1.prod\n192.0.2.7 orders.forward.prod\n")),
            ("elsewhere", text("192.0.2.1 db1.prod\n")),
            ("another-name", text("10.77.0.2 www.example.com\n")),
            ("three-words", text("10.77.0.2 db1.prod localhost\n")),
            ("mark", text("# meshd prod end\n")),
        ]
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
