//! What a question gets.

use domain::base::iana::{Class, Opcode, OptRcode, Rcode, Rtype};
use domain::base::message_builder::{AdditionalBuilder, AnswerBuilder, PushError, TreeCompressor};
use domain::base::name::ToLabelIter;
use domain::base::{Message, MessageBuilder, Question, Record, Serial, ToName, Ttl};
use domain::rdata::{A, Aaaa, Ns, Ptr, Soa};

use super::zone::{Found, OwnedName, Records, Zone};

/// Bytes of an answer at most: what every resolver takes by UDP (RFC 1035 §4.2.1). A name has at most one address of each
/// family, and names are bounded ([`crate::config::Suffix::LIMIT`]); so nothing is ever cut short, and TCP is not needed.
pub const LARGEST: usize = 512;

/// How long an answer may be kept, and that there is none: not at all. A revoked node's name must be gone at once and a new
/// one be there, wherever it is asked for; the way to this server is a system call's, so that a cache would save nothing.
const TTL: Ttl = Ttl::ZERO;

/// What answers say of the size that this server takes by UDP (RFC 6891 §6.2.3): as most servers do, below every path's MTU.
const TAKEN: u16 = 1_232;

/// When others would look at the zone again. There are no others; a minute, should one ever ask.
const REFRESH: Ttl = Ttl::from_secs(60);

/// An answer under construction.
type Answer = AnswerBuilder<TreeCompressor<Vec<u8>>>;

/// What is said besides records.
#[derive(Clone, Copy)]
struct Verdict {
    rcode: OptRcode,
    /// Whether we are who knows.
    is_ours: bool,
}

impl Verdict {
    const fn refusal(rcode: OptRcode) -> Verdict {
        Verdict { rcode, is_ours: false }
    }
}

/// Answers one datagram; `None` is silence, for what is no question at all. Never larger than [`LARGEST`].
pub fn answer(zone: &Zone, datagram: &[u8]) -> Option<Vec<u8>> {
    let message = Message::from_slice(datagram).ok()?;
    let header = message.header();
    // An answer to an answer could go on for ever.
    if header.qr() {
        return None;
    }
    let edns = match edns(message) {
        Ok(edns) => edns,
        Err(()) => return bare(message, Rcode::FORMERR),
    };
    if header.opcode() != Opcode::QUERY {
        return bare(message, Rcode::NOTIMP);
    }
    let Ok(question) = message.sole_question() else { return bare(message, Rcode::FORMERR) };
    let respond = |verdict: Verdict, fill: &dyn Fn(&mut Answer) -> Result<(), PushError>, apex: Option<&OwnedName>| {
        compose(zone, message, edns.is_some(), verdict, fill, apex)
    };
    let nothing = |_: &mut Answer| Ok(());
    if edns.is_some_and(|version| version > 0) {
        return respond(Verdict::refusal(OptRcode::BADVERS), &nothing, None);
    }
    let refused = Verdict::refusal(OptRcode::REFUSED);
    if !matches!(question.qclass(), Class::IN | Class::ANY) || matches!(question.qtype(), Rtype::AXFR | Rtype::IXFR) {
        return respond(refused, &nothing, None);
    }
    let ours = |rcode| Verdict { rcode, is_ours: true };
    match zone.find(question.qname().iter_labels()) {
        Found::Elsewhere => respond(refused, &nothing, None),
        Found::Missing(apex) => respond(ours(OptRcode::NXDOMAIN), &nothing, Some(apex)),
        Found::There { apex, is_apex, records } => {
            let of_zone = is_apex && matches!(question.qtype(), Rtype::SOA | Rtype::NS | Rtype::ANY);
            let asked = records.filter(|records| has(records, question.qtype()));
            let fill = |answer: &mut Answer| {
                if of_zone {
                    push_zone(zone, apex, question.qtype(), answer)?;
                }
                asked.map_or(Ok(()), |records| push_records(records, &question, answer))
            };
            // Where there is nothing of that type, the SOA record says so (RFC 2308 §2.2).
            let negative = Some(apex).filter(|_| !of_zone && asked.is_none());
            respond(ours(OptRcode::NOERROR), &fill, negative)
        }
    }
}

/// The version of EDNS that a message speaks; `None` where it speaks none.
///
/// # Errors
/// The message cannot be read to its end, or has several (RFC 6891 §6.1.1).
fn edns(message: &Message<[u8]>) -> Result<Option<u8>, ()> {
    let mut version = None;
    let additional = message.additional().map_err(drop)?;
    for record in additional {
        let record = record.map_err(drop)?;
        if record.rtype() == Rtype::OPT {
            // The version is the second octet of what is a TTL elsewhere.
            let [_, found, ..] = record.ttl().as_secs().to_be_bytes();
            if version.replace(found).is_some() {
                return Err(());
            }
        }
    }
    Ok(version)
}

/// An answer that says no more than this code: where the question cannot be repeated.
fn bare(message: &Message<[u8]>, rcode: Rcode) -> Option<Vec<u8>> {
    let mut builder = MessageBuilder::from_target(Vec::with_capacity(12)).ok()?;
    let (asked, header) = (message.header(), builder.header_mut());
    header.set_id(asked.id());
    header.set_qr(true);
    header.set_opcode(asked.opcode());
    header.set_rd(asked.rd());
    header.set_rcode(rcode);
    Some(builder.finish())
}

fn compose(
    zone: &Zone,
    message: &Message<[u8]>,
    edns: bool,
    verdict: Verdict,
    fill: &dyn Fn(&mut Answer) -> Result<(), PushError>,
    apex: Option<&OwnedName>,
) -> Option<Vec<u8>> {
    let mut builder = MessageBuilder::from_target(TreeCompressor::new(Vec::with_capacity(LARGEST))).ok()?;
    builder.set_push_limit(LARGEST);
    let mut answer = builder.start_answer(message, verdict.rcode.rcode()).ok()?;
    answer.header_mut().set_aa(verdict.is_ours);
    fill(&mut answer).ok()?;
    let mut authority = answer.authority();
    if let Some(apex) = apex {
        authority.push(soa(zone, apex)).ok()?;
    }
    let mut additional: AdditionalBuilder<_> = authority.additional();
    if edns {
        let speak = additional.opt(|opt| {
            opt.set_udp_payload_size(TAKEN);
            opt.set_rcode(verdict.rcode);
            Ok(())
        });
        speak.ok()?;
    }
    Some(additional.finish().into_target())
}

fn has(records: &Records, rtype: Rtype) -> bool {
    match rtype {
        Rtype::A => records.v4.is_some(),
        Rtype::AAAA => records.v6.is_some(),
        Rtype::PTR => records.name.is_some(),
        Rtype::ANY => true,
        _ => false,
    }
}

fn push_records<N: ToName>(records: &Records, question: &Question<N>, answer: &mut Answer) -> Result<(), PushError> {
    let wanted = |rtype| question.qtype() == rtype || question.qtype() == Rtype::ANY;
    let name = question.qname();
    if let Some(address) = records.v4.filter(|_| wanted(Rtype::A)) {
        answer.push((name, Class::IN, TTL, A::new(address)))?;
    }
    if let Some(address) = records.v6.filter(|_| wanted(Rtype::AAAA)) {
        answer.push((name, Class::IN, TTL, Aaaa::new(address)))?;
    }
    if let Some(target) = records.name.as_ref().filter(|_| wanted(Rtype::PTR)) {
        answer.push((name, Class::IN, TTL, Ptr::new(target)))?;
    }
    Ok(())
}

/// What the beginning of a zone has.
fn push_zone(zone: &Zone, apex: &OwnedName, asked: Rtype, answer: &mut Answer) -> Result<(), PushError> {
    if asked != Rtype::NS {
        answer.push(soa(zone, apex))?;
    }
    if asked != Rtype::SOA {
        answer.push((apex, Class::IN, TTL, Ns::new(&zone.server)))?;
    }
    Ok(())
}

fn soa<'a>(zone: &'a Zone, apex: &'a OwnedName) -> Record<&'a OwnedName, Soa<&'a OwnedName>> {
    let data = Soa::new(&zone.server, &zone.contact, Serial(zone.serial), REFRESH, REFRESH, REFRESH, TTL);
    Record::new(apex, Class::IN, TTL, data)
}

#[cfg(test)]
mod tests {
    use super::super::picture::tests::picture;
    use super::*;
    use domain::base::Name;
    use domain::rdata::AllRecordData;
    use proptest::prelude::*;

    /// A question, as a resolver asks it.
    fn ask(name: &str, rtype: Rtype, edns: bool) -> Vec<u8> {
        let mut builder = MessageBuilder::new_vec();
        builder.header_mut().set_id(0x1234);
        builder.header_mut().set_rd(true);
        let mut question = builder.question();
        question.push((name.parse::<Name<Vec<u8>>>().unwrap(), rtype)).unwrap();
        let mut additional = question.additional();
        if edns {
            let speak = additional.opt(|opt| {
                opt.set_udp_payload_size(4_096);
                Ok(())
            });
            speak.unwrap();
        }
        additional.finish()
    }

    /// An answer in one line: code, flags, and records by section.
    fn shown(bytes: &[u8]) -> String {
        let message = Message::from_slice(bytes).unwrap();
        let header = message.header();
        assert!(header.qr() && !header.ra() && !header.tc() && header.rd() && header.id() == 0x1234);
        let mut out = message.opt_rcode().to_string();
        if header.aa() {
            out += " aa";
        }
        let sections = [message.answer().unwrap(), message.authority().unwrap(), message.additional().unwrap()];
        for (mark, section) in ["=", "~", "+"].into_iter().zip(sections) {
            for record in section {
                let record = record.unwrap();
                let data = record.to_record::<AllRecordData<_, _>>().unwrap().unwrap();
                match data.data() {
                    AllRecordData::Opt(_) => out += " edns",
                    other => {
                        assert_eq!(record.ttl(), TTL);
                        out += &format!(" {mark}{} {} {other}", record.owner(), record.rtype());
                    }
                }
            }
        }
        out
    }

    fn told(name: &str, rtype: Rtype) -> String {
        shown(&answer(&Zone::new(&picture(), 7), &ask(name, rtype, false)).unwrap())
    }

    #[test]
    fn each_question_gets_what_the_zone_has() {
        let soa = "~prod SOA web1.prod. hostmaster.prod. 7 60 60 60 0";
        for (name, rtype, expected) in [
            ("db1.prod", Rtype::A, "NOERROR aa =db1.prod A 10.77.0.2".to_owned()),
            ("dB1.PrOd", Rtype::A, "NOERROR aa =dB1.PrOd A 10.77.0.2".to_owned()),
            ("db1.prod", Rtype::AAAA, "NOERROR aa =db1.prod AAAA fd12:3456:789a::a4d:2".to_owned()),
            ("db1.prod", Rtype::MX, format!("NOERROR aa {soa}")),
            ("old.forward.prod", Rtype::A, "NOERROR aa =old.forward.prod A 192.0.2.7".to_owned()),
            ("old.forward.prod", Rtype::AAAA, format!("NOERROR aa {soa}")),
            ("forward.prod", Rtype::A, format!("NOERROR aa {soa}")),
            ("gone.prod", Rtype::A, format!("NXDOMAIN aa {soa}")),
            ("prod", Rtype::A, format!("NOERROR aa {soa}")),
            ("prod", Rtype::SOA, format!("NOERROR aa {}", soa.replace('~', "="))),
            ("prod", Rtype::NS, "NOERROR aa =prod NS web1.prod.".to_owned()),
            ("2.0.77.10.in-addr.arpa", Rtype::PTR, "NOERROR aa =2.0.77.10.in-addr.arpa PTR db1.prod.".to_owned()),
            (
                "9.0.77.10.in-addr.arpa",
                Rtype::PTR,
                "NXDOMAIN aa ~77.10.in-addr.arpa SOA web1.prod. hostmaster.prod. 7 60 60 60 0".to_owned(),
            ),
            ("example.com", Rtype::A, "REFUSED".to_owned()),
            ("1.0.78.10.in-addr.arpa", Rtype::PTR, "REFUSED".to_owned()),
            ("prod", Rtype::AXFR, "REFUSED".to_owned()),
        ] {
            assert_eq!(told(name, rtype), expected, "{name} {rtype}");
        }
        let any = told("db1.prod", Rtype::ANY);
        assert!(any.contains("A 10.77.0.2") && any.contains("AAAA fd12"), "{any}");
    }

    #[test]
    fn what_is_no_plain_question_is_told_so_or_gets_silence() {
        let zone = Zone::new(&picture(), 7);
        let plain = ask("db1.prod", Rtype::A, true);
        assert!(shown(&answer(&zone, &plain).unwrap()).ends_with(" edns"));
        let with = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut question = plain.clone();
            change(&mut question);
            answer(&zone, &question).map(|bytes| shown(&bytes))
        };
        assert_eq!(with(&|question| question[2] |= 0x80), None, "an answer");
        assert_eq!(with(&|question| question.truncate(11)), None, "less than a header");
        assert_eq!(with(&|question| question[2] |= 0x28), Some("NOTIMP".into()), "an update");
        assert_eq!(with(&|question| question[5] = 2), Some("FORMERR".into()), "two questions");
        assert_eq!(with(&|question| question.truncate(20)), Some("FORMERR".into()), "half a question");
        // Behind the question stands the OPT record: root, type, size, then what is a TTL elsewhere.
        let opt = plain.len() - 11;
        assert_eq!(with(&|question| question[opt + 6] = 1), Some("BADVERS edns".into()), "a later EDNS");
        let twice = |question: &mut Vec<u8>| {
            question.extend_from_within(opt..);
            question[11] = 2;
        };
        assert_eq!(with(&twice), Some("FORMERR".into()), "EDNS twice");
        let chaos = |question: &mut Vec<u8>| question[opt - 1] = 3;
        assert_eq!(with(&chaos), Some("REFUSED edns".into()), "another class");
    }

    /// The longest names there can be.
    fn longest() -> super::super::Picture {
        let mut picture = picture();
        picture.suffix = format!("{}.{}", "s".repeat(49), "t".repeat(50)).parse().unwrap();
        picture.own.name = "o".repeat(63).parse().unwrap();
        picture.members[0].name = "m".repeat(63).parse().unwrap();
        picture
    }

    #[test]
    fn the_longest_answers_fit() {
        let picture = longest();
        let zone = Zone::new(&picture, 7);
        let suffix = picture.suffix.to_string();
        let own = format!("{}.{suffix}", picture.own.name);
        let deep = |suffix: &str| {
            let mut name = suffix.to_owned();
            while name.len() < 252 {
                let room = (252 - name.len()).clamp(1, 60);
                name = format!("{}.{name}", "x".repeat(room));
            }
            name
        };
        let reverse = super::super::picture::reverse_v6(picture.members[0].v6);
        let names = [own, suffix.clone(), deep(&suffix), reverse.clone(), deep(&reverse), deep("77.10.in-addr.arpa")];
        for name in names {
            for rtype in [Rtype::ANY, Rtype::A, Rtype::SOA, Rtype::NS, Rtype::PTR, Rtype::MX] {
                let bytes = answer(&zone, &ask(&name, rtype, true)).unwrap_or_else(|| panic!("{name} {rtype}"));
                assert!(bytes.len() <= LARGEST, "{name} {rtype}: {} B", bytes.len());
                assert!(shown(&bytes).starts_with("N"), "{name} {rtype}: {}", shown(&bytes));
            }
        }
    }

    proptest! {
        #[test]
        fn any_datagram_gets_a_small_answer_or_silence(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let zone = Zone::new(&picture(), 7);
            if let Some(answer) = answer(&zone, &bytes) {
                prop_assert!(answer.len() <= LARGEST && answer.len() >= 12);
                prop_assert_eq!(&answer[..2], &bytes[..2]);
                prop_assert!(answer[2] & 0x80 != 0);
            }
        }

        #[test]
        fn a_name_is_answered_whatever_its_letters_case(flips in any::<u64>(), rtype in 0u16..300) {
            let zone = Zone::new(&picture(), 7);
            let flip = |(place, c): (usize, char)| if flips >> place & 1 == 1 { c.to_ascii_uppercase() } else { c };
            let name: String = "orders-db.prod".chars().enumerate().map(flip).collect();
            let question = ask(&name, Rtype::from_int(rtype), flips & 1 == 1);
            let bytes = answer(&zone, &question).unwrap();
            // The question comes back byte by byte: resolvers that mix cases compare it so.
            let end = 12 + name.len() + 2 + 4;
            prop_assert_eq!(&bytes[12..end], &question[12..end]);
            prop_assert!(bytes.len() <= LARGEST);
            let is_address = matches!(Rtype::from_int(rtype), Rtype::A | Rtype::AAAA | Rtype::ANY);
            let message = Message::from_slice(&bytes).unwrap();
            prop_assert_eq!(message.header_counts().ancount() > 0, is_address);
        }
    }
}
