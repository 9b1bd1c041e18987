//! Who is answered, and how often.

use std::net::IpAddr;

use super::zone::Zone;
use crate::control::limit::Bucket;
use crate::time::Instant;

/// Questions a second from this host, and at once: ten times what a busy web server's programs ask, and a tenth of a core.
const LOCAL: (f64, f64) = (20_000.0, 20_000.0);
/// The same from all members and guests together: so much as a mesh of a thousand asks, and nothing that this host would feel.
const MESH: (f64, f64) = (2_000.0, 4_000.0);

/// Who is answered now.
#[derive(Debug)]
pub(super) struct Askers {
    local: Bucket,
    mesh: Bucket,
}

/// What becomes of a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admission {
    /// It is answered.
    Answered,
    /// It comes from neither this host nor the mesh: silence.
    Stranger,
    /// There were too many: silence, and whoever asked asks again.
    TooMany,
}

impl Askers {
    pub(super) fn new(now: Instant) -> Askers {
        Askers { local: Bucket::new(LOCAL.0, LOCAL.1, now), mesh: Bucket::new(MESH.0, MESH.1, now) }
    }

    /// Judges a question by where it comes from, and counts it.
    pub(super) fn admit(&mut self, zone: &Zone, source: IpAddr, now: Instant) -> Admission {
        let bucket = match source.to_canonical() {
            source if source.is_loopback() || zone.own.contains(&source) => &mut self.local,
            source if zone.askers.contains(&source) => &mut self.mesh,
            _ => return Admission::Stranger,
        };
        if bucket.take(1.0, now) { Admission::Answered } else { Admission::TooMany }
    }
}

#[cfg(test)]
mod tests {
    use super::super::picture::tests::picture;
    use super::*;
    use std::time::Duration;

    #[test]
    fn strangers_get_nothing_and_members_cannot_keep_this_host_waiting() {
        let zone = Zone::new(&picture(), 1);
        let mut askers = Askers::new(Instant::ZERO);
        let mut admit = |source: &str, now| askers.admit(&zone, source.parse().unwrap(), now);
        for stranger in ["10.77.0.9", "192.0.2.1", "fd12:3456:789a::9", "2001:db8::1"] {
            assert_eq!(admit(stranger, Instant::ZERO), Admission::Stranger, "{stranger}");
        }
        let answered = (0..10_000).filter(|_| admit("10.77.0.2", Instant::ZERO) == Admission::Answered).count();
        assert_eq!(answered, 4_000);
        assert_eq!(admit("10.78.0.2", Instant::ZERO), Admission::TooMany);
        for own in ["127.0.0.1", "::1", "10.77.0.1", "fd12:3456:789a::a4d:1", "::ffff:10.77.0.1"] {
            assert_eq!(admit(own, Instant::ZERO), Admission::Answered, "{own}");
        }
        assert_eq!(admit("10.78.0.2", Instant::ZERO + Duration::from_millis(1)), Admission::Answered);
    }
}
