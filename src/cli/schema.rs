//! The JSON schema of `meshd.toml`, for editors that complete and check while one writes.

use serde_json::{Map, Value, json};

use crate::config::keys::{self, Key};

/// Returns the schema of a configuration file or drop-in, which is read off the list of keys. Nothing is required at the top,
/// because a drop-in may hold any part.
pub fn schema() -> Value {
    let mut sections = properties("");
    for (section, about) in keys::SECTIONS.into_iter().filter(|(section, _)| !section.is_empty()) {
        let mut table = object(properties(section));
        let property = if keys::LISTS.contains(&section) {
            table["required"] = json!(required(section));
            json!({ "type": "array", "items": table, "description": about })
        } else {
            table["description"] = json!(about);
            table
        };
        sections.insert(section.to_owned(), property);
    }
    let mut schema = object(sections);
    schema["$schema"] = json!("http://json-schema.org/draft-07/schema#");
    schema["title"] = json!("meshd.toml");
    schema
}

/// What an entry cannot do without: its keys without a default.
fn required(section: &str) -> Vec<&'static str> {
    let needed = keys::KEYS.iter().filter(|key| key.section == section && key.default.is_empty());
    needed.map(|key| key.name).collect()
}

fn object(properties: Map<String, Value>) -> Value {
    json!({ "type": "object", "additionalProperties": false, "properties": properties })
}

fn properties(section: &str) -> Map<String, Value> {
    let described = |key: &Key| {
        let mut property = shape(key.value);
        let default = if key.default.is_empty() { String::new() } else { format!(" Default: {}.", key.default) };
        property["description"] = json!(format!("{} Value: {}.{default}", key.about, key.value));
        (key.name.to_owned(), property)
    };
    keys::KEYS.iter().filter(|key| key.section == section).map(described).collect()
}

/// What a value may be, from the words that describe it: one of a few words, a range of numbers, a list, or a text.
fn shape(value: &str) -> Value {
    if value == "true or false" {
        return json!({ "type": "boolean" });
    }
    if value.starts_with("a list of ") {
        return json!({ "type": "array", "items": { "type": "string" } });
    }
    if let Some((least, most)) = range(value) {
        return json!({ "type": "integer", "minimum": least, "maximum": most });
    }
    match words(value) {
        Some(words) => json!({ "enum": words }),
        None => json!({ "type": "string" }),
    }
}

/// The bounds of `1 to 16`, or of the same behind a unit and a comma.
fn range(value: &str) -> Option<(u64, u64)> {
    let numbers = value.rsplit(", ").next()?;
    let (least, most) = numbers.split_once(" to ")?;
    Some((least.parse().ok()?, most.parse().ok()?))
}

/// The words of `one, two or three`.
fn words(value: &str) -> Option<Vec<&str>> {
    let (first, last) = value.rsplit_once(" or ")?;
    let words: Vec<&str> = first.split(", ").chain([last]).collect();
    let plain = |word: &&str| word.chars().all(|c| c.is_ascii_lowercase() || c == '_');
    words.iter().all(plain).then_some(words)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::{Config, Layer};
    use toml::Value as Toml;

    /// What a schema says against a value, with its place.
    fn complaints(schema: &Value, value: &Toml, place: &str, found: &mut Vec<String>) {
        let fits = match (schema["type"].as_str(), value) {
            (Some("object"), Toml::Table(table)) => {
                let required = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str);
                for missing in required.filter(|key| !table.contains_key(*key)) {
                    found.push(format!("{place}.{missing}: missing"));
                }
                for (key, value) in table {
                    let place = format!("{place}.{key}");
                    match schema["properties"].get(key) {
                        Some(schema) => complaints(schema, value, &place, found),
                        None => found.push(format!("{place}: unknown")),
                    }
                }
                true
            }
            (Some("array"), Toml::Array(list)) => {
                list.iter().for_each(|item| complaints(&schema["items"], item, place, found));
                true
            }
            (Some("integer"), Toml::Integer(number)) => {
                *number >= schema["minimum"].as_i64().unwrap() && *number <= schema["maximum"].as_i64().unwrap()
            }
            (Some("boolean"), Toml::Boolean(_)) | (Some("string"), Toml::String(_)) => true,
            (None, Toml::String(text)) => schema["enum"].as_array().unwrap().contains(&json!(text)),
            _ => false,
        };
        if !fits {
            found.push(format!("{place}: {value} is not {schema}"));
        }
    }

    fn told(text: &str) -> Vec<String> {
        let mut found = Vec::new();
        complaints(&schema(), &Toml::Table(text.parse().unwrap()), "", &mut found);
        found
    }

    #[test]
    fn the_schema_takes_what_the_parser_takes() {
        // The example has every key, as the list of keys sees to.
        let example = include_str!("../../examples/meshd.toml");
        assert_eq!(told(example), Vec::<String>::new());
        assert!(Config::parse(example, Path::new("/etc/meshd/meshd.toml")).is_ok());
    }

    #[test]
    fn the_schema_refuses_what_the_parser_refuses() {
        let minimal = include_str!("../../fuzz/corpus/config/minimal");
        fn layer(text: &str) -> Layer<'_> {
            Layer { path: Path::new("/x/meshd.toml"), text }
        }
        let parse = |more: &str| Config::parse_layers(&[layer(minimal), layer(more)]);
        assert!(parse("").is_ok() && parse("[interface]\nmtu = 1300").is_ok());
        for wrong in [
            "[interface]\nmtu = 12",
            "[interface]\nmtu = \"1400\"",
            "[interface]\nmut = 1400",
            "[dataplane]\nlatency = \"lowest\"",
            "[history]\nenabled = 1",
            "[probe]\ncritical_tags = \"db\"",
            "[[receiver]]\nname = 7\ntype = \"command\"\ncommand = [\"/bin/true\"]",
            "[[allow]]\nto = [\"any\"]",
            "[[forward]]\nname = \"a\"\ntargets = [\"db1:1\"]",
            "[api]\ngroup = 0",
            "[logs]\nlevel = \"info\"",
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
            assert_eq!(told(wrong).len(), 1, "{wrong}: {:?}", told(wrong));
        }
    }
}
