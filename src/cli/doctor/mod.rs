//! `meshctl doctor`.

mod checks;
mod facts;

use clap::Args;
use serde::Serialize;

use self::checks::findings;
use self::facts::Facts;
use super::context::Context;
use super::exit::{Exit, Failure};
use super::output::{BAD, GOOD, WORRYING, paint};
use crate::api::SCHEMA;

/// `meshctl doctor`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  meshctl doctor\n  meshctl doctor --all          also what was found to be good\n  \
                        meshctl --json doctor\n\n\
                        Looks at this host, its configuration and its daemon, and changes nothing. Run it as root: what it\n\
                        may not read it calls unknown. Exits with 1 if there is trouble."
)]
pub struct DoctorArgs {
    /// Also shows what is good.
    #[arg(long)]
    pub all: bool,
}

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
enum Outcome {
    /// Something does not work, or will not.
    Trouble,
    /// It works, and could be better or safer.
    Notice,
    /// It could not be looked at.
    Unknown,
    /// Nothing is wrong.
    Good,
}

/// What was looked at, and what was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Finding {
    outcome: Outcome,
    /// What was looked at: a stable word.
    check: &'static str,
    /// What was found.
    message: String,
    /// What to do; empty where there is nothing to do.
    remedy: String,
}

/// Looks at everything and tells what is wrong, trouble first.
pub async fn run(context: &Context, args: &DoctorArgs) -> Result<(), Failure> {
    let mut found = findings(&Facts::gather(context).await);
    found.sort_by_key(|finding| finding.outcome);
    let trouble = found.iter().filter(|finding| finding.outcome == Outcome::Trouble).count();
    if context.output.json {
        context.output.json(&serde_json::json!({ "schema": SCHEMA, "healthy": trouble == 0, "findings": found }))?;
    } else {
        context.output.data(&render(&found, args.all))?;
    }
    // What is wrong was said above.
    if trouble == 0 { Ok(()) } else { Err(Failure::new(Exit::Failed, "")) }
}

/// Everything found, as JSON, for a report; what is wrong in the configuration is not quoted, for it may be a secret.
pub(super) async fn report(context: &Context) -> serde_json::Value {
    let mut facts = Facts::gather(context).await;
    if facts.config.is_err() {
        facts.config = Err("it cannot be read, or is invalid".to_owned());
    }
    serde_json::json!(findings(&facts))
}

fn render(found: &[Finding], all: bool) -> String {
    let mut text = String::new();
    for finding in found.iter().filter(|finding| all || finding.outcome != Outcome::Good) {
        let (word, style) = match finding.outcome {
            Outcome::Trouble => ("TROUBLE", BAD),
            Outcome::Notice => ("notice ", WORRYING),
            Outcome::Unknown => ("unknown", WORRYING),
            Outcome::Good => ("good   ", GOOD),
        };
        text += &format!("{}  {}: {}\n", paint(style, word), finding.check, finding.message);
        if !finding.remedy.is_empty() {
            text += &format!("         {}\n", finding.remedy);
        }
    }
    let count = |outcome| found.iter().filter(|finding| finding.outcome == outcome).count();
    let good = count(Outcome::Good);
    let (trouble, notices, unknown) = (count(Outcome::Trouble), count(Outcome::Notice), count(Outcome::Unknown));
    text + &format!("{} checks: {trouble} trouble, {notices} notices, {unknown} unknown, {good} good\n", found.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trouble_stands_out_and_what_is_good_is_counted() {
        let finding =
            |outcome, check, remedy: &str| Finding { outcome, check, message: "text".into(), remedy: remedy.into() };
        let found = [finding(Outcome::Trouble, "clock", "mend it"), finding(Outcome::Good, "kernel", "")];
        let plain = anstream::adapter::strip_str(&render(&found, false)).to_string();
        assert_eq!(
            plain,
            "TROUBLE  clock: text\n         mend it\n2 checks: 1 trouble, 0 notices, 0 unknown, 1 good\n"
        );
        assert!(render(&found, true).contains("kernel: text"));
    }
}
