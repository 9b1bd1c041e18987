//! What operators switched by hand, as it is written down.

use std::collections::BTreeMap;

use minicbor::{Decode, Encode};

use crate::config::Target;
use crate::identity::NodeName;
use crate::time::UnixTime;

/// A target in use, and whether it stays whatever its health.
pub(super) type Use = (Target, bool);

/// The last switch of a forward.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Switch {
    /// What is used since.
    pub(super) now: Use,
    /// What was used before.
    pub(super) before: Use,
    /// When.
    pub(super) at: UnixTime,
}

#[derive(Encode, Decode)]
struct Saved {
    #[n(0)]
    forward: String,
    #[n(1)]
    now: (String, bool),
    #[n(2)]
    before: (String, bool),
    #[n(3)]
    at: u64,
}

/// Encodes the switches, the payload of the file `forwards`.
pub(super) fn encode(switches: &BTreeMap<NodeName, Switch>) -> Vec<u8> {
    let text = |(target, pinned): &Use| (target.to_string(), *pinned);
    let saved: Vec<Saved> = switches
        .iter()
        .map(|(forward, switch)| Saved {
            forward: forward.to_string(),
            now: text(&switch.now),
            before: text(&switch.before),
            at: switch.at.as_secs(),
        })
        .collect();
    // Encoding into memory cannot fail; an empty payload would be set aside at the next start, not believed.
    minicbor::to_vec(&saved).unwrap_or_default()
}

/// Decodes the switches.
///
/// # Errors
/// Says what is wrong with the payload.
pub(super) fn parse(payload: &[u8]) -> Result<BTreeMap<NodeName, Switch>, String> {
    let saved: Vec<Saved> = minicbor::decode(payload).map_err(|error| error.to_string())?;
    let used = |(target, pinned): (String, bool)| Ok::<Use, String>((target.parse()?, pinned));
    let switch = |saved: Saved| {
        let forward = saved.forward.parse().map_err(|_| "a forward's name is none".to_owned())?;
        let at = UnixTime::from_secs(saved.at);
        Ok((forward, Switch { now: used(saved.now)?, before: used(saved.before)?, at }))
    };
    saved.into_iter().map(switch).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn switches_read_back_and_damage_is_told() {
        let used = |target: &str, pinned| (target.parse().unwrap(), pinned);
        let switch =
            Switch { now: used("db2:3306", true), before: used("[fd00::1]:1", false), at: UnixTime::from_secs(7) };
        let switches = BTreeMap::from([("orders".parse().unwrap(), switch)]);
        let bytes = encode(&switches);
        assert_eq!(parse(&bytes).as_ref(), Ok(&switches));
        for cut in 0..bytes.len() {
            assert!(parse(&bytes[..cut]).is_err(), "cut at {cut}");
        }
    }
}
