//! What a node's rules come to, in one number that others can compare.

use sha2::{Digest, Sha256};

use crate::config::Allow;
use crate::identity::MeshId;

/// Condenses rules: equal where they let the same in, whatever their order and spelling; 0 where there is none, and then only.
///
/// Made of the rules as they are written, not of the members they name, so that two nodes agree also while one of them
/// does not know a member yet. The mesh's id is in it, so that rules that are alike do not look alike elsewhere.
pub fn digest(mesh: &MeshId, rules: &[Allow]) -> u64 {
    if rules.is_empty() {
        return 0;
    }
    let mut lines: Vec<String> = rules.iter().map(line).collect();
    lines.sort();
    lines.dedup();
    let mut hash = Sha256::new().chain_update(b"meshd policy").chain_update(mesh.as_bytes());
    for line in lines {
        hash.update(line.as_bytes());
        hash.update([b'\n']);
    }
    let mut sum = [0; 8];
    sum.copy_from_slice(&hash.finalize()[..8]);
    u64::from_be_bytes(sum).max(1)
}

/// A rule as one line, without what makes no difference.
fn line(rule: &Allow) -> String {
    let sorted = |mut words: Vec<String>| {
        words.sort();
        words.dedup();
        words.join(" ")
    };
    let texts = |list: &[_]| sorted(list.iter().map(ToString::to_string).collect());
    let (from, to) = (texts(&rule.from), texts(&rule.to));
    format!("{from};{to};{}", sorted(rule.ports.iter().map(ToString::to_string).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(from: &[&str], to: &[&str], ports: &[&str]) -> Allow {
        let selectors = |list: &[&str]| list.iter().map(|text| text.parse().unwrap()).collect();
        Allow {
            from: selectors(from),
            to: selectors(to),
            ports: ports.iter().map(|text| text.parse().unwrap()).collect(),
        }
    }

    #[test]
    fn rules_that_let_the_same_in_have_the_same_digest_and_others_another() {
        let mesh = MeshId::from_bytes([7; 16]);
        let web = rule(&["tag:web", "db1"], &[], &["tcp/80", "icmp"]);
        let db = rule(&["any"], &["tag:db"], &["tcp/3306"]);
        let both = digest(&mesh, &[web.clone(), db.clone()]);
        assert_eq!(digest(&mesh, &[]), 0);
        let turned = rule(&["db1", "tag:web", "db1"], &[], &["icmp", "tcp/80"]);
        assert_eq!(both, digest(&mesh, &[db.clone(), turned, db.clone()]));
        let others = [
            digest(&mesh, std::slice::from_ref(&web)),
            digest(&mesh, std::slice::from_ref(&db)),
            digest(&mesh, &[web.clone(), rule(&["any"], &["tag:db"], &["tcp/3307"])]),
            digest(&mesh, &[web.clone(), rule(&["tag:db"], &["any"], &["tcp/3306"])]),
            digest(&MeshId::from_bytes([8; 16]), &[web, db]),
        ];
        assert!(!others.contains(&both) && !others.contains(&0), "{others:?} {both}");
    }
}
