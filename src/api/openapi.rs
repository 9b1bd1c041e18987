//! The description of the local interface for programs: an OpenAPI document.
//!
//! The document is a file, so that it can be read, shipped and compared; a test makes it anew from the types and from a list
//! of the calls, and another one holds that list against the router.

/// The OpenAPI 3.1 document of the interface, as JSON.
pub const OPENAPI: &str = include_str!("openapi.json");

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;
    use std::sync::Arc;

    use schemars::generate::{SchemaGenerator, SchemaSettings};
    use schemars::{JsonSchema, Schema};
    use serde_json::{Map, Value, json};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixStream;

    use super::super::fake::{Fake, ping_lines, troubled_status};
    use super::super::*;
    use super::OPENAPI;

    /// What goes into a call, and what a sample of it is.
    enum Input {
        Nothing,
        Query(fn(&mut SchemaGenerator) -> Schema, &'static str),
        Body(fn(&mut SchemaGenerator) -> Schema, &'static str),
    }

    /// One call.
    struct Call {
        method: &'static str,
        path: &'static str,
        what: &'static str,
        input: Input,
        answer: fn(&mut SchemaGenerator) -> Schema,
        /// The answer is JSON lines.
        lines: bool,
        /// For root and the daemon's user alone.
        writes: bool,
    }

    fn schema_of<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
        generator.subschema_for::<T>()
    }

    fn look<T: JsonSchema>(path: &'static str, what: &'static str) -> Call {
        let input = Input::Nothing;
        Call { method: "get", path, what, input, answer: schema_of::<T>, lines: false, writes: false }
    }

    fn act<T: JsonSchema>(path: &'static str, what: &'static str, input: Input) -> Call {
        Call { method: "post", path, what, input, answer: schema_of::<T>, lines: false, writes: true }
    }

    fn calls() -> Vec<Call> {
        let check = r#"{"from": "web1", "to": "db1", "service": "tcp/3306"}"#;
        let trace = r#"{"from": "web1", "to": "db1", "service": "tcp/3306", "seconds": 1, "count": 10}"#;
        let invite = r#"{"name": "web9", "lifetime_seconds": 60}"#;
        let node = r#"{"node": "old1"}"#;
        let switch = r#"{"forward": "orders", "to": "db2"}"#;
        let ping = r#"{"node": "db-par-17", "count": 1, "interval_seconds": 0.1}"#;
        vec![
            look::<Status>("/v1/status", "The whole state."),
            look::<NodeInfo>("/v1/node", "This node's public identity."),
            look::<Members>("/v1/members", "The members this node knows."),
            look::<Matrix>("/v1/matrix", "Every link of the mesh, as its nodes say."),
            look::<SiteMatrix>("/v1/matrix/sites", "The links between sites."),
            look::<PathList>("/v1/paths", "The ways to each peer."),
            look::<LinkLedger>("/v1/ledger", "Which connections use which link, and whether it can go."),
            look::<NameList>("/v1/names", "The names that the daemon answers."),
            look::<LockdownInfo>("/v1/lockdown", "How far the lock-down of the public side has come."),
            look::<PolicyInfo>("/v1/policy", "The rules of what may come in, and what they did."),
            look::<Certificates>("/v1/certificates", "The members' certificates, and on which authority each rests."),
            look::<GatewayList>("/v1/gateways", "Which gateway carries each shared prefix, and why."),
            look::<ForwardList>("/v1/forwards", "The forwards and their connections."),
            look::<Health>("/v1/health", "Whether the daemon does its work."),
            look::<Plan>("/v1/plan", "What a reload would take over."),
            look::<Version>("/v1/version", "What the daemon is."),
            look::<InviteList>("/v1/invites", "The invites."),
            look::<AlertList>("/v1/alerts", "The alerts, and how their receivers do."),
            Call {
                input: Input::Query(schema_of::<HistoryRequest>, "peer=db-par-17"),
                ..look::<History>("/v1/history", "What a link was like.")
            },
            Call {
                input: Input::Query(schema_of::<EventsRequest>, "peer=db-par-17"),
                ..look::<Events>("/v1/events", "What happened.")
            },
            Call {
                writes: false,
                ..act::<PolicyChecked>(
                    "/v1/policy/check",
                    "What the rules make of something.",
                    Input::Body(schema_of::<PolicyCheckRequest>, check),
                )
            },
            Call {
                writes: false,
                lines: true,
                ..act::<PingLine>(
                    "/v1/ping",
                    "Probes to a peer, a line each.",
                    Input::Body(schema_of::<PingRequest>, ping),
                )
            },
            Call {
                lines: true,
                ..act::<TraceLine>(
                    "/v1/policy/trace",
                    "What becomes of some packets while they come, a line each.",
                    Input::Body(schema_of::<PolicyTraceRequest>, trace),
                )
            },
            act::<Invited>("/v1/invites", "Makes an invite.", Input::Body(schema_of::<InviteRequest>, invite)),
            act::<InviteRevoked>(
                "/v1/invites/revoke",
                "Makes an invite useless.",
                Input::Body(schema_of::<InviteRevokeRequest>, r#"{"invite": "db1"}"#),
            ),
            act::<Revoked>("/v1/revoke", "Revokes a node.", Input::Body(schema_of::<RevokeRequest>, node)),
            act::<AlertTested>(
                "/v1/alerts/test",
                "Tells a receiver a test, and waits for the outcome.",
                Input::Body(schema_of::<AlertTestRequest>, r#"{"receiver": "ops"}"#),
            ),
            act::<Switched>(
                "/v1/forwards/switch",
                "Switches a forward to another target.",
                Input::Body(schema_of::<SwitchRequest>, switch),
            ),
            act::<CertificatesTaken>(
                "/v1/certificates",
                "Takes certificates of members, all or none, and spreads them.",
                Input::Body(schema_of::<CertificatesRequest>, r#"{"certificates": []}"#),
            ),
            act::<GatewayList>(
                "/v1/gateways/drain",
                "Moves flows away from this gateway, or lets them come again.",
                Input::Body(schema_of::<DrainRequest>, r#"{"undo": false}"#),
            ),
            act::<LockdownInfo>(
                "/v1/lockdown/trial",
                "Puts the configured lock-down on trial.",
                Input::Body(schema_of::<LockdownTrialRequest>, r#"{"seconds": 60}"#),
            ),
            act::<LockdownInfo>("/v1/lockdown/confirm", "Keeps what is on trial.", Input::Nothing),
            act::<LockdownInfo>("/v1/lockdown/off", "Opens everything again.", Input::Nothing),
            act::<Renewed>("/v1/renew", "Renews this node's certificate now.", Input::Nothing),
            act::<Plan>("/v1/reload", "Takes the changed configuration over, or refuses it whole.", Input::Nothing),
            act::<Restarting>("/v1/restart", "Restarts the daemon in its process.", Input::Nothing),
        ]
    }

    /// The document, made of the calls and the types.
    fn document() -> Value {
        let place = |settings: &mut SchemaSettings| settings.definitions_path = "/components/schemas".into();
        let mut generator = SchemaSettings::draft2020_12().with(place).into_generator();
        let mut paths = Map::new();
        for call in calls() {
            let mut operation = json!({
                "summary": call.what,
                "description": match call.writes {
                    true => "For root and the daemon's own user.",
                    false => "For root, the daemon's own user and the members of the group that `[api] group` names.",
                },
            });
            match &call.input {
                Input::Nothing => {}
                Input::Query(schema, _) => operation["parameters"] = parameters(&mut generator, *schema),
                Input::Body(schema, _) => {
                    let schema = schema(&mut generator);
                    operation["requestBody"] =
                        json!({"required": true, "content": {"application/json": {"schema": schema}}});
                }
            }
            let media = if call.lines { "application/x-ndjson" } else { "application/json" };
            let said = if call.lines { "Lines of JSON, each of them this." } else { "Done." };
            let (answer, error) = ((call.answer)(&mut generator), schema_of::<ApiError>(&mut generator));
            operation["responses"] = json!({
                "200": {"description": said, "content": {media: {"schema": answer}}},
                "default": {
                    "description": "It failed; the status code goes with `kind`.",
                    "content": {"application/json": {"schema": error}},
                },
            });
            let path = paths.entry(call.path).or_insert_with(|| json!({}));
            path[call.method] = operation;
        }
        json!({
            "openapi": "3.1.0",
            "info": {
                "title": "meshd",
                "version": SCHEMA.to_string(),
                "description": "The local interface of meshd: HTTP over a Unix socket, one request for each connection. \
                    Fields are only ever added to a version; readers skip what they do not know. Who may ask is decided \
                    by the caller's user and group, as the kernel tells them.",
            },
            "paths": paths,
            "components": {"schemas": generator.take_definitions(true)},
        })
    }

    /// The fields of a type as parameters of a query.
    fn parameters(generator: &mut SchemaGenerator, schema: fn(&mut SchemaGenerator) -> Schema) -> Value {
        let reference = schema(generator).to_value();
        let name =
            reference["$ref"].as_str().and_then(|text| text.rsplit('/').next()).expect("a named type").to_owned();
        // It is no body's, so that nothing refers to it.
        let of = generator.definitions_mut().remove(&name).expect("it was made just now");
        let required: Vec<&Value> = of["required"].as_array().into_iter().flatten().collect();
        let properties = of["properties"].as_object().expect("a type with fields");
        let parameter = |(name, schema): (&String, &Value)| {
            let is_required = required.contains(&&json!(name));
            json!({"name": name, "in": "query", "required": is_required, "schema": schema})
        };
        properties.iter().map(parameter).collect()
    }

    #[test]
    fn the_document_is_what_the_types_say() {
        let made = format!("{:#}\n", document());
        if std::env::var_os("MESHD_WRITE_OPENAPI").is_some() {
            fs::write(concat!(env!("CARGO_MANIFEST_DIR"), "/src/api/openapi.json"), &made).unwrap();
            return;
        }
        assert!(made == OPENAPI, "src/api/openapi.json is old: MESHD_WRITE_OPENAPI=1 cargo test --lib openapi");
    }

    #[test]
    fn the_router_has_the_calls_of_the_document_and_no_others() {
        let source = include_str!("router.rs");
        let begin_of_writers = source.find("let writers").unwrap();
        let routes: BTreeSet<(String, String, bool)> = source
            .match_indices(".route(")
            .map(|(at, found)| {
                let words = &source[at + found.len()..];
                let mut quoted = words.splitn(3, '"').skip(1);
                let (path, rest) = (quoted.next().unwrap(), quoted.next().unwrap());
                let method = rest.trim_start_matches(',').trim_start().split('(').next().unwrap();
                (method.to_owned(), path.to_owned(), at > begin_of_writers)
            })
            .collect();
        let described = calls().into_iter().map(|call| (call.method.to_owned(), call.path.to_owned(), call.writes));
        assert_eq!(routes, described.collect());
    }

    /// Asks a daemon on a socket of its own, and returns status and body.
    async fn ask(head: &str, body: &str) -> (u16, String) {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("meshd.sock");
        let server = Server::bind(&socket, None).unwrap();
        let backend = Arc::new(Fake { status: troubled_status(), ping: ping_lines() });
        let serving = tokio::spawn(server.serve(backend, std::future::pending()));
        let mut stream = UnixStream::connect(&socket).await.unwrap();
        let length = body.len();
        let request = format!("{head} HTTP/1.0\r\nhost: meshd\r\ncontent-length: {length}\r\n\r\n{body}");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        serving.abort();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }

    #[tokio::test]
    async fn answers_are_what_the_document_says() {
        let document: Value = serde_json::from_str(OPENAPI).unwrap();
        for call in calls() {
            let (query, body) = match call.input {
                Input::Nothing => (String::new(), "null"),
                Input::Query(_, sample) => (format!("?{sample}"), ""),
                Input::Body(_, sample) => (String::new(), sample),
            };
            let operation = &document["paths"][call.path][call.method];
            let said = |status: &str, media: &str| &operation["responses"][status]["content"][media]["schema"];
            if let Input::Body(_, sample) = call.input {
                let schema = &operation["requestBody"]["content"]["application/json"]["schema"];
                check(&document, schema, &serde_json::from_str(sample).unwrap(), call.path).unwrap();
            }
            let (status, answer) = ask(&format!("{} {}{query}", call.method.to_uppercase(), call.path), body).await;
            let schema = match (status, call.lines) {
                (200, true) => said("200", "application/x-ndjson"),
                (200, false) => said("200", "application/json"),
                // What the fake daemon refuses, it refuses as it should.
                (409, false) => said("default", "application/json"),
                other => panic!("{}: {other:?} {answer}", call.path),
            };
            assert!(schema.is_object(), "{} {}", call.method, call.path);
            let answers = if call.lines { answer.lines().collect() } else { vec![answer.as_str()] };
            assert!(!answers.is_empty());
            for answer in answers {
                check(&document, schema, &serde_json::from_str(answer).unwrap(), call.path).unwrap();
            }
        }
    }

    /// Holds a value against a schema, as far as schemas made here go. What an object has and the schema does not is wrong, too.
    fn check(document: &Value, schema: &Value, value: &Value, at: &str) -> Result<(), String> {
        let wrong = |why: String| Err(format!("{at}: {why}: {value}"));
        if let Some(reference) = schema["$ref"].as_str() {
            let pointer = reference.strip_prefix('#').ok_or("a reference elsewhere")?;
            let target = document.pointer(pointer).ok_or(format!("{at}: there is no {reference}"))?;
            return check(document, target, value, at);
        }
        for several in ["anyOf", "oneOf"] {
            if let Some(choices) = schema[several].as_array() {
                let outcomes = choices.iter().map(|choice| check(document, choice, value, at));
                let errors: Vec<String> = outcomes.filter_map(Result::err).collect();
                let fit = choices.len() - errors.len();
                if fit == 0 || (several == "oneOf" && fit > 1) {
                    return wrong(format!("{fit} of {several}: {errors:?}"));
                }
                return Ok(());
            }
        }
        if let Some(choices) = schema["enum"].as_array()
            && !choices.contains(value)
        {
            return wrong(format!("none of {choices:?}"));
        }
        if schema.get("const").is_some_and(|only| only != value) {
            return wrong(format!("not {}", schema["const"]));
        }
        let kind = match value {
            Value::Null => "null",
            Value::Bool(_) => "boolean",
            Value::Number(number) if number.is_f64() => "number",
            Value::Number(_) => "integer",
            Value::String(_) => "string",
            Value::Array(_) => "array",
            Value::Object(_) => "object",
        };
        let fits = |name: &Value| name == kind || (name == "number" && kind == "integer");
        match &schema["type"] {
            Value::Null => {}
            Value::Array(names) if names.iter().any(fits) => {}
            name if fits(name) => {}
            names => return wrong(format!("no {names}")),
        }
        if let Some(items) = value.as_array() {
            for (number, item) in items.iter().enumerate() {
                check(document, &schema["items"], item, &format!("{at}[{number}]"))?;
            }
        }
        let Some(fields) = value.as_object() else { return Ok(()) };
        for required in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            if !fields.contains_key(required) {
                return wrong(format!("no {required}"));
            }
        }
        for (name, field) in fields {
            let described = schema["properties"].get(name).or_else(|| schema.get("additionalProperties"));
            let described = described.ok_or(format!("{at}: {name} is not described"))?;
            check(document, described, field, &format!("{at}.{name}"))?;
        }
        Ok(())
    }

    #[test]
    fn the_check_finds_what_is_wrong() {
        let document = document();
        let schema = json!({"$ref": "#/components/schemas/Version"});
        let good = json!({"schema": 1, "version": "1", "protocol_version": 1, "restarts": 0});
        check(&document, &schema, &good, "it").unwrap();
        for (field, value) in [("version", json!(1)), ("schema", json!("1")), ("other", json!(1))] {
            let mut bad = good.clone();
            bad[field] = value;
            assert!(check(&document, &schema, &bad, "it").is_err(), "{field}");
        }
        assert!(check(&document, &schema, &json!({"schema": 1}), "it").is_err());
    }
}
