//! The names as a resolver asks for them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use domain::base::Name;
use domain::base::name::Label;

use super::picture::{Picture, reverse_v4, reverse_v6};

/// A name as labels from the root down, in lower case, each behind its length: what lies below a name begins with it.
pub(super) type Key = Vec<u8>;

/// A name in the form of answers.
pub(super) type OwnedName = Name<Vec<u8>>;

/// What a name has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Records {
    pub(super) v4: Option<Ipv4Addr>,
    pub(super) v6: Option<Ipv6Addr>,
    pub(super) name: Option<OwnedName>,
}

/// Everything that questions are answered from: the zone of the suffix, and those of the overlay's addresses.
#[derive(Clone, Debug)]
pub struct Zone {
    /// Where each zone begins: its name by its key.
    apexes: BTreeMap<Key, OwnedName>,
    records: BTreeMap<Key, Records>,
    /// The name of the server: this node.
    pub(super) server: OwnedName,
    /// Who is written to about the zone; nobody reads there, but a name is needed (RFC 1035 §3.3.13).
    pub(super) contact: OwnedName,
    /// The version that an SOA record tells.
    pub(super) serial: u32,
    /// This node's overlay addresses.
    pub(super) own: [IpAddr; 2],
    /// Addresses that may ask: members' and guests'.
    pub(super) askers: BTreeSet<IpAddr>,
}

/// What is known of a name.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found<'a> {
    /// It is in none of the zones.
    Elsewhere,
    /// There is no such name in the zone with this apex.
    Missing(&'a OwnedName),
    /// It is there, perhaps without records: something is below it.
    There {
        /// The name its zone begins at.
        apex: &'a OwnedName,
        /// Whether it is that name.
        is_apex: bool,
        /// What it has.
        records: Option<&'a Records>,
    },
}

impl Zone {
    /// Makes the zones of a picture. `serial` rises from one version to the next, as serial numbers do (RFC 1982).
    pub fn new(picture: &Picture, serial: u32) -> Zone {
        let suffix = picture.suffix.as_str();
        let below = |name: &str| format!("{name}.{suffix}");
        let server = owned(&below(picture.own.name.as_str()));
        let reverse = picture.reverse_zones();
        let apexes = [suffix].into_iter().chain(reverse.v4.iter().chain(&reverse.v6).map(String::as_str));
        let mut zone = Zone {
            apexes: apexes.map(|apex| (key_of(apex), owned(apex))).collect(),
            records: BTreeMap::new(),
            server,
            contact: owned(&below("hostmaster")),
            serial,
            own: [picture.own.v4.into(), picture.own.v6.into()],
            askers: picture.guests.iter().copied().collect(),
        };
        for member in [&picture.own].into_iter().chain(&picture.members) {
            let name = below(member.name.as_str());
            zone.askers.extend([IpAddr::V4(member.v4), IpAddr::V6(member.v6)]);
            zone.records.entry(key_of(&name)).or_insert_with(|| Records {
                v4: Some(member.v4),
                v6: Some(member.v6),
                name: None,
            });
            for reversed in [reverse_v4(member.v4), reverse_v6(member.v6)] {
                let named = Records { name: Some(owned(&name)), ..Records::default() };
                zone.records.entry(key_of(&reversed)).or_insert(named);
            }
        }
        for alias in &picture.aliases {
            let v4 = alias.addresses.iter().find_map(|address| match address {
                IpAddr::V4(address) => Some(*address),
                IpAddr::V6(_) => None,
            });
            let v6 = alias.addresses.iter().find_map(|address| match address {
                IpAddr::V6(address) => Some(*address),
                IpAddr::V4(_) => None,
            });
            if v4.is_some() || v6.is_some() {
                let records = Records { v4, v6, name: None };
                zone.records.entry(key_of(&below(&alias.name))).or_insert(records);
            }
        }
        zone
    }

    /// Finds a name by its labels, from the left to the root.
    pub(super) fn find<'a, 'l>(&'a self, labels: impl DoubleEndedIterator<Item = &'l Label>) -> Found<'a> {
        let mut key = Key::new();
        let mut apex = None;
        for label in labels.rev().filter(|label| !label.is_root()) {
            push(&mut key, label.as_slice());
            if apex.is_none() {
                // Of no zone is another a part.
                apex = self.apexes.get(&key).map(|apex| (apex, key.len()));
            }
        }
        let Some((apex, length)) = apex else { return Found::Elsewhere };
        let is_apex = length == key.len();
        let records = self.records.get(&key);
        let mut below = self.records.range(key.clone()..);
        // Names above others are there even where they have nothing themselves (RFC 8020).
        if records.is_some() || is_apex || below.next().is_some_and(|(other, _)| other.starts_with(&key)) {
            Found::There { apex, is_apex, records }
        } else {
            Found::Missing(apex)
        }
    }
}

fn push(key: &mut Key, label: &[u8]) {
    // A label has at most 63 bytes, as its type and the sources of our own names see to.
    key.push(u8::try_from(label.len()).unwrap_or(u8::MAX));
    key.extend(label.iter().map(u8::to_ascii_lowercase));
}

/// The key of one of our own names, which have no dots inside their labels.
fn key_of(name: &str) -> Key {
    let mut key = Key::new();
    for label in name.rsplit('.') {
        push(&mut key, label.as_bytes());
    }
    key
}

/// One of our own names in the form of answers: labels and suffix are checked where they come from.
fn owned(name: &str) -> OwnedName {
    name.parse().unwrap_or_else(|_| Name::root_vec())
}

#[cfg(test)]
mod tests {
    use super::super::picture::tests::picture;
    use super::*;
    use domain::base::name::ToLabelIter;

    fn look(zone: &Zone, name: &str) -> String {
        let name: OwnedName = if name.is_empty() { Name::root_vec() } else { name.parse().unwrap() };
        match zone.find(name.iter_labels()) {
            Found::Elsewhere => "elsewhere".into(),
            Found::Missing(apex) => format!("missing in {apex}"),
            Found::There { records: None, .. } => "nothing".into(),
            Found::There { records: Some(Records { name: Some(name), .. }), .. } => name.to_string(),
            Found::There { records: Some(Records { v4, v6, .. }), .. } => {
                let shown = |address: Option<String>| address.unwrap_or_else(|| "-".into());
                format!("{} {}", shown(v4.map(|v4| v4.to_string())), shown(v6.map(|v6| v6.to_string())))
            }
        }
    }

    #[test]
    fn names_lead_to_addresses_and_back() {
        let zone = Zone::new(&picture(), 7);
        for (name, expected) in [
            ("db1.prod", "10.77.0.2 fd12:3456:789a::a4d:2"),
            ("DB1.Prod", "10.77.0.2 fd12:3456:789a::a4d:2"),
            ("web1.prod", "10.77.0.1 fd12:3456:789a::a4d:1"),
            ("orders-db.prod", "10.77.0.3 fd12:3456:789a::a4d:3"),
            ("orders.forward.prod", "10.77.0.2 fd12:3456:789a::a4d:2"),
            ("old.forward.prod", "192.0.2.7 -"),
            ("forward.prod", "nothing"),
            ("prod", "nothing"),
            ("nobody.prod", "missing in prod"),
            ("x.db1.prod", "missing in prod"),
            ("b1.prod", "missing in prod"),
            ("prod.example", "elsewhere"),
            ("xprod", "elsewhere"),
            ("", "elsewhere"),
            ("2.0.77.10.in-addr.arpa", "db1.prod"),
            ("9.0.77.10.in-addr.arpa", "missing in 77.10.in-addr.arpa"),
            ("0.77.10.in-addr.arpa", "nothing"),
            ("1.77.10.in-addr.arpa", "missing in 77.10.in-addr.arpa"),
            ("77.10.in-addr.arpa", "nothing"),
            ("78.10.in-addr.arpa", "elsewhere"),
            ("10.in-addr.arpa", "elsewhere"),
        ] {
            assert_eq!(look(&zone, name), expected, "{name}");
        }
        assert_eq!(look(&zone, &reverse_v6("fd12:3456:789a::a4d:3".parse().unwrap())), "db2.prod");
        // A member's name is its own, whatever an alias says.
        assert_eq!(look(&zone, "db1.prod"), "10.77.0.2 fd12:3456:789a::a4d:2");
        assert!(zone.askers.contains(&"10.78.0.2".parse().unwrap()));
    }
}
