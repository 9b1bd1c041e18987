//! The ledger as text: TOML in a fixed order, so that two ledgers can be compared line by line.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::admission::Admission;
use super::anchor::TrustAnchor;
use super::certificate::Permissions;
use super::key::PublicKeys;
use super::ledger::{Ledger, LedgerEntry, LedgerError};
use super::share::Priority;
use crate::time::UnixTime;

/// The longest text, in bytes: a thousand for each entry.
const MAX_TEXT: usize = Ledger::MAX_ENTRIES * 1000;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredLedger {
    version: u32,
    mesh: String,
    overlay: String,
    next_serial: u64,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    node: Vec<StoredEntry>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredEntry {
    name: String,
    id: String,
    address: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    prefixes: Vec<String>,
    /// `PREFIX=PRIORITY` each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    shared: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    tags: Vec<String>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    authority: bool,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    relay: bool,
    serial: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    wireguard_key: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    verifying_key: Option<String>,
    not_after: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    revoked: Option<String>,
}

impl Ledger {
    /// Writes the ledger; the same ledger always gives the same text.
    pub fn to_text(&self) -> String {
        let mut node: Vec<StoredEntry> = self.entries().map(StoredEntry::from).collect();
        node.sort_by(|a, b| (&a.name, &a.id).cmp(&(&b.name, &b.id)));
        let stored = StoredLedger {
            version: 1,
            mesh: self.mesh.to_string(),
            overlay: self.overlay_v4.to_string(),
            next_serial: self.next_serial,
            node,
        };
        let text = toml::to_string(&stored).expect("strings, numbers and lists of strings always have a TOML form");
        format!("# What this authority has granted. Written by meshctl; keep it beside the authority's file.\n{text}")
    }

    /// Reads a ledger of the anchor's mesh.
    ///
    /// # Errors
    /// Says what is wrong and where.
    pub fn parse(text: &str, anchor: &TrustAnchor) -> Result<Self, LedgerError> {
        if text.len() > MAX_TEXT {
            return Err(LedgerError::Content(format!("longer than {MAX_TEXT} bytes")));
        }
        let stored: StoredLedger = toml::from_str(text).map_err(|error| LedgerError::Content(error.to_string()))?;
        if stored.version != 1 {
            let problem = format!("version {} was written by a newer meshctl: update this one", stored.version);
            return Err(LedgerError::Content(problem));
        }
        let mut ledger = Ledger::new(anchor);
        if stored.mesh != ledger.mesh.to_string() || stored.overlay != ledger.overlay_v4.to_string() {
            return Err(LedgerError::Content(format!("it belongs to mesh {} with {}", stored.mesh, stored.overlay)));
        }
        ledger.next_serial = stored.next_serial;
        if stored.node.len() > Ledger::MAX_ENTRIES {
            return Err(LedgerError::Full);
        }
        for stored in &stored.node {
            let entry = stored
                .entry()
                .and_then(|entry| entry.admission.check(anchor).map(|()| entry).map_err(|error| error.to_string()))
                .map_err(|problem| LedgerError::Content(format!("node `{}`: {problem}", stored.name)))?;
            if entry.admission.serial >= ledger.next_serial {
                return Err(LedgerError::Content(format!("node `{}`: serial is not below next_serial", stored.name)));
            }
            if ledger.entries.insert(entry.admission.node, entry).is_some() {
                return Err(LedgerError::Content(format!("node `{}`: its id stands twice", stored.name)));
            }
        }
        Ok(ledger)
    }
}

impl From<&LedgerEntry> for StoredEntry {
    fn from(entry: &LedgerEntry) -> Self {
        let admission = &entry.admission;
        Self {
            name: admission.name.to_string(),
            id: admission.node.to_string(),
            address: admission.address_v4.to_string(),
            prefixes: admission.prefixes.iter().map(ToString::to_string).collect(),
            shared: admission.shares.iter().map(|(prefix, priority)| format!("{prefix}={priority}")).collect(),
            tags: admission.tags.iter().map(ToString::to_string).collect(),
            authority: admission.permissions.authority,
            relay: admission.permissions.relay,
            serial: admission.serial,
            wireguard_key: entry.keys.map(|keys| keys.wireguard.to_string()),
            verifying_key: entry.keys.map(|keys| keys.verifying.to_string()),
            not_after: entry.not_after.to_string(),
            revoked: entry.revoked.map(|at| at.to_string()),
        }
    }
}

impl StoredEntry {
    fn entry(&self) -> Result<LedgerEntry, String> {
        let admission = Admission {
            node: parse(&self.id, "id")?,
            name: parse(&self.name, "name")?,
            address_v4: parse(&self.address, "address")?,
            prefixes: self.prefixes.iter().map(|prefix| parse(prefix, "prefixes")).collect::<Result<_, _>>()?,
            tags: self.tags.iter().map(|tag| parse(tag, "tags")).collect::<Result<_, _>>()?,
            permissions: Permissions { authority: self.authority, relay: self.relay },
            serial: self.serial,
            shares: self.shared.iter().map(|text| share(text)).collect::<Result<_, _>>()?,
        };
        let keys = match (&self.wireguard_key, &self.verifying_key) {
            (Some(wireguard), Some(verifying)) => Some(PublicKeys {
                wireguard: parse(wireguard, "wireguard_key")?,
                verifying: parse(verifying, "verifying_key")?,
            }),
            (None, None) => None,
            _ => return Err("it has one key of two".into()),
        };
        let revoked = self.revoked.as_deref().map(|at| time(at, "revoked")).transpose()?;
        Ok(LedgerEntry { admission, keys, not_after: time(&self.not_after, "not_after")?, revoked })
    }
}

fn share(text: &str) -> Result<(IpNet, Priority), String> {
    let (prefix, priority) = text.split_once('=').ok_or("shared: expected PREFIX=PRIORITY")?;
    Ok((parse(prefix, "shared")?, parse(priority, "shared")?))
}

fn parse<T: std::str::FromStr<Err: std::fmt::Display>>(text: &str, key: &str) -> Result<T, String> {
    text.parse().map_err(|error| format!("{key}: {error}"))
}

fn time(text: &str, key: &str) -> Result<UnixTime, String> {
    let stamp: jiff::Timestamp = parse(text, key)?;
    let secs = u64::try_from(stamp.as_second()).map_err(|_| format!("{key}: before 1970"))?;
    Ok(UnixTime::from_secs(secs))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::testing::{NOW, authority, keys};
    use crate::identity::{NodeId, Wish};
    use proptest::prelude::*;

    fn ledger() -> Ledger {
        let anchor = authority().anchor().clone();
        let mut ledger = Ledger::new(&anchor);
        for (seed, name) in [(3, "web"), (1, "db"), (0, "new")] {
            let wish = Wish {
                name: name.parse().unwrap(),
                address_v4: None,
                prefixes: vec![format!("192.168.{seed}.0/24").parse().unwrap()],
                shares: match seed {
                    3 => [("192.168.3.0/24".parse().unwrap(), Priority::DEFAULT)].into_iter().collect(),
                    _ => Default::default(),
                },
                tags: vec!["x".parse().unwrap()],
                permissions: Permissions { authority: seed == 1, relay: seed == 3 },
                keys: (seed != 0).then(|| keys(seed).public()),
                replace_keys: false,
                not_after: NOW,
            };
            ledger.admit(&wish, NodeId::from_bytes([seed; 16]), &anchor, UnixTime::EPOCH).unwrap();
        }
        ledger.revoke(&"db".parse().unwrap(), NOW).unwrap();
        ledger
    }

    fn refusal(text: &str) -> String {
        Ledger::parse(text, authority().anchor()).unwrap_err().to_string()
    }

    #[test]
    fn text_round_trips_and_is_deterministic() {
        let text = ledger().to_text();
        let back = Ledger::parse(&text, authority().anchor()).unwrap();
        assert_eq!(back, ledger());
        assert_eq!(back.to_text(), text);
        let at = |name: &str| text.find(&format!("name = \"{name}\"")).unwrap();
        assert!(at("db") < at("new") && at("new") < at("web"), "{text}");
    }

    #[test]
    fn errors_say_what_and_where() {
        let text = ledger().to_text();
        assert!(refusal(&text.replace("10.77.0.2", "10.99.0.2")).contains("node `db`: "));
        assert!(refusal(&text.replace("serial = 2\n", "serial = -2\n")).contains("line "));
        assert!(refusal(&text.replace("version = 1", "version = 2")).contains("newer meshctl"));
        assert!(refusal(&text.replace("not_after = \"2026", "not_after = \"x")).contains("not_after: "));
        assert!(refusal(&text.replace("next_serial = 4", "next_serial = 3")).contains("next_serial"));
        assert!(refusal(&text.replace(&"03".repeat(16), &"01".repeat(16))).contains("twice"));
        assert!(refusal(&text.replace(&"33".repeat(16), &"34".repeat(16))).contains("belongs to mesh"));
        assert!(refusal(&text.replace("relay = true", "rely = true")).contains("rely"));
        for wrong in ["192.168.3.0/24", "192.168.3.0/24=0", "192.168.4.0/24=100"] {
            assert!(refusal(&text.replace("192.168.3.0/24=100", wrong)).contains("share"), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn damaged_text_never_panics(at in 0..1000_usize, with in "\\PC{0,3}") {
            let mut text = ledger().to_text();
            let at = at % text.len();
            text.replace_range(at..=at, &with);
            let _ = Ledger::parse(&text, authority().anchor());
        }
    }
}
