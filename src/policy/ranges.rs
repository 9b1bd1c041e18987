//! Sets of addresses.

use std::net::IpAddr;

use ipnet::IpNet;

/// Networks as sorted ranges that neither overlap nor touch: one binary search per question.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Ranges {
    v4: Box<[(u128, u128)]>,
    v6: Box<[(u128, u128)]>,
}

impl Ranges {
    pub(super) fn new(networks: impl IntoIterator<Item = IpNet>) -> Self {
        let (v4, v6): (Vec<IpNet>, Vec<IpNet>) = networks.into_iter().partition(|network| network.addr().is_ipv4());
        Ranges { v4: merged(&v4), v6: merged(&v6) }
    }

    pub(super) fn contains(&self, address: IpAddr) -> bool {
        let ranges = if address.is_ipv4() { &self.v4 } else { &self.v6 };
        let number = number(address);
        let behind = ranges.partition_point(|(first, _)| *first <= number);
        behind > 0 && number <= ranges[behind - 1].1
    }
}

fn merged(networks: &[IpNet]) -> Box<[(u128, u128)]> {
    let mut ranges: Vec<_> = networks.iter().map(|net| (number(net.network()), number(net.broadcast()))).collect();
    ranges.sort_unstable();
    let mut merged: Vec<(u128, u128)> = Vec::with_capacity(ranges.len());
    for (first, last) in ranges {
        match merged.last_mut() {
            Some((_, end)) if first <= end.saturating_add(1) => *end = last.max(*end),
            _ => merged.push((first, last)),
        }
    }
    merged.into()
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(u32::from(v4)),
        IpAddr::V6(v6) => u128::from(v6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_hold_their_ends_and_nothing_beside() {
        let nets = ["10.0.0.0/31", "10.0.0.2/32", "10.0.0.0/30", "10.0.0.9/32", "fd00::/127", "::/128"];
        let ranges = Ranges::new(nets.map(|net| net.parse().unwrap()));
        assert_eq!((ranges.v4.len(), ranges.v6.len()), (2, 2));
        for (address, inside) in [
            ("10.0.0.0", true),
            ("10.0.0.3", true),
            ("10.0.0.4", false),
            ("9.255.255.255", false),
            ("10.0.0.9", true),
            ("10.0.0.10", false),
            ("fd00::1", true),
            ("fd00::2", false),
            ("::", true),
            ("0.0.0.0", false),
        ] {
            assert_eq!(ranges.contains(address.parse().unwrap()), inside, "{address}");
        }
        let all = Ranges::new(["0.0.0.0/0", "::/0"].map(|net| net.parse().unwrap()));
        assert!(
            ["255.255.255.255", "ffff::ffff", "0.0.0.0"].iter().all(|address| all.contains(address.parse().unwrap()))
        );
    }
}
