//! The authorities that are trusted, this node's own certificate from its file, and certificates that an operator brings.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::driver::Driver;
use crate::api::{
    Answer, ApiError, Certificates, CertificatesRequest, CertificatesTaken, ErrorKind, Gravity, MemberCertificate,
    PlannedAction, PlannedChange, PlannedEntry, Problem, SCHEMA, Timestamp, TouchedLink,
};
use crate::config::Config;
use crate::identity::{SignedCertificate, VerifyingKey};
use crate::platform::{clock, file};

/// Bytes of a certificate's file at most.
const CERTIFICATE_LIMIT: u64 = 64 * 1024;
/// Names that a refusal lists; a page of them helps nobody.
const NAMES: usize = 8;

/// What of the trust a changed configuration changes: read and checked, and not taken yet.
pub(super) struct Trust {
    /// The authorities, where the list is another.
    authorities: Option<Vec<VerifyingKey>>,
    /// This node's certificate, where its file has a newer one.
    certificate: Option<SignedCertificate>,
    /// The members that are gone then, none of which has a session.
    lost: Vec<String>,
}

impl Trust {
    /// What the plan says of it, beside the settings.
    pub(super) fn add_to(&self, changes: &mut Vec<PlannedChange>, touched: &mut Vec<TouchedLink>) {
        if let Some(signed) = &self.certificate {
            let name = format!("until {}, of authority {}", signed.certificate().not_after, signed.root());
            let entries = vec![PlannedEntry { action: PlannedAction::Change, name }];
            changes.push(PlannedChange { key: "certificate".into(), needs_restart: false, entries });
        }
        let ends = |peer: &String| TouchedLink { peer: peer.clone(), action: PlannedAction::Remove };
        touched.extend(self.lost.iter().map(ends));
    }
}

impl Driver {
    /// Reads what a changed configuration trusts, and what this node's certificate is by now.
    ///
    /// # Errors
    /// It cannot be taken: this node, or members that are connected, would rest on nobody any more.
    pub(super) fn read_trust(&self, new: &Config) -> Result<Trust, String> {
        let anchor = new.mesh.trust_anchor().map_err(|error| error.to_string())?;
        let current = self.engine.membership().anchor();
        if (anchor.mesh, anchor.overlay_v4) != (current.mesh, current.overlay_v4) {
            // Another mesh is nothing for a reload, and refused as such.
            return Ok(Trust { authorities: None, certificate: None, lost: Vec::new() });
        }
        let running = self.engine.certificate();
        let placed = read_certificate(&new.files.certificate)?;
        let certificate = match placed {
            Some(armor) => self.newer_certificate(&armor, new, &anchor)?,
            None => None,
        };
        let own = certificate.as_ref().unwrap_or(running);
        if !anchor.authorities.contains(&own.root()) {
            let root = own.root();
            return Err(format!(
                "mesh.authorities leaves out {root}, on which this node's own certificate rests: certify it anew first \
                 (meshctl authority certify)"
            ));
        }
        let outsiders = self.engine.outsiders(&anchor.authorities);
        let names = |connected: bool| {
            let those = outsiders.iter().filter(|outsider| outsider.connected == connected);
            let mut names: Vec<String> = those.map(|outsider| outsider.name.to_string()).collect();
            names.sort();
            names
        };
        let cut = names(true);
        if !cut.is_empty() {
            return Err(format!(
                "mesh.authorities leaves out the authority of connected members ({}): certify them anew first \
                 (meshctl authority certify); meshctl restart takes it all the same, and cuts them off",
                listed(&cut)
            ));
        }
        // Another key is for a restart anyway.
        let signs = self.engine.signing_key().filter(|_| new.files.authority == self.config.files.authority);
        if let Some(key) = signs.filter(|key| !anchor.authorities.contains(key)) {
            return Err(format!(
                "files.authority is the key of {key}, which mesh.authorities does not name: name the new key's file, or \
                 none, and take both over with meshctl restart"
            ));
        }
        let authorities = (anchor.authorities != current.authorities).then_some(anchor.authorities);
        Ok(Trust { authorities, certificate, lost: names(false) })
    }

    /// The certificate in this node's file, where it is newer than the one in use. An older one is no news: renewals write the
    /// file too, and a configuration management may put back what it knows.
    fn newer_certificate(
        &self,
        armor: &str,
        new: &Config,
        anchor: &crate::identity::TrustAnchor,
    ) -> Result<Option<SignedCertificate>, String> {
        let running = self.engine.certificate();
        if armor == running.to_armor() {
            return Ok(None);
        }
        let at = |why: String| format!("{}: {why}", new.files.certificate.display());
        let signed = SignedCertificate::from_armor(armor, anchor).map_err(|error| at(error.to_string()))?;
        let (placed, used) = (signed.certificate(), running.certificate());
        if (placed.node, placed.keys()) != (used.node, used.keys()) {
            return Err(at("it is of other keys than this node runs with; that takes a restart".into()));
        }
        if placed.name != new.node {
            return Err(at(format!("it names this node `{}`, but the configuration says `{}`", placed.name, new.node)));
        }
        let is_newer = (placed.issued, placed.serial) > (used.issued, used.serial);
        Ok(is_newer.then_some(signed))
    }

    /// Takes what was read. The new authorities come first, for the certificate may rest on one of them.
    ///
    /// # Errors
    /// The engine refuses; [`Driver::read_trust`] has looked before, so that this is for a state that changed in between.
    pub(super) fn take_trust(&mut self, trust: Trust) -> Result<(), String> {
        let (now, wall) = (clock::now(), clock::wall());
        let former = self.engine.membership().anchor().authorities.clone();
        if let Some(signed) = &trust.certificate {
            let mut both = former.clone();
            both.extend(Some(signed.root()).filter(|root| !former.contains(root)));
            self.engine.set_authorities(both, now).map_err(|error| error.to_string())?;
            self.engine.accept_certificate(signed.bytes(), now, wall).map_err(|error| error.to_string())?;
        }
        if let Some(authorities) = trust.authorities {
            self.engine.set_authorities(authorities, now).map_err(|error| error.to_string())?;
        }
        self.drain();
        Ok(())
    }

    /// Two authorities with members each: what is left to do.
    pub(super) fn trust_problem(&self) -> Option<Problem> {
        let followers = self.engine.followers();
        let held: Vec<_> = followers.iter().filter(|(_, count)| *count > 0).collect();
        if held.len() < 2 {
            return None;
        }
        let told: Vec<String> = held.iter().map(|(key, count)| format!("{count} on {key}")).collect();
        Some(Problem {
            gravity: Gravity::Notice,
            kind: "authorities".into(),
            peer: None,
            message: format!("members rest on {} authorities: {}", held.len(), told.join(", ")),
            advice: "meshctl authority says who; meshctl authority certify brings them to one".into(),
            since: None,
        })
    }

    /// The members' certificates.
    pub(super) fn certificates(&self) -> Certificates {
        let membership = self.engine.membership();
        let mut certificates: Vec<MemberCertificate> = membership
            .members()
            .map(|(node, member)| MemberCertificate {
                name: member.certificate().name.to_string(),
                node_id: node.to_string(),
                authority: member.certificate.root().to_string(),
                expires: Timestamp(member.certificate().not_after),
                is_self: node == self.engine.node(),
                certificate: STANDARD.encode(member.certificate.bytes()),
            })
            .collect();
        certificates.sort_by(|a, b| a.name.cmp(&b.name));
        let authorities = membership.anchor().authorities.iter().map(ToString::to_string).collect();
        Certificates { schema: SCHEMA, authorities, certificates }
    }

    /// Takes certificates of members from an operator and spreads them: all of them, or none.
    ///
    /// # Errors
    /// One is no certificate of a trusted authority, or its subject is not a member with these keys.
    pub(super) fn take_certificates(&mut self, request: &CertificatesRequest) -> Answer<CertificatesTaken> {
        let (now, wall) = (clock::now(), clock::wall());
        let conflict = |message: String| ApiError::new(ErrorKind::Conflict, message);
        let membership = self.engine.membership();
        let mut checked = Vec::new();
        for (place, encoded) in request.certificates.iter().enumerate() {
            let bytes = STANDARD
                .decode(encoded)
                .map_err(|error| ApiError::new(ErrorKind::BadRequest, format!("certificate {}: {error}", place + 1)))?;
            let signed = SignedCertificate::verify(&bytes, membership.anchor()).map_err(|error| {
                conflict(format!("certificate {}: {error}", place + 1))
                    .advise("name its authority in mesh.authorities here and on every node, and reload; then again")
            })?;
            let shown = signed.certificate();
            let keys = membership.get(shown.node).map(|member| member.certificate().keys());
            if keys != Some(shown.keys()) {
                return Err(conflict(format!("{} is no member with these keys", shown.name)));
            }
            checked.push(signed);
        }
        for signed in &checked {
            self.engine.accept_certificate(signed.bytes(), now, wall)?;
        }
        self.drain();
        Ok(CertificatesTaken { schema: SCHEMA, taken: checked.len() as u64 })
    }
}

fn read_certificate(path: &Path) -> Result<Option<String>, String> {
    match file::read(path, CERTIFICATE_LIMIT) {
        Ok(bytes) => String::from_utf8(bytes).map(Some).map_err(|_| format!("{}: it is not text", path.display())),
        // The daemon has its certificate; that the file is gone shows at the next start.
        Err(error) if error.is_missing() => Ok(None),
        Err(error) => Err(error.to_string()),
    }
}

fn listed(names: &[String]) -> String {
    let more = names.len().saturating_sub(NAMES);
    let told = names.iter().take(NAMES).cloned().collect::<Vec<_>>().join(", ");
    if more == 0 { told } else { format!("{told} and {more} more") }
}
