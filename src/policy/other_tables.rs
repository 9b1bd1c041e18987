//! What the tables of others make of something that ours leaves open: a packet is through only where no table drops it.

use serde_json::Value;

use super::TCP;
use super::table::Purpose;

/// A first packet from anywhere on the underlay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival<'a> {
    /// [`TCP`] or [`UDP`](super::UDP).
    pub protocol: u8,
    /// What it is for.
    pub port: u16,
    /// The mesh's interface, through which it does not come.
    pub interface: &'a str,
}

/// A chain of somebody else's that drops it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Dropper {
    /// The table, with its family, as `nft list table` takes it.
    pub table: String,
    /// The chain that the kernel enters.
    pub chain: String,
    /// Whether it is dropped whatever else is true of the packet; else some of its rules could not be judged.
    pub is_certain: bool,
}

/// Chains that call each other are followed so deep; the kernel allows 16.
const DEPTH: u32 = 16;

/// What is known of a condition.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Known {
    No,
    Maybe,
    Yes,
}

/// How a chain ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Accept,
    Drop,
    /// Nothing was decided.
    On,
}

/// What a chain makes of it.
#[derive(Clone, Copy)]
struct Course {
    end: End,
    /// A rule that could not be judged might have accepted it before.
    may_accept: bool,
    /// The same for dropping it.
    may_drop: bool,
}

/// Finds the chains that drop what arrives for this host, or may, in what `nft -j list ruleset` prints; sorted. Tables of ours
/// are left out.
pub fn droppers(ruleset: &Value, arrival: &Arrival<'_>) -> Vec<Dropper> {
    let ours = [Purpose::Addresses, Purpose::Trial, Purpose::Lockdown].map(Purpose::prefix);
    let objects = || ruleset["nftables"].as_array().into_iter().flatten();
    let mut found = Vec::new();
    for chain in objects().map(|object| &object["chain"]).filter(|chain| is_on_the_way(chain)) {
        let [family, table, name] = ["family", "table", "name"].map(|key| chain[key].as_str().unwrap_or_default());
        if family == "inet" && ours.iter().any(|prefix| table.starts_with(prefix)) {
            continue;
        }
        let rules: Vec<&Value> = objects()
            .map(|object| &object["rule"])
            .filter(|rule| rule["family"] == chain["family"] && rule["table"] == chain["table"])
            .collect();
        let course = walk(&rules, name, arrival, DEPTH);
        let drops_at_the_end = chain["policy"] == "drop";
        let (drops, is_certain) = match course.end {
            End::Drop => (true, !course.may_accept),
            End::On if drops_at_the_end => (true, !course.may_accept),
            End::On | End::Accept => (course.may_drop, false),
        };
        if drops {
            found.push(Dropper { table: format!("{family} {table}"), chain: name.to_owned(), is_certain });
        }
    }
    found.sort();
    found
}

fn is_on_the_way(chain: &Value) -> bool {
    let hook = chain["hook"].as_str().unwrap_or_default();
    chain["type"] == "filter" && matches!(hook, "input" | "prerouting" | "ingress")
}

fn walk(rules: &[&Value], chain: &str, arrival: &Arrival<'_>, depth: u32) -> Course {
    let mut course = Course { end: End::On, may_accept: false, may_drop: false };
    for rule in rules.iter().filter(|rule| rule["chain"] == chain) {
        let statements = rule["expr"].as_array().map(Vec::as_slice).unwrap_or_default();
        let mut matches = Known::Yes;
        for statement in statements {
            let Some((kind, body)) = statement.as_object().and_then(|object| object.iter().next()) else { continue };
            let end = match kind.as_str() {
                "match" => {
                    matches = matches.min(judge(body, arrival));
                    continue;
                }
                "counter" | "comment" | "log" | "mangle" | "notrack" => continue,
                "accept" => Course { end: End::Accept, may_accept: false, may_drop: false },
                "drop" | "reject" => Course { end: End::Drop, may_accept: false, may_drop: false },
                // The chain that called goes on.
                "return" => {
                    match matches {
                        Known::Yes => return course,
                        // What comes after may not be reached.
                        Known::Maybe => course.may_accept = true,
                        Known::No => {}
                    }
                    continue;
                }
                "jump" | "goto" if depth > 0 => {
                    walk(rules, body["target"].as_str().unwrap_or_default(), arrival, depth - 1)
                }
                _ => {
                    matches = matches.min(Known::Maybe);
                    continue;
                }
            };
            match matches {
                Known::No => {}
                Known::Maybe => {
                    course.may_accept |= end.may_accept || end.end == End::Accept;
                    course.may_drop |= end.may_drop || end.end == End::Drop;
                }
                Known::Yes => {
                    course.may_accept |= end.may_accept;
                    course.may_drop |= end.may_drop;
                    course.end = end.end;
                    if end.end != End::On {
                        return course;
                    }
                }
            }
        }
    }
    course
}

/// Judges a condition of a packet that begins a connection.
fn judge(condition: &Value, arrival: &Arrival<'_>) -> Known {
    let (left, right) = (&condition["left"], &condition["right"]);
    let is_tcp = arrival.protocol == TCP;
    let protocol = if is_tcp { "tcp" } else { "udp" };
    let holds = if let Some(meta) = left["meta"]["key"].as_str() {
        match meta {
            "l4proto" => {
                contains(right, &|value| value == protocol || value.as_u64() == Some(u64::from(arrival.protocol)))
            }
            // Which of the others it is, is not known.
            "iifname" | "iif" => {
                let elsewhere = contains(right, &|value| value != "lo" && value != arrival.interface);
                if elsewhere == Known::No { Known::No } else { Known::Maybe }
            }
            _ => Known::Maybe,
        }
    } else if left["ct"]["key"] == "state" {
        contains(right, &|value| value == "new")
    } else if let Some(of) = left["payload"]["protocol"].as_str() {
        match (of, left["payload"]["field"].as_str().unwrap_or_default()) {
            ("tcp" | "udp", _) if of != protocol => return Known::No,
            ("icmp" | "icmpv6", _) => return Known::No,
            ("tcp" | "udp" | "th", "dport") => contains(right, &|value| {
                value.as_u64() == Some(u64::from(arrival.port)) || in_range(value, arrival.port)
            }),
            ("ip", "protocol") => {
                contains(right, &|value| value == protocol || value.as_u64() == Some(u64::from(arrival.protocol)))
            }
            _ => Known::Maybe,
        }
    } else {
        Known::Maybe
    };
    match (condition["op"].as_str(), holds) {
        (Some("==" | "in"), holds) => holds,
        (Some("!="), Known::Yes) => Known::No,
        (Some("!="), Known::No) => Known::Yes,
        _ => Known::Maybe,
    }
}

/// Whether one of the values on the right side is as wanted.
fn contains(right: &Value, wanted: &dyn Fn(&Value) -> bool) -> Known {
    let known = |yes: bool| if yes { Known::Yes } else { Known::No };
    match right {
        Value::Array(values) => known(values.iter().any(wanted)),
        Value::Object(object) => match object.get("set") {
            Some(Value::Array(values)) => known(values.iter().any(wanted)),
            Some(_) => Known::Maybe,
            None if object.contains_key("range") => known(wanted(right)),
            None => Known::Maybe,
        },
        // A set that is named is looked up elsewhere.
        Value::String(name) if name.starts_with('@') => Known::Maybe,
        value => known(wanted(value)),
    }
}

fn in_range(value: &Value, port: u16) -> bool {
    let ends: Vec<u64> = value["range"].as_array().into_iter().flatten().filter_map(Value::as_u64).collect();
    matches!(ends.as_slice(), [first, last] if (*first..=*last).contains(&u64::from(port)))
}

#[cfg(test)]
mod tests {
    use super::super::UDP;
    use super::*;
    use serde_json::json;

    fn chain(table: &str, name: &str, policy: &str) -> Value {
        json!({ "chain": { "family": "inet", "table": table, "name": name, "type": "filter", "hook": "input",
            "prio": 0, "policy": policy } })
    }

    fn rule(chain: &str, expr: Value) -> Value {
        json!({ "rule": { "family": "inet", "table": "filter", "chain": chain, "expr": expr } })
    }

    fn port(port: Value) -> Value {
        json!({ "match": { "op": "==", "left": { "payload": { "protocol": "tcp", "field": "dport" } }, "right": port } })
    }

    fn fate(objects: &[Value], protocol: u8, port: u16) -> Vec<(String, bool)> {
        let arrival = Arrival { protocol, port, interface: "mesh0" };
        let found = droppers(&json!({ "nftables": objects }), &arrival);
        found.into_iter().map(|dropper| (dropper.table, dropper.is_certain)).collect()
    }

    #[test]
    fn a_closed_policy_drops_what_no_rule_accepts() {
        let certain = vec![("inet filter".to_owned(), true)];
        let rules = [
            chain("filter", "input", "drop"),
            rule(
                "input",
                json!([{ "match": { "op": "in", "left": { "ct": { "key": "state" } },
                "right": ["established", "related"] } }, { "accept": null }]),
            ),
            rule(
                "input",
                json!([{ "match": { "op": "==", "left": { "meta": { "key": "iifname" } }, "right": "lo" } },
                { "accept": null }]),
            ),
            rule(
                "input",
                json!([port(json!({ "set": [22, { "range": [8000, 8010] }] })), { "counter": {} }, { "accept": null }]),
            ),
            rule("input", json!([{ "jump": { "target": "more" } }])),
            rule("more", json!([port(json!(443)), { "accept": null }])),
        ];
        for open in [22, 443, 8005] {
            assert_eq!(fate(&rules, TCP, open), [], "tcp/{open}");
        }
        assert_eq!(fate(&rules, TCP, 80), certain);
        assert_eq!(fate(&rules, UDP, 22), certain);
        // What is only perhaps accepted is only perhaps dropped.
        let unsure =
            [&rules[..], &[rule("input", json!([{ "xt": { "type": "match" } }, { "accept": null }]))]].concat();
        assert_eq!(fate(&unsure, TCP, 80), [("inet filter".to_owned(), false)]);
    }

    #[test]
    fn an_open_policy_drops_what_a_rule_drops() {
        let rules = [
            chain("filter", "input", "accept"),
            rule("input", json!([port(json!(3306)), { "reject": null }])),
            rule("input", json!([{ "limit": {} }, port(json!(25)), { "drop": null }])),
        ];
        assert_eq!(fate(&rules, TCP, 3306), [("inet filter".to_owned(), true)]);
        assert_eq!(fate(&rules, TCP, 25), [("inet filter".to_owned(), false)]);
        assert_eq!(fate(&rules, TCP, 80), []);
    }

    #[test]
    fn ours_are_not_others_and_rubbish_is_nothing() {
        assert_eq!(fate(&[chain("meshd-lockdown_mesh0", "arriving", "drop")], TCP, 80), []);
        assert_eq!(fate(&[json!({}), json!(1), json!({ "chain": [] }), json!({ "rule": 3 })], TCP, 80), []);
        let circle = [chain("filter", "input", "accept"), rule("input", json!([{ "jump": { "target": "input" } }]))];
        assert_eq!(fate(&circle, TCP, 80), []);
    }
}
