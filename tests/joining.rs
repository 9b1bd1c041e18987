//! Joining from outside: one invite admits one host, whoever else tries, whatever is lost or altered on the way.

mod fixtures;

use std::time::Duration;

use fixtures::*;
use meshd::identity::*;
use meshd::time::UnixTime;
use meshd::wire::join::{JoinAttempt, JoinMember, JoinRefusal, JoinReply, JoinRequest, Joined, LENGTH, check_mac};
use meshd::wire::{DropReason, Recipient};
use proptest::prelude::*;

/// The inviting member, node 1, with the authority's key.
struct Member {
    keys: NodeKeys,
    book: InviteBook,
    draws: u64,
}

impl Member {
    fn new() -> Self {
        let mut book = InviteBook::default();
        book.add(invite(2), NOW).unwrap();
        Self { keys: keys(1), book, draws: 1000 }
    }

    /// Answers one datagram as the daemon does.
    fn answer(&mut self, datagram: &[u8], now: UnixTime) -> Option<Vec<u8>> {
        let recipient = Recipient::new(&self.keys.wireguard);
        let request = JoinRequest::open(&recipient, datagram).ok()?;
        let shown = request.presentation();
        let outcome = match self.book.present(&shown, now) {
            Ok(grant) => {
                let issued = grant.issue(Some(&authority()), &self.keys.signing, &anchor(), now).unwrap();
                self.book.issued(grant.invite, &issued);
                Ok(Joined { certificate: issued, members: members(1) })
            }
            Err(Refusal::Unproven) => return None,
            Err(refusal) => Err(JoinRefusal::Invite(refusal)),
        };
        let key = self.book.get(shown.invite)?.key.clone();
        self.draws += 1;
        request.reply(&key, &JoinReply { now, outcome }, &mut rng(self.draws))
    }
}

fn members(count: u8) -> Vec<JoinMember> {
    let member = |number: u8| JoinMember {
        name: format!("{}{number}", "m".repeat(62)).parse().unwrap(),
        wireguard_key: keys(number).public().wireguard,
        endpoint: format!("[2001:db8::{number}]:7655").parse().unwrap(),
    };
    (1..=count).map(member).collect()
}

fn attempt(token: &Token, by: u8, seed: u64) -> (Vec<u8>, JoinAttempt) {
    JoinAttempt::new(token, &keys(by), &["203.0.113.2:7655".parse().unwrap()], NOW, &mut rng(seed)).unwrap()
}

fn outcome(member: &mut Member, token: &Token, by: u8, now: UnixTime) -> Option<Result<Joined, JoinRefusal>> {
    let (datagram, attempt) = attempt(token, by, u64::from(by));
    let reply = member.answer(&datagram, now)?;
    assert!(reply.len() <= datagram.len());
    Some(attempt.open(&reply).unwrap().outcome)
}

#[test]
fn a_host_with_a_token_gets_its_certificate() {
    let mut member = Member::new();
    let (datagram, attempt) = attempt(&token(2), 2, 1);
    assert_eq!(datagram.len(), LENGTH);
    assert!(check_mac(&keys(1).public().wireguard, &datagram));
    assert!(!check_mac(&keys(3).public().wireguard, &datagram));
    let reply = attempt.open(&member.answer(&datagram, NOW).unwrap()).unwrap();
    assert_eq!(reply.now, NOW);
    let joined = reply.outcome.unwrap();
    assert_eq!(joined.certificate.certificate().keys(), keys(2).public());
    assert_eq!(joined.certificate.certificate().admission(), admission(2));
    assert_eq!(joined.members, members(1));
    assert_eq!(SignedCertificate::verify(joined.certificate.bytes(), &anchor()), Ok(joined.certificate));
}

#[test]
fn of_a_hundred_presenters_exactly_one_is_bound() {
    let mut member = Member::new();
    let outcomes: Vec<_> = (2..102).map(|by| outcome(&mut member, &token(2), by, NOW).unwrap()).collect();
    assert!(outcomes[0].is_ok());
    assert!(outcomes[1..].iter().all(|outcome| *outcome == Err(JoinRefusal::Invite(Refusal::Used))));
    let bound =
        InviteState::Bound { keys: keys(2).public(), certificate: outcomes[0].clone().ok().map(|j| j.certificate) };
    assert_eq!(member.book.get(token(2).invite).unwrap().state, bound);
}

#[test]
fn one_key_of_two_is_another_host() {
    let mut member = Member::new();
    outcome(&mut member, &token(2), 2, NOW).unwrap().unwrap();
    for (wireguard, signing) in [(2, 3), (3, 2)] {
        let mixed = NodeKeys { wireguard: keys(wireguard).wireguard, signing: keys(signing).signing };
        let (datagram, attempt) = JoinAttempt::new(&token(2), &mixed, &[], NOW, &mut rng(1)).unwrap();
        let reply = attempt.open(&member.answer(&datagram, NOW).unwrap()).unwrap();
        assert_eq!(reply.outcome, Err(JoinRefusal::Invite(Refusal::Used)));
    }
}

#[test]
fn the_same_host_may_ask_again_until_the_invite_expires() {
    let mut member = Member::new();
    let first = outcome(&mut member, &token(2), 2, NOW).unwrap().unwrap();
    let later = NOW + DAY - Duration::from_secs(1);
    assert_eq!(outcome(&mut member, &token(2), 2, later), Some(Ok(first)), "the same certificate");
    assert_eq!(outcome(&mut member, &token(2), 2, NOW + DAY), Some(Err(JoinRefusal::Invite(Refusal::Expired))));
    let mut fresh = Member::new();
    assert_eq!(outcome(&mut fresh, &token(2), 2, NOW + DAY), Some(Err(JoinRefusal::Invite(Refusal::Expired))));
}

#[test]
fn a_withdrawn_invite_admits_nobody() {
    let mut member = Member::new();
    assert!(member.book.withdraw(token(2).invite));
    assert_eq!(outcome(&mut member, &token(2), 2, NOW), Some(Err(JoinRefusal::Invite(Refusal::Withdrawn))));
    let mut used = Member::new();
    outcome(&mut used, &token(2), 2, NOW).unwrap().unwrap();
    assert!(!used.book.withdraw(token(2).invite), "what was used is revoked, not withdrawn");
}

#[test]
fn who_proves_nothing_gets_silence_and_changes_nothing() {
    let mut member = Member::new();
    let guessed = Token { secret: InviteSecret::from_bytes([0; 32]), ..token(2) };
    let unknown = Token { invite: InviteId::from_bytes([9; 16]), ..token(2) };
    assert_eq!(outcome(&mut member, &guessed, 3, NOW), None);
    assert_eq!(outcome(&mut member, &unknown, 3, NOW), None);
    assert_eq!(member.book.get(token(2).invite).unwrap().state, InviteState::Open);
    let other_name = Token { name: "web3".parse().unwrap(), ..token(2) };
    let refused = outcome(&mut member, &other_name, 3, NOW);
    assert_eq!(refused, Some(Err(JoinRefusal::Invite(Refusal::OtherName))));
    assert_eq!(member.book.get(token(2).invite).unwrap().state, InviteState::Open);
    assert!(outcome(&mut member, &token(2), 2, NOW).unwrap().is_ok());
}

#[test]
fn a_proof_is_for_one_request_only() {
    // Someone who opened a request (the member itself) shows its proof for keys of its own.
    let mut member = Member::new();
    let (datagram, _) = attempt(&token(2), 2, 1);
    let keys_1 = keys(1);
    let recipient = Recipient::new(&keys_1.wireguard);
    let honest = JoinRequest::open(&recipient, &datagram).unwrap();
    let (other, _) = attempt(&token(2), 3, 2);
    let rogue = JoinRequest::open(&recipient, &other).unwrap();
    let mixed = Presentation { proof: honest.presentation().proof, ..rogue.presentation() };
    assert_eq!(member.book.present(&mixed, NOW), Err(Refusal::Unproven));
}

#[test]
fn altered_datagrams_are_ignored_on_both_sides() {
    let mut member = Member::new();
    let (datagram, attempt) = attempt(&token(2), 2, 1);
    for bit in (0..datagram.len() * 8).step_by(7) {
        let mut flipped = datagram.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(member.answer(&flipped, NOW), None, "bit {bit}");
    }
    for length in [0, 1, 4, 36, LENGTH - 1] {
        assert_eq!(member.answer(&datagram[..length], NOW), None);
    }
    let reply = member.answer(&datagram, NOW).unwrap();
    for bit in 0..reply.len() * 8 {
        let mut flipped = reply.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert!(attempt.open(&flipped).is_err(), "bit {bit}");
    }
    for end in 0..reply.len() {
        assert!(attempt.open(&reply[..end]).is_err(), "cut at {end}");
    }
}

#[test]
fn a_reply_is_for_one_attempt_and_from_one_who_knows_the_invite() {
    let mut member = Member::new();
    let (first, _) = attempt(&token(2), 2, 1);
    let (second, attempt) = attempt(&token(2), 2, 2);
    let reply = member.answer(&first, NOW).unwrap();
    assert_eq!(attempt.open(&reply).unwrap_err(), DropReason::BadSeal, "of another attempt");
    // The member's key alone, stolen, is not enough to answer.
    let keys_1 = keys(1);
    let request = JoinRequest::open(&Recipient::new(&keys_1.wireguard), &second).unwrap();
    let guessed = InviteSecret::from_bytes([0; 32]).key(anchor().mesh, token(2).invite);
    let refusal = JoinReply { now: NOW, outcome: Err(JoinRefusal::Unavailable) };
    let forged = request.reply(&guessed, &refusal, &mut rng(5)).unwrap();
    assert_eq!(attempt.open(&forged).unwrap_err(), DropReason::BadSeal);
}

#[test]
fn the_inviter_cannot_give_what_the_authority_did_not() {
    let (datagram, attempt) = attempt(&token(2), 2, 1);
    let keys_1 = keys(1);
    let request = JoinRequest::open(&Recipient::new(&keys_1.wireguard), &datagram).unwrap();
    let given = |certificate: SignedCertificate| {
        let outcome = Ok(Joined { certificate, members: vec![] });
        let reply = request.reply(&token(2).key(), &JoinReply { now: NOW, outcome }, &mut rng(5)).unwrap();
        attempt.open(&reply).map(|reply| reply.outcome.is_ok())
    };
    let issue = |authority: Authority, number: u8, keys: PublicKeys| {
        authority.issue(&admission(number), &keys, &Term::offline(NOW)).unwrap()
    };
    assert_eq!(given(issue(authority(), 2, keys(2).public())), Ok(true));
    assert_eq!(given(issue(authority_of(0x33, 0xa2), 2, keys(2).public())), Err(DropReason::NotAdmitted));
    assert_eq!(given(issue(authority_of(0x34, 0xa1), 2, keys(2).public())), Err(DropReason::NotAdmitted));
    assert_eq!(given(issue(authority(), 2, keys(3).public())), Err(DropReason::NotAdmitted), "other keys");
    assert_eq!(given(issue(authority(), 3, keys(2).public())), Err(DropReason::NotAdmitted), "another name");
}

#[test]
fn no_reply_is_longer_than_its_request() {
    let prefixes = (0..16).map(|i| format!("2001:db8:{i:x}::/48").parse().unwrap()).collect();
    let tags = (10..23).map(|i| format!("{i}{}", "x".repeat(30)).parse().unwrap()).collect();
    let large = Admission { prefixes, tags, ..admission(2) };
    let (datagram, attempt) = attempt(&token(2), 2, 1);
    let keys_1 = keys(1);
    let request = JoinRequest::open(&Recipient::new(&keys_1.wireguard), &datagram).unwrap();
    for (admission, fitting) in [(admission(2), 4), (large, 1)] {
        let certificate = authority().issue(&admission, &keys(2).public(), &Term::offline(NOW)).unwrap();
        let outcome = Ok(Joined { certificate, members: members(9) });
        let reply = request.reply(&token(2).key(), &JoinReply { now: NOW, outcome }, &mut rng(5)).unwrap();
        assert!(reply.len() <= LENGTH);
        assert_eq!(attempt.open(&reply).unwrap().outcome.unwrap().members, members(fitting));
    }
}

#[test]
fn a_member_without_the_authoritys_key_admits_under_a_delegation() {
    let delegation = delegation(&admission(2));
    let mut book = InviteBook::default();
    book.add(Invite { delegation: Some(delegation), ..invite(2) }, NOW).unwrap();
    let (datagram, _) = attempt(&token(2), 2, 1);
    let keys_1 = keys(1);
    let request = JoinRequest::open(&Recipient::new(&keys_1.wireguard), &datagram).unwrap();
    let grant = book.present(&request.presentation(), NOW).unwrap();
    let issued = grant.issue(None, &keys(1).signing, &anchor(), NOW).unwrap();
    assert_eq!(issued.issuer(), Issuer::Delegate(keys(1).public().verifying));
    let without = Grant { delegation: None, ..grant };
    assert!(without.issue(None, &keys(1).signing, &anchor(), NOW).is_err());
}

#[test]
fn the_book_survives_a_restart_and_forgets_what_is_over() {
    let mut member = Member::new();
    member.book.add(invite(3), NOW).unwrap();
    member.book.add(invite(4), NOW).unwrap();
    member.book.withdraw(token(3).invite);
    let first = outcome(&mut member, &token(2), 2, NOW).unwrap();
    let text = member.book.to_armor();
    let mut again = Member { book: InviteBook::from_armor(&text, &anchor()).unwrap(), ..Member::new() };
    assert_eq!(*again.book.to_armor(), *text);
    assert_eq!(outcome(&mut again, &token(2), 2, NOW), Some(first));
    assert_eq!(outcome(&mut again, &token(2), 5, NOW), Some(Err(JoinRefusal::Invite(Refusal::Used))));
    assert_eq!(outcome(&mut again, &token(3), 3, NOW), Some(Err(JoinRefusal::Invite(Refusal::Withdrawn))));
    assert!(outcome(&mut again, &token(4), 4, NOW).unwrap().is_ok());
    assert!(InviteBook::from_armor(&text, authority_of(0x34, 0xa1).anchor()).is_err(), "another mesh");
    for end in (0..text.trim_end().len()).step_by(13) {
        assert!(InviteBook::from_armor(&text[..end], &anchor()).is_err(), "cut at {end}");
    }
    again.book.purge(NOW + DAY + InviteBook::KEEP);
    assert_eq!(again.book.iter().count(), 0);
}

#[test]
fn the_book_is_bounded() {
    let mut book = InviteBook::default();
    let numbered = |i: usize| {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&i.to_be_bytes());
        let admission = Admission { name: format!("n{i}").parse().unwrap(), ..admission(2) };
        Invite { id: InviteId::from_bytes(bytes), admission, ..invite(2) }
    };
    for i in 0..InviteBook::MAX {
        book.add(numbered(i), NOW).unwrap();
    }
    assert_eq!(book.add(numbered(InviteBook::MAX), NOW).err(), Some(InviteBookError::Full));
    let mut book = InviteBook::default();
    book.add(numbered(1), NOW).unwrap();
    assert!(matches!(book.add(numbered(1), NOW), Err(InviteBookError::Pending(_))));
    let same_name = Invite { id: InviteId::from_bytes([8; 16]), ..numbered(1) };
    assert!(matches!(book.add(same_name, NOW), Err(InviteBookError::Pending(_))));
    for expires in [NOW, NOW + InviteBook::LONGEST + Duration::from_secs(1)] {
        assert_eq!(book.add(Invite { expires, ..numbered(2) }, NOW).err(), Some(InviteBookError::Term));
    }
}

#[test]
fn tokens_round_trip_and_slips_are_caught() {
    let text = token(2).to_text();
    let back: Token = format!(" {}\n", *text).parse().unwrap();
    assert_eq!(*back.to_text(), *text);
    assert_eq!(back.anchor().unwrap(), anchor());
    assert!(text.len() < 400 && text.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-' || c == b'_'));
    for end in 0..text.len() {
        assert!(text[..end].parse::<Token>().is_err(), "cut at {end}");
    }
    for at in 7..text.len() {
        for other in [b'A', b'b', b'7', b'_', b' ', b'='] {
            let mut typo = text.as_bytes().to_vec();
            if typo[at] != other {
                typo[at] = other;
                assert_eq!(String::from_utf8(typo).unwrap().parse::<Token>().unwrap_err(), TokenError::Damaged, "{at}");
            }
        }
    }
    assert_eq!("meshd2-abc".parse::<Token>().unwrap_err(), TokenError::Newer("2".into()));
    for text in ["", "meshd", "meshd-", "meshd\u{1b}-", "MESHD1-x", "meshd12345-"] {
        assert_eq!(text.parse::<Token>().unwrap_err(), TokenError::Prefix, "{text}");
    }
    let nowhere = Token { endpoints: vec![], ..token(2) };
    assert!(matches!(nowhere.to_text().parse::<Token>(), Err(TokenError::Content(_))));
    let shown = format!("{:?}", token(2));
    assert!(shown.contains("web2") && !shown.contains("87, 87") && !shown.contains("5757"), "{shown}");
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..1300), text in "(meshd1-)?\\PC{0,300}") {
        let keys = keys(1);
        prop_assert!(JoinRequest::open(&Recipient::new(&keys.wireguard), &bytes).is_err());
        let (_, attempt) = attempt(&token(2), 2, 1);
        prop_assert!(attempt.open(&bytes).is_err());
        prop_assert!(text.parse::<Token>().is_err());
        let _ = InviteBook::from_armor(&text, &anchor());
        let _ = Authority::from_armor(&text, None);
    }

    /// Content from someone who passed mac, seal and checksum.
    #[test]
    fn arbitrary_armored_content_never_panics(bytes in proptest::collection::vec(any::<u8>(), 1..300)) {
        use meshd::identity::armor::{ArmorKind, write};
        let _ = InviteBook::from_armor(&write(ArmorKind::Invites, &bytes), &anchor());
        let _ = Authority::from_armor(&write(ArmorKind::Authority, &bytes), None);
        prop_assert!(NodeKeys::from_armor(&write(ArmorKind::Identity, &bytes)).is_err());
    }
}
