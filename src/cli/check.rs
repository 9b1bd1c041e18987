//! `meshctl check`.

use std::path::{Path, PathBuf};

use clap::Args;

use super::context::{Context, read_config};
use super::exit::{Exit, Failure};
use super::quantity;
use crate::api::SCHEMA;
use crate::config::{Config, Problems};

/// `meshctl check`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  meshctl check\n  meshctl check ./meshd.toml && meshctl reload\n\n\
                        Exits with 6 if the configuration is invalid.")]
pub struct CheckArgs {
    /// The file; the one of --config unless given.
    #[arg(value_name = "FILE")]
    pub file: Option<PathBuf>,
}

/// Reads a configuration and tells every problem.
pub fn run(context: &Context, args: &CheckArgs) -> Result<(), Failure> {
    let path = args.file.as_deref().unwrap_or(&context.config);
    let result = read_config(path);
    if !context.output.json {
        let config = result?;
        return context.output.data(&format!("{} is valid: {}\n", path.display(), summary(&config)));
    }
    match result {
        Ok(_) => context.output.json(&report(path, None)),
        Err(Failure { problems: Some(problems), .. }) => {
            context.output.json(&report(path, Some(&problems)))?;
            // The problems are the answer.
            Err(Failure::new(Exit::InvalidConfig, ""))
        }
        Err(failure) => Err(failure),
    }
}

fn summary(config: &Config) -> String {
    let open = match config.allow.len() {
        0 => "; every member reaches everything of it, for there is no [[allow]]".to_owned(),
        rules => format!("; {} of what may be reached", quantity::count(rules as u64, "rule")),
    };
    format!("node {} of mesh {}, {}{open}", config.node, config.mesh.name, config.mesh.overlay)
}

fn report(path: &Path, problems: Option<&Problems>) -> serde_json::Value {
    let list = problems.map_or(&[][..], Problems::list).iter().map(|problem| {
        serde_json::json!({
            "file": problem.path.display().to_string(),
            "line": problem.line,
            "column": problem.column,
            "key": problem.key,
            "message": problem.message,
            "expected": problem.expected,
        })
    });
    serde_json::json!({
        "schema": SCHEMA,
        "file": path.display().to_string(),
        "valid": problems.is_none(),
        "problems": list.collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_json_names_each_place() {
        let path = Path::new("/etc/meshd/meshd.toml");
        let problems = Config::parse("node = \"web1\"\n[interface]\nmtu = 12\n", path).unwrap_err();
        let report = report(path, Some(&problems));
        assert_eq!(report["valid"], false);
        let mtu = report["problems"].as_array().unwrap().iter().find(|p| p["key"] == "interface.mtu").unwrap();
        assert_eq!((mtu["line"].as_u64(), mtu["column"].as_u64()), (Some(3), Some(7)));
    }
}
