//! `meshctl bugreport`.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use clap::Args;
use serde::Serialize;
use serde_json::{Value, json};

use super::context::{Context, read_config};
use super::doctor;
use super::exit::Failure;
use crate::api::{ClientError, EventsRequest, SCHEMA, Timestamp};
use crate::config::{Config, receiver::ReceiverKind};
use crate::platform::clock;
use crate::platform::file;

/// Lines of the journal at most: what a daemon in trouble says in some hours, below one MiB.
const JOURNAL_LINES: &str = "2000";
/// Bytes of one program's answer at most.
const ANSWER_LIMIT: usize = 1 << 20;

/// What the kernel is asked about the mesh, without a shell; a program that is missing is said to be.
const QUESTIONS: [&[&str]; 4] = [
    &["ip", "-statistics", "address", "show"],
    &["ip", "route", "show", "table", "all", "proto", "77"],
    &["ip", "-6", "route", "show", "table", "all", "proto", "77"],
    &["journalctl", "--no-pager", "--quiet", "--unit=meshd", "--output=short-iso", "--lines", JOURNAL_LINES],
];

/// `meshctl bugreport`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  meshctl bugreport\n  meshctl bugreport /tmp/report.json\n\n\
                        Holds no key, token, invite or password, and of receivers' addresses the host alone; but the names and\n\
                        addresses of the mesh. Read it before you give it away: it is one JSON text.")]
pub struct BugreportArgs {
    /// The file to write; meshd-report-TIME.json here unless given.
    #[arg(value_name = "FILE")]
    pub file: Option<PathBuf>,
}

/// Writes a report of this host, its daemon and its mesh.
pub async fn run(context: &Context, args: &BugreportArgs) -> Result<(), Failure> {
    let report = compose(context, QUESTIONS.iter().map(|words| ask(words)).collect()).await;
    // Colons are no part of a file's name everywhere.
    let name = || PathBuf::from(format!("meshd-report-{}.json", clock::wall().to_string().replace(':', "")));
    let path = args.file.clone().unwrap_or_else(name);
    file::create_new_private(&path, format!("{report:#}\n").as_bytes())?;
    if context.output.json {
        return context.output.json(&json!({ "schema": SCHEMA, "file": path.display().to_string() }));
    }
    context.output.data(&format!("{}\n", path.display()))?;
    context
        .output
        .note("It holds no secret, but the names and addresses of the mesh: read it before you give it away.");
    Ok(())
}

/// Puts a report together from what the host answered and what the daemon says.
async fn compose(context: &Context, host: Vec<Value>) -> Value {
    let configuration = match read_config(&context.config) {
        Ok(config) => json!(without_secrets(config).to_toml(&context.config)),
        // What is wrong with it may be a secret at the wrong place.
        Err(_) => json!({ "error": "it cannot be read, or is invalid" }),
    };
    let daemon = match context.client() {
        Ok(client) => json!({
            "version": said(client.version().await),
            "status": said(client.status().await),
            "paths": said(client.paths().await),
            "ledger": said(client.ledger().await),
            "members": said(client.members().await),
            "alerts": said(client.alerts().await),
            "events": said(client.events(&EventsRequest::default()).await),
        }),
        Err(failure) => json!({ "error": failure.message }),
    };
    json!({
        "schema": SCHEMA,
        "written": Timestamp(clock::wall()),
        "meshctl": env!("CARGO_PKG_VERSION"),
        "doctor": doctor::report(context).await,
        "configuration": configuration,
        "daemon": daemon,
        "host": host,
    })
}

/// An answer, or why there is none.
fn said<T: Serialize>(answer: Result<T, ClientError>) -> Value {
    answer.map_or_else(|error| json!({ "error": error.to_string() }), |answer| json!(answer))
}

/// Keys and passwords lie in files of their own; what else is secret is where alerts go, and with which words.
fn without_secrets(mut config: Config) -> Config {
    for receiver in &mut config.receivers {
        match &mut receiver.kind {
            ReceiverKind::Webhook(http) | ReceiverKind::Alertmanager(http) => http.url = http.host().to_owned(),
            ReceiverKind::Command(words) => words.truncate(1),
        }
    }
    config
}

fn ask(words: &[&str]) -> Value {
    let Some((program, arguments)) = words.split_first() else { return Value::Null };
    let answer = Command::new(program).args(arguments).stdin(Stdio::null()).output();
    let text = match answer {
        Ok(done) => [done.stdout, done.stderr].concat(),
        Err(error) => error.to_string().into_bytes(),
    };
    // The end of a long text is its newest part.
    let end = &text[text.len().saturating_sub(ANSWER_LIMIT)..];
    json!({ "command": words.join(" "), "answer": String::from_utf8_lossy(end) })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::args::{Color, GlobalArgs};
    use super::*;
    use crate::api::Server;
    use crate::api::fake::{Fake, ping_lines, troubled_status};
    use crate::identity::NodeKeys;

    #[tokio::test]
    async fn a_report_tells_everything_but_secrets() {
        let directory = tempfile::tempdir().unwrap();
        let config = directory.path().join("meshd.toml");
        let socket = directory.path().join("meshd.sock");
        let keys = NodeKeys::generate(&mut rand_core::OsRng).to_armor();
        file::create_new_private(&directory.path().join("identity.key"), keys.as_bytes()).unwrap();
        let example = include_str!("../../examples/meshd.toml")
            .replace("example.com/meshd\"", "example.com/hook/T0PSECRET?key=HUSH\"");
        let example = example.replace("--team", "--password=HUSH");
        assert!(example.contains("T0PSECRET") && example.matches("HUSH").count() == 2, "{example}");
        std::fs::write(&config, example).unwrap();
        let server = Server::bind(&socket, None).unwrap();
        let fake = Arc::new(Fake { status: troubled_status(), ping: ping_lines() });
        let serving = tokio::spawn(server.serve(fake, std::future::pending()));
        let global = GlobalArgs { config: config.clone(), socket: Some(socket), color: Color::Never, json: true };
        let context = Context::new(&global);
        let report = compose(&context, vec![ask(&["true"]), ask(&["/no/such/program"])]).await;
        let text = report.to_string();
        for secret in ["T0PSECRET", "HUSH"].into_iter().chain(keys.lines().filter(|line| line.len() > 30)) {
            assert!(!text.contains(secret), "{secret}");
        }
        assert!(text.contains("alerts.example.com") && text.contains("/usr/local/bin/page"), "{text}");
        assert_eq!(report["daemon"]["status"]["node"]["name"], "web1");
        assert!(report["doctor"].as_array().unwrap().len() > 5);
        // Nor where the file is broken at the secret itself.
        std::fs::write(&config, "[[receiver]]\nurl = T0PSECRET\n").unwrap();
        assert!(!compose(&context, Vec::new()).await.to_string().contains("T0PSECRET"));
        serving.abort();
    }

    #[tokio::test]
    async fn nothing_is_overwritten_and_a_host_without_a_daemon_has_a_report() {
        let directory = tempfile::tempdir().unwrap();
        let global =
            GlobalArgs { config: directory.path().join("meshd.toml"), socket: None, color: Color::Never, json: true };
        let context = Context::new(&global);
        let args = BugreportArgs { file: Some(directory.path().join("report.json")) };
        run(&context, &args).await.unwrap();
        let report: Value = serde_json::from_slice(&std::fs::read(args.file.as_ref().unwrap()).unwrap()).unwrap();
        assert!(report["daemon"]["status"]["error"].as_str().unwrap().contains("no daemon answers"), "{report}");
        assert!(run(&context, &args).await.unwrap_err().message.contains("is not overwritten"));
    }
}
