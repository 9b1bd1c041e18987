//! What the daemon takes from itself once it knows its files: writing anywhere else. What its unit grants it, it then has also
//! where it is started without one.

use std::path::{Path, PathBuf};

use crate::api::{ConfinementStatus, LandlockState, UAPI_DIRECTORY};
use crate::config::{Config, Landlock, Resolver, directory_of};
use crate::platform::confinement::{self, Confined};
use crate::platform::file;

/// Where programs of receivers put what they need for a moment; under the unit these are the daemon's own.
const TEMPORARY: [&str; 2] = ["/tmp", "/var/tmp"];
/// The devices that are opened for writing.
const DEVICES: [&str; 2] = ["/dev/net/tun", "/dev/null"];
/// What root writes of the host's names, where there is no unit of its own for that.
const HOSTS: &str = "/etc/hosts";
/// Where resolvers keep what they are told, and what was told them is noted.
const RESOLVERS: [&str; 2] = ["/etc", "/run"];

/// What the kernel refuses this daemon.
#[derive(Clone, Debug)]
pub(super) struct Confinement {
    state: LandlockState,
    version: Option<u32>,
    writable: Vec<PathBuf>,
    reason: Option<String>,
}

impl Confinement {
    /// Enters what the configuration says, before there is any other thread.
    pub(super) fn enter(config: &Config) -> Confinement {
        let before = confinement::confined_before();
        if config.security.landlock == Landlock::Off && before.is_none() {
            return Confinement { state: LandlockState::Off, version: None, writable: Vec::new(), reason: None };
        }
        // What is not there cannot be named to the kernel; who makes it later on says what is wrong with it.
        let _ = file::create_private_directory(&config.files.state_directory);
        let _ = std::fs::create_dir_all(directory_of(&config.files.socket));
        let writable = directories(config, nix::unistd::geteuid().is_root());
        let places: Vec<&Path> = writable.iter().map(PathBuf::as_path).collect();
        let mut files: Vec<&Path> = DEVICES.iter().map(Path::new).collect();
        files.extend(nix::unistd::geteuid().is_root().then_some(Path::new(HOSTS)));
        let (state, version, reason) = match confinement::confine(&places, &files) {
            Ok(Confined::Yes(version)) => (LandlockState::InForce, Some(version), None),
            Ok(Confined::Before(version)) => {
                let reason = "by the program before this one: what it may write is changed by a stop and a start alone";
                (LandlockState::InForce, Some(version), Some(reason.to_owned()))
            }
            Ok(Confined::No) => {
                let reason = "this kernel has no Landlock (Linux 5.13), or does not enable it (lsm=landlock,…)";
                (LandlockState::Absent, None, Some(reason.to_owned()))
            }
            Err(error) => (LandlockState::Refused, None, Some(error.to_string())),
        };
        match (state, &reason) {
            (LandlockState::InForce, _) => tracing::debug!("Landlock is in force; writable: {writable:?}"),
            (LandlockState::Refused, Some(why)) => tracing::warn!("the daemon is not confined: {why}"),
            (_, why) => tracing::info!("the daemon is not confined: {}", why.as_deref().unwrap_or_default()),
        }
        Confinement { state, version, writable: if version.is_some() { writable } else { Vec::new() }, reason }
    }

    /// The same, for the status.
    pub(super) fn status(&self) -> ConfinementStatus {
        ConfinementStatus {
            landlock: self.state,
            version: self.version,
            writable: self.writable.iter().map(|place| place.display().to_string()).collect(),
            reason: self.reason.clone(),
        }
    }
}

/// Returns what must be written beneath, with the key that says where it is.
fn own_directories(config: &Config) -> Vec<(&'static str, PathBuf)> {
    let files = &config.files;
    // Replaced by a rename, where the link leads if it is one.
    let certificate = file::resolve(&files.certificate).unwrap_or_else(|_| files.certificate.clone());
    let mut own = vec![
        ("files.state_directory", files.state_directory.clone()),
        ("files.socket", directory_of(&files.socket)),
        ("files.certificate", directory_of(&certificate)),
    ];
    own.extend(files.ledger_path().map(|ledger| ("files.ledger", directory_of(&ledger))));
    own.extend(config.security.writable.iter().map(|place| ("security.writable", place.clone())));
    own
}

/// Returns every directory that is written beneath.
fn directories(config: &Config, is_root: bool) -> Vec<PathBuf> {
    let mut places: Vec<PathBuf> = own_directories(config).into_iter().map(|(_, place)| place).collect();
    places.extend(TEMPORARY.iter().chain([&UAPI_DIRECTORY]).map(PathBuf::from));
    if is_root && config.names.resolver != Resolver::Off {
        places.extend(RESOLVERS.iter().map(PathBuf::from));
    }
    places.sort();
    places.dedup();
    places
}

/// Says which directory of a configuration this process may not write because of what confines it: a program that takes over in a
/// confined process asks before anything is stopped.
pub fn withheld(config: &Config) -> Option<String> {
    let own = own_directories(config);
    let (key, place) = own.into_iter().find(|(_, place)| confinement::is_withheld(place))?;
    Some(format!(
        "{key}: {} lies outside of what the running daemon may write (security.landlock), and so may no program in its \
         place; stop it and start it: `systemctl restart meshd`",
        place.display()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Layer;

    const TEXT: &str = "node = \"db1\"\n[mesh]\nname = \"example\"\nid = \"000102030405060708090a0b0c0d0e0f\"\n\
        overlay = \"10.77.0.0/16\"\nauthorities = [\"11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=\"]\n";

    fn config(path: &str, more: &str) -> Config {
        let text = format!("{TEXT}{more}");
        Config::parse_layers(&[Layer { path: Path::new(path), text: &text }]).expect("valid")
    }

    #[test]
    fn a_packaged_daemon_writes_what_its_unit_lets_it_write() {
        let config = config("/etc/meshd/meshd.toml", "[names]\nresolver = \"hosts\"\n");
        let shown =
            |is_root| directories(&config, is_root).iter().map(|place| place.display().to_string()).collect::<Vec<_>>();
        let own = ["/etc/meshd", "/run/meshd", "/tmp", "/var/lib/meshd", UAPI_DIRECTORY, "/var/tmp"];
        assert_eq!(shown(false), own);
        // Root does what root's unit does otherwise.
        assert!(shown(true).contains(&"/etc".to_owned()) && shown(true).contains(&"/run".to_owned()));
    }

    #[test]
    fn everything_that_is_written_is_named_by_its_key() {
        let more = "[files]\nauthority = \"/srv/keys/authority.key\"\nstate_directory = \"/srv/state\"\nsocket = \"/srv/run/m.sock\"\n\
                    [security]\nwritable = [\"/srv/alerts\", \"mail\"]\n";
        let own = own_directories(&config("/srv/mesh/meshd.toml", more));
        let shown: Vec<String> = own.iter().map(|(key, place)| format!("{key} {}", place.display())).collect();
        assert_eq!(
            shown,
            [
                "files.state_directory /srv/state",
                "files.socket /srv/run",
                "files.certificate /srv/mesh",
                "files.ledger /srv/keys",
                "security.writable /srv/alerts",
                "security.writable /srv/mesh/mail"
            ]
        );
    }
}
