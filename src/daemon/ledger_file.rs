//! What used which link, as it is written down.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use minicbor::bytes::ByteArray;
use minicbor::{Decode, Encode};

use crate::identity::NodeId;
use crate::telemetry::usage::{Connection, Ends, LinkUse, Usage};
use crate::time::UnixTime;

#[derive(Encode, Decode)]
struct Saved {
    #[n(0)]
    open: Vec<SavedConnection>,
    #[n(1)]
    ended: Vec<SavedConnection>,
    #[n(2)]
    links: Vec<SavedLink>,
}

#[derive(Encode, Decode)]
struct SavedConnection {
    #[n(0)]
    node: ByteArray<16>,
    #[n(1)]
    ends: SavedEnds,
    #[n(2)]
    began: u64,
    #[n(3)]
    last: u64,
    #[n(4)]
    sent: u64,
    #[n(5)]
    received: u64,
}

#[derive(Encode, Decode)]
struct SavedEnds {
    #[n(0)]
    near: (IpAddr, u16),
    #[n(1)]
    far: (IpAddr, u16),
    #[n(2)]
    protocol: u8,
    #[n(3)]
    opened_near: Option<bool>,
}

#[derive(Encode, Decode)]
struct SavedLink {
    #[n(0)]
    node: ByteArray<16>,
    #[n(1)]
    name: String,
    #[n(2)]
    since: u64,
    #[n(3)]
    last: Option<u64>,
    #[n(4)]
    ends: Option<SavedEnds>,
}

impl SavedEnds {
    fn of(ends: &Ends, opened_near: Option<bool>) -> SavedEnds {
        let pair = |end: SocketAddr| (end.ip(), end.port());
        SavedEnds { near: pair(ends.near), far: pair(ends.far), protocol: ends.protocol, opened_near }
    }

    fn ends(&self) -> Ends {
        Ends { near: self.near.into(), far: self.far.into(), protocol: self.protocol }
    }
}

impl SavedConnection {
    fn of(connection: &Connection) -> SavedConnection {
        SavedConnection {
            node: (*connection.node.as_bytes()).into(),
            ends: SavedEnds::of(&connection.ends, connection.opened_near),
            began: connection.began.as_secs(),
            last: connection.last.as_secs(),
            sent: connection.sent,
            received: connection.received,
        }
    }

    fn connection(&self) -> Connection {
        Connection {
            node: NodeId::from_bytes(*self.node),
            ends: self.ends.ends(),
            opened_near: self.ends.opened_near,
            began: UnixTime::from_secs(self.began),
            last: UnixTime::from_secs(self.last),
            sent: self.sent,
            received: self.received,
        }
    }
}

/// Encodes what used which link, the payload of the file `ledger`.
pub(super) fn encode(usage: &Usage) -> Vec<u8> {
    let link = |(node, link): (NodeId, &LinkUse)| SavedLink {
        node: (*node.as_bytes()).into(),
        name: link.name.clone(),
        since: link.since.as_secs(),
        last: link.last.map(UnixTime::as_secs),
        ends: link.last_ends.as_ref().map(|(ends, opened_near)| SavedEnds::of(ends, *opened_near)),
    };
    let saved = Saved {
        open: usage.all_open().map(SavedConnection::of).collect(),
        ended: usage.ended().map(SavedConnection::of).collect(),
        links: usage.links().map(link).collect(),
    };
    // Encoding into memory cannot fail; an empty payload would be set aside at the next start, not believed.
    minicbor::to_vec(&saved).unwrap_or_default()
}

/// Decodes it.
///
/// # Errors
/// Says what is wrong with the payload.
pub(super) fn parse(payload: &[u8]) -> Result<Usage, String> {
    let saved: Saved = minicbor::decode(payload).map_err(|error| error.to_string())?;
    let link = |saved: SavedLink| {
        let link = LinkUse {
            name: saved.name,
            since: UnixTime::from_secs(saved.since),
            last: saved.last.map(UnixTime::from_secs),
            last_ends: saved.ends.map(|ends| (ends.ends(), ends.opened_near)),
        };
        (NodeId::from_bytes(*saved.node), link)
    };
    let connections = |saved: &[SavedConnection]| saved.iter().map(SavedConnection::connection).collect();
    let links: BTreeMap<_, _> = saved.links.into_iter().map(link).collect();
    Ok(Usage::resume(connections(&saved.open), connections(&saved.ended), links))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_read_back_and_damage_is_told() {
        let node = NodeId::from_bytes([7; 16]);
        let ends =
            |far: &str| Ends { near: "10.77.0.1:40000".parse().unwrap(), far: far.parse().unwrap(), protocol: 6 };
        let connection = |far: &str| Connection {
            node,
            ends: ends(far),
            opened_near: Some(true),
            began: UnixTime::from_secs(5),
            last: UnixTime::from_secs(500),
            sent: 1 << 40,
            received: 3,
        };
        let link = LinkUse {
            name: "db1".into(),
            since: UnixTime::from_secs(1),
            last: Some(UnixTime::from_secs(500)),
            last_ends: Some((ends("[fd00::2]:53"), None)),
        };
        let open = vec![connection("10.77.0.2:3306")];
        let usage = Usage::resume(open, vec![connection("10.77.0.2:22")], BTreeMap::from([(node, link)]));
        let bytes = encode(&usage);
        assert_eq!(parse(&bytes).as_ref(), Ok(&usage));
        assert_eq!(parse(&encode(&Usage::default())), Ok(Usage::default()));
        for cut in 0..bytes.len() {
            assert!(parse(&bytes[..cut]).is_err(), "cut at {cut}");
        }
    }
}
