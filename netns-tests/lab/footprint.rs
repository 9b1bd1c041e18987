//! What a host's kernel knows about its network: devices, addresses and routes. Two of them compared show what a
//! program left behind, or took away from others.

use std::collections::BTreeSet;
use std::fs;

use super::error::{Context, Result};
use super::host::Host;

/// A host's devices, addresses and routes, one line each, without counters.
///
/// # Errors
/// Where the kernel's tables cannot be read.
pub fn footprint(host: &Host) -> Result<BTreeSet<String>> {
    host.enter(|| {
        let mut lines = BTreeSet::new();
        let mut take = |file: &str, line: &dyn Fn(&[&str]) -> String| -> Result<()> {
            let path = format!("/proc/thread-self/net/{file}");
            let text = fs::read_to_string(&path).context(&path)?;
            for text in text.lines() {
                let columns: Vec<&str> = text.split_whitespace().collect();
                lines.insert(format!("{file}: {}", line(&columns)));
            }
            Ok(())
        };
        take("dev", &|columns| columns.first().copied().unwrap_or_default().to_owned())?;
        // Address, device index, length, scope, flags, device; an index is never used twice, so it is left out.
        take("if_inet6", &|columns| [columns.first(), columns.last()].map(|column| *column.unwrap_or(&"")).join(" "))?;
        // Interface, destination, gateway, flags, two counters, metric, mask.
        take("route", &|columns| pick(columns, &[0, 1, 2, 3, 6, 7]))?;
        // Destination, its length, source, its length, next hop, metric, two counters, flags, device.
        take("ipv6_route", &|columns| pick(columns, &[0, 1, 2, 3, 4, 5, 9]))?;
        // IPv4 addresses, as the local routes to them.
        take("fib_trie", &|columns| columns.join(" "))?;
        Ok(lines)
    })
}

fn pick(columns: &[&str], wanted: &[usize]) -> String {
    wanted.iter().filter_map(|number| columns.get(*number).copied()).collect::<Vec<_>>().join(" ")
}
