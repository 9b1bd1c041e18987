//! One value of the file, read as what its key wants.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

use ipnet::Ipv4Net;
use toml::de::DeValue;

use super::Value;
use crate::config::history::parse_size;
use crate::config::{
    Api, DEFAULT_PORT, DataplaneSettings, Landlock, Latency, Level, PerLink, PostQuantum, duration, nearest,
};
use crate::identity::{NodeName, TrustAnchor};

pub(super) fn found(value: &Value<'_>) -> String {
    match value.get_ref() {
        DeValue::String(text) => format!("found \"{}\"", shortened(text)),
        DeValue::Integer(number) => format!("found the number {number}"),
        DeValue::Float(_) => "found a fraction".to_owned(),
        DeValue::Boolean(_) => "found true or false".to_owned(),
        DeValue::Datetime(_) => "found a date".to_owned(),
        DeValue::Array(_) => "found a list".to_owned(),
        DeValue::Table(_) => "found a section".to_owned(),
    }
}

pub(super) fn shortened(text: &str) -> String {
    if text.chars().count() <= 40 { text.to_owned() } else { text.chars().take(40).chain(['…']).collect() }
}

pub(super) fn text<'a>(value: &'a Value<'_>) -> Result<&'a str, String> {
    value.get_ref().as_str().ok_or_else(|| found(value))
}

pub(super) fn text_as<T: FromStr>(value: &Value<'_>) -> Result<T, String>
where
    T::Err: std::fmt::Display,
{
    // What was expected is said once, by the list of keys.
    let short = |error: T::Err| error.to_string().split(": expected").next().unwrap_or_default().to_owned();
    text(value)?.parse().map_err(short)
}

pub(super) fn mesh_name(value: &Value<'_>) -> Result<String, String> {
    text_as::<NodeName>(value).map(|name| name.to_string())
}

pub(super) fn overlay(value: &Value<'_>) -> Result<Ipv4Net, String> {
    let net: Ipv4Net = text(value)?.parse().map_err(|_| found(value))?;
    if net.prefix_len() < TrustAnchor::WIDEST_V4 {
        return Err(format!("/{} is too wide", net.prefix_len()));
    }
    if net.prefix_len() > TrustAnchor::NARROWEST_V4 {
        return Err(format!("/{} is too narrow", net.prefix_len()));
    }
    if net.trunc() != net {
        return Err(format!("the range starts at another address; did you mean {}?", net.trunc()));
    }
    Ok(net)
}

pub(super) fn listen_address(value: &Value<'_>) -> Result<SocketAddr, String> {
    let address: SocketAddr = text(value)?.parse().map_err(|_| no_socket_address(value, DEFAULT_PORT))?;
    if address.port() == 0 { Err("port 0 means any port, and the others must know it".to_owned()) } else { Ok(address) }
}

/// An address others send to: not the unspecified one, and no group.
pub(super) fn endpoint(value: &Value<'_>) -> Result<SocketAddr, String> {
    let address = listen_address(value)?;
    match address.ip() {
        ip if ip.is_unspecified() => Err(format!("nobody can send to {ip}")),
        ip if ip.is_multicast() => Err(format!("{ip} is a multicast group")),
        _ => Ok(address),
    }
}

pub(super) fn no_socket_address(value: &Value<'_>, port: u16) -> String {
    match text(value) {
        Ok(text) if text.parse::<std::net::IpAddr>().is_ok() => {
            let bracketed = if text.contains(':') { format!("[{text}]") } else { text.to_owned() };
            format!("the port is missing; did you mean {bracketed}:{port}?")
        }
        Ok(text) if text.chars().any(char::is_alphabetic) && !text.contains("::") => {
            format!("{}; names are not looked up", found(value))
        }
        _ => found(value),
    }
}

pub(super) fn interface_name(value: &Value<'_>) -> Result<String, String> {
    let name = text(value)?;
    let fits = |c: char| c.is_ascii_graphic() && !"/:%".contains(c);
    let good = (1..=15).contains(&name.len()) && name.chars().all(fits) && name != "." && name != "..";
    if good { Ok(name.to_owned()) } else { Err(found(value)) }
}

/// A number of a range.
pub(super) fn number(value: &Value<'_>, range: RangeInclusive<u16>) -> Result<u16, String> {
    let number = value.get_ref().as_integer().ok_or_else(|| found(value))?;
    let parsed = u16::from_str_radix(number.as_str(), number.radix()).ok();
    parsed.filter(|number| range.contains(number)).ok_or_else(|| found(value))
}

pub(super) fn mtu(value: &Value<'_>) -> Result<u16, String> {
    number(value, 1280..=9000)
}

/// A duration of a range.
pub(super) fn within(value: &Value<'_>, range: RangeInclusive<Duration>) -> Result<Duration, String> {
    let parsed = duration::parse(text(value)?)?;
    if range.contains(&parsed) { Ok(parsed) } else { Err(found(value)) }
}

pub(super) fn interval(value: &Value<'_>) -> Result<Duration, String> {
    within(value, Duration::from_millis(100)..=Duration::from_secs(60))
}

/// Whole seconds: stock configurations have no finer unit.
pub(super) fn keepalive(value: &Value<'_>) -> Result<Duration, String> {
    let parsed = within(value, Duration::from_secs(1)..=Duration::from_secs(3600))?;
    if parsed.subsec_nanos() == 0 { Ok(parsed) } else { Err(found(value)) }
}

pub(super) fn flag(value: &Value<'_>) -> Result<bool, String> {
    value.get_ref().as_bool().ok_or_else(|| found(value))
}

pub(super) fn group(value: &Value<'_>) -> Result<String, String> {
    let name = text(value)?;
    if Api::is_group(name) { Ok(name.to_owned()) } else { Err(found(value)) }
}

pub(super) fn size(value: &Value<'_>) -> Result<u64, String> {
    parse_size(text(value)?)
}

pub(super) fn latency(value: &Value<'_>) -> Result<Latency, String> {
    one_of(value, Latency::ALL, Latency::name)
}

pub(super) fn landlock(value: &Value<'_>) -> Result<Landlock, String> {
    one_of(value, Landlock::ALL, Landlock::name)
}

pub(super) fn path(value: &Value<'_>) -> Result<String, String> {
    match text(value)? {
        "" => Err("the path is empty".to_owned()),
        path if path.contains('\0') => Err("the path has a zero byte".to_owned()),
        path => Ok(path.to_owned()),
    }
}

pub(super) fn post_quantum(value: &Value<'_>) -> Result<PostQuantum, String> {
    one_of(value, PostQuantum::ALL, PostQuantum::name)
}

pub(super) fn renewal(value: &Value<'_>) -> Result<Duration, String> {
    within(value, PostQuantum::RENEWALS)
}

pub(super) fn per_link(value: &Value<'_>) -> Result<PerLink, String> {
    one_of(value, PerLink::ALL, PerLink::name)
}

pub(super) fn shards(value: &Value<'_>) -> Result<u8, String> {
    let shards = number(value, 1..=u16::from(DataplaneSettings::MOST_SHARDS))?;
    u8::try_from(shards).map_err(|_| found(value))
}

pub(super) fn level(value: &Value<'_>) -> Result<Level, String> {
    one_of(value, Level::ALL, Level::name)
}

/// One of a few names, with a guess at which was meant.
pub(super) fn one_of<T: Copy, const N: usize>(
    value: &Value<'_>,
    all: [T; N],
    name_of: impl Fn(T) -> &'static str,
) -> Result<T, String> {
    let name = text(value)?;
    all.into_iter().find(|one| name_of(*one) == name).ok_or_else(|| match nearest(name, all.map(&name_of)) {
        Some(near) => format!("found \"{}\"; did you mean \"{near}\"?", shortened(name)),
        None => found(value),
    })
}
