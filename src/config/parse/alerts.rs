//! `[[alert]]` and `[[receiver]]`, read key by key.

use std::time::Duration;

use toml::de::DeTable;

use super::{Reader, Section, Value, one_of, shortened, text, text_as, within};
use crate::config::alert::{Alert, Condition, Severity, Share};
use crate::config::nearest;
use crate::config::receiver::{self, HttpReceiver, Receiver, ReceiverKind};
use crate::identity::NodeName;

impl Reader {
    pub(super) fn receivers(&mut self, document: &DeTable<'_>) -> Vec<Receiver> {
        let mut list: Vec<Receiver> = Vec::new();
        for section in self.entries(document, "receiver", Receiver::LIMIT) {
            let name: Option<NodeName> = self.required(&section, "name", text_as);
            if list.iter().any(|other| Some(&other.name) == name.as_ref()) {
                self.complain(&section, "name", "a receiver above has the same name");
            }
            let kind = self.receiver_kind(&section);
            let timeout =
                self.optional(&section, "timeout", |value| seconds(value, (1, 60))).unwrap_or(Receiver::TIMEOUT);
            let repeat = self.optional(&section, "repeat", |value| seconds(value, (60, 7 * 86_400)));
            let repeat = repeat.unwrap_or(Receiver::REPEAT);
            if let (Some(name), Some(kind)) = (name, kind) {
                list.push(Receiver { name, kind, timeout, repeat });
            }
        }
        list
    }

    fn receiver_kind(&mut self, section: &Section<'_, '_>) -> Option<ReceiverKind> {
        let kind = self.required(section, "type", |value| one_of(value, ReceiverKind::NAMES, |name| name))?;
        let (own, others): (&str, &[&str]) = match kind {
            "command" => ("command", &["url", "header_file"]),
            _ => ("url", &["command"]),
        };
        for other in others.iter().filter(|other| section.get(other).is_some()) {
            self.complain(section, other, &format!("a receiver of type {kind} has no {other}"));
        }
        if section.get(own).is_none() {
            self.missing(section, own);
        }
        if kind == "command" {
            let words = self.list_of(section, "command", Receiver::ARGUMENT_LIMIT, |value| match text(value)? {
                word if word.contains('\0') => Err("a word has a zero byte".to_owned()),
                word => Ok(word.to_owned()),
            })?;
            match words.first() {
                None => self.complain(section, "command", "the list is empty"),
                Some(program) if !program.starts_with('/') => {
                    self.complain(section, "command", "the program is not named by its whole path");
                }
                Some(_) => return Some(ReceiverKind::Command(words)),
            }
            return None;
        }
        let url = self.optional(section, "url", |value| receiver::url(text(value)?))?;
        let http = HttpReceiver { url, header_file: self.path(section, "header_file") };
        Some(if kind == "webhook" { ReceiverKind::Webhook(http) } else { ReceiverKind::Alertmanager(http) })
    }

    pub(super) fn alerts(&mut self, document: &DeTable<'_>, receivers: &[Receiver]) -> Vec<Alert> {
        let mut list: Vec<Alert> = Vec::new();
        for section in self.entries(document, "alert", Alert::LIMIT) {
            let name: Option<NodeName> = self.required(&section, "name", text_as);
            if list.iter().any(|other| Some(&other.name) == name.as_ref()) {
                self.complain(&section, "name", "an alert above has the same name");
            }
            let condition = self.condition(&section);
            let peers =
                self.list(&section, "peers", Alert::PEER_LIMIT, |value| text(value)?.parse()).unwrap_or_default();
            let lasting = self.optional(&section, "for", |value| seconds(value, (0, 86_400)));
            let severity = self.optional(&section, "severity", |value| one_of(value, Severity::ALL, Severity::name));
            let told = self.list(&section, "receivers", Receiver::LIMIT, |value| {
                let name = text(value)?;
                let mut known = receivers.iter().map(|receiver| &receiver.name);
                known.find(|known| known.as_str() == name).cloned().ok_or_else(|| {
                    match nearest(name, receivers.iter().map(|receiver| receiver.name.as_str())) {
                        Some(near) => format!("there is no receiver \"{}\"; did you mean \"{near}\"?", shortened(name)),
                        None => format!("there is no receiver \"{}\"", shortened(name)),
                    }
                })
            });
            if let (Some(name), Some(condition)) = (name, condition) {
                let lasting = lasting.unwrap_or(condition.usual_lasting());
                list.push(Alert { name, condition, peers, lasting, severity, receivers: told.unwrap_or_default() });
            }
        }
        list
    }

    fn condition(&mut self, section: &Section<'_, '_>) -> Option<Condition> {
        let kind = self.required(section, "what", |value| one_of(value, Condition::KINDS, |kind| kind))?;
        let mut condition = Condition::usual(kind)?;
        let threshold = section
            .get("threshold")
            .map(|value| text(value).map(str::to_owned).and_then(|text| condition.set_threshold(&text)));
        if let Some(Err(problem)) = threshold {
            self.complain(section, "threshold", &problem);
        }
        if let Some(objective) = self.optional(section, "objective", |value| text(value)?.parse::<Share>()) {
            match &mut condition {
                Condition::BurnRate { allowed, .. } => *allowed = objective.complement(),
                _ => self.complain(section, "objective", "only burn_rate has one"),
            }
        }
        if kind == "certificate" && section.get("peers").is_some() {
            self.complain(section, "peers", "it is about this node's own certificate");
        }
        Some(condition)
    }
}

/// A duration between two numbers of seconds.
fn seconds(value: &Value<'_>, (least, most): (u64, u64)) -> Result<Duration, String> {
    within(value, Duration::from_secs(least)..=Duration::from_secs(most))
}
