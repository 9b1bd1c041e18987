//! Completions, and the manual pages, the schema and the description of the local interface that a package ships.

use std::fs;
use std::path::Path;

use clap::{Command, CommandFactory};
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

use super::args::{MeshctlArgs, MeshdArgs};
use super::context::Context;
use super::exit::{Exit, Failure};
use super::schema::schema;
use crate::api::OPENAPI;
use crate::config::keys;

/// Prints a shell's completions.
pub fn completions(context: &Context, shell: Shell) -> Result<(), Failure> {
    context.output.data(&completion(MeshctlArgs::command(), "meshctl", shell))
}

fn completion(mut command: Command, name: &str, shell: Shell) -> String {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, name, &mut script);
    String::from_utf8_lossy(&script).into_owned()
}

/// Writes everything a package ships into a directory.
pub fn run(context: &Context, directory: &Path) -> Result<(), Failure> {
    let failed = |path: &Path, error| Failure::failed(format!("cannot write {}: {error}", path.display()));
    fs::create_dir_all(directory).map_err(|error| failed(directory, error))?;
    for (name, content) in pages()? {
        let path = directory.join(name);
        fs::write(&path, content).map_err(|error| failed(&path, error))?;
        context.output.note(&format!("wrote {}", path.display()));
    }
    Ok(())
}

/// Every file with its content.
fn pages() -> Result<Vec<(String, String)>, Failure> {
    let mut pages = vec![
        ("meshctl.1".to_owned(), command_page(MeshctlArgs::command(), "1")?),
        ("meshd.8".to_owned(), command_page(MeshdArgs::command(), "8")?),
        ("meshd.toml.5".to_owned(), config_page()),
        ("meshd.schema.json".to_owned(), format!("{:#}\n", schema())),
        ("meshd.openapi.json".to_owned(), OPENAPI.to_owned()),
    ];
    let meshctl = MeshctlArgs::command();
    for command in meshctl.get_subcommands().filter(|command| !command.is_hide_set()) {
        let name = format!("meshctl-{}", command.get_name());
        // clap keeps static names only; the handful made here live as long as this short process.
        let leaked: &'static str = Box::leak(name.clone().into_boxed_str());
        pages.push((format!("{name}.1"), command_page(command.clone().name(leaked), "1")?));
    }
    for (shell, suffix) in [(Shell::Bash, "bash"), (Shell::Zsh, "zsh"), (Shell::Fish, "fish")] {
        pages.push((format!("meshctl.{suffix}"), completion(MeshctlArgs::command(), "meshctl", shell)));
        pages.push((format!("meshd.{suffix}"), completion(MeshdArgs::command(), "meshd", shell)));
    }
    Ok(pages)
}

fn command_page(command: Command, section: &str) -> Result<String, Failure> {
    let mut page = Vec::new();
    let failed = |error| Failure::failed(format!("cannot render a manual page: {error}"));
    // The version stands in the package; a page that carried it would change with every release.
    Man::new(command.disable_version_flag(true).version("")).section(section).render(&mut page).map_err(failed)?;
    let mut end = Roff::new();
    end.control("SH", ["EXIT STATUS"]);
    for (exit, meaning) in Exit::ALL {
        end.control("TP", []);
        end.text([bold((exit as u8).to_string())]);
        end.text([roman(meaning)]);
    }
    end.control("SH", ["SEE ALSO"]);
    end.text([roman("meshctl(1), meshd(8), meshd.toml(5)")]);
    end.to_writer(&mut page).map_err(failed)?;
    Ok(String::from_utf8_lossy(&page).into_owned())
}

fn config_page() -> String {
    let mut page = Roff::new();
    page.control("TH", ["meshd.toml", "5"]);
    page.control("SH", ["NAME"]);
    page.text([roman("meshd.toml - configuration of meshd(8)")]);
    page.control("SH", ["DESCRIPTION"]);
    page.text([roman(
        "A TOML file, and conf.d/*.toml beside it, which are laid over it in the order of their names: a key there replaces the \
         one before it, entries of [[sections]] are added. Unknown keys are errors. Durations are a number with ms, s, m, h or d. Relative paths start at the \
         directory of meshd.toml. `meshctl check FILE` tells everything that is wrong with a file.",
    )]);
    for (section, about) in keys::SECTIONS {
        let heading = match section {
            "" => "TOP OF THE FILE".to_owned(),
            list if keys::LISTS.contains(&list) => format!("[[{list}]]"),
            name => format!("[{name}]"),
        };
        page.control("SH", [heading.as_str()]);
        if !about.is_empty() {
            page.text([roman(about)]);
        }
        for key in keys::KEYS.iter().filter(|key| key.section == section) {
            page.control("TP", []);
            page.text([bold(key.name)]);
            let default =
                if key.default.is_empty() { "Required.".to_owned() } else { format!("Default: {}.", key.default) };
            page.text([roman(format!("{} Value: {}. {default}", key.about, key.value))]);
        }
    }
    page.control("SH", ["FILES"]);
    page.text([roman("/etc/meshd/meshd.toml, /etc/meshd/conf.d/*.toml")]);
    page.to_roff()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manual_documents_every_exit_code_and_key() {
        let pages = pages().unwrap();
        let page = |name: &str| &pages.iter().find(|(page, _)| page == name).unwrap().1;
        for (exit, meaning) in Exit::ALL {
            let words = meaning.split([' ', '-', '`']).next().unwrap();
            assert!(page("meshctl.1").contains(words), "{exit:?}");
            assert!(page("meshctl.1").contains(&format!("\\fB{}\\fR", exit as u8)), "{exit:?}");
        }
        for key in keys::KEYS {
            assert!(page("meshd.toml.5").contains(&format!("\\fB{}\\fR", key.name)), "{}", key.name);
        }
        assert!(pages.iter().any(|(name, _)| name == "meshctl-status.1"));
        assert!(page("meshctl.bash").contains("complete"));
    }
}
