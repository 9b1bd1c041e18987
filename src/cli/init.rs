//! `meshctl init`.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use rand_core::OsRng;

use super::args::InitArgs;
use super::authority::armored;
use super::context::Context;
use super::exit::Failure;
use super::new_files::NewFiles;
use crate::api::SCHEMA;
use crate::config::{Config, DEFAULT_PORT, Files, Mesh, directory_of, ledger_beside};
use crate::identity::{
    Admission, Authority, Ledger, NodeId, NodeKeys, Permissions, SignedCertificate, Term, TrustAnchor, Wish,
};
use crate::platform::clock;

/// Starts a mesh: its authority, and its first node on this host.
pub fn run(context: &Context, args: &InitArgs) -> Result<(), Failure> {
    let config_path = context.config_in(args.dir.as_deref());
    let files = Files::beside(&config_path);
    let key_path = directory_of(&config_path).join("authority.key");
    let ledger_path = ledger_beside(&key_path);
    let all = [&config_path, &files.identity, &files.certificate, &key_path, &ledger_path];
    let mut new = NewFiles::start(&all.map(PathBuf::as_path))?;

    let founded = found(args)?;
    let mut config = Config::new(args.node.clone(), mesh_of(founded.authority.anchor()), &config_path);
    config.underlay.endpoints.clone_from(&args.endpoint);
    config.underlay.listen = listen(args.listen, &args.endpoint);
    if !args.offline_authority && !args.ask_passphrase {
        config.files.authority = Some(key_path.clone());
        config.files.authority_passphrase_file = args.authority_passphrase_file.as_deref().map(absolute).transpose()?;
    }
    let text = config.to_toml(&config_path);
    // The arguments may break a rule of the file, such as an endpoint nobody can send to.
    Config::parse(&text, &config_path)?;

    let armor = armored(&founded.authority, args.authority_passphrase_file.as_deref(), args.ask_passphrase)?;
    new.private(&key_path, armor.as_bytes())?;
    new.private(&ledger_path, founded.ledger.to_text().as_bytes())?;
    new.private(&files.identity, founded.keys.to_armor().as_bytes())?;
    new.public(&files.certificate, founded.certificate.to_armor().as_bytes())?;
    new.public(&config_path, text.as_bytes())?;
    report(context, &founded, &config, &config_path, &new.keep())
}

/// A mesh that exists only here yet.
struct Founded {
    authority: Authority,
    ledger: Ledger,
    keys: NodeKeys,
    certificate: SignedCertificate,
    admission: Admission,
}

fn found(args: &InitArgs) -> Result<Founded, Failure> {
    let now = clock::wall();
    let authority = Authority::generate(args.mesh.as_str(), args.overlay, &mut OsRng)
        .map_err(|error| Failure::failed(error.to_string()))?;
    let keys = NodeKeys::generate(&mut OsRng);
    let mut ledger = Ledger::new(authority.anchor());
    let term = Term::offline(now);
    let wish = Wish {
        name: args.node.clone(),
        address_v4: None,
        prefixes: Vec::new(),
        shares: Default::default(),
        tags: Vec::new(),
        permissions: Permissions { relay: args.relay, ..Permissions::default() },
        keys: Some(keys.public()),
        replace_keys: false,
        not_after: term.not_after,
    };
    let admission = ledger.admit(&wish, NodeId::generate(&mut OsRng), authority.anchor(), now)?;
    let certificate = authority
        .issue(&admission, &keys.public(), &term)
        .map_err(|error| Failure::failed(format!("cannot issue this node's certificate: {error}")))?;
    Ok(Founded { authority, ledger, keys, certificate, admission })
}

/// The mesh section of a node's configuration.
pub fn mesh_of(anchor: &TrustAnchor) -> Mesh {
    Mesh {
        name: anchor.mesh_name.clone(),
        id: anchor.mesh,
        overlay: anchor.overlay_v4,
        authorities: anchor.authorities.clone(),
    }
}

/// Where a node listens: where it was told to, else on every address at the port it announces.
pub fn listen(listen: Option<SocketAddr>, endpoints: &[SocketAddr]) -> Vec<SocketAddr> {
    if let Some(listen) = listen {
        return vec![listen];
    }
    let port = endpoints.first().map_or(DEFAULT_PORT, SocketAddr::port);
    vec![SocketAddr::from((std::net::Ipv6Addr::UNSPECIFIED, port))]
}

fn absolute(path: &Path) -> Result<PathBuf, Failure> {
    std::path::absolute(path).map_err(|error| Failure::failed(format!("{}: {error}", path.display())))
}

fn report(
    context: &Context,
    founded: &Founded,
    config: &Config,
    config_path: &Path,
    written: &[PathBuf],
) -> Result<(), Failure> {
    let anchor = founded.authority.anchor();
    let expires = founded.certificate.certificate().not_after;
    if context.output.json {
        return context.output.json(&serde_json::json!({
            "schema": SCHEMA,
            "mesh_name": anchor.mesh_name,
            "mesh_id": anchor.mesh.to_string(),
            "node": config.node.to_string(),
            "node_id": founded.admission.node.to_string(),
            "address_v4": founded.admission.address_v4,
            "address_v6": anchor.address_v6(founded.admission.address_v4),
            "certificate_expires": expires.to_string(),
            "files": written.iter().map(|path| path.display().to_string()).collect::<Vec<_>>(),
        }));
    }
    let mut text = format!(
        "mesh {} ({}), node {} at {}, certificate until {expires}\n",
        anchor.mesh_name, anchor.overlay_v4, config.node, founded.admission.address_v4
    );
    for path in written {
        text.push_str(&format!("  {}\n", path.display()));
    }
    context.output.data(&text)?;
    context.output.note(&format!(
        "\nKeep a copy of authority.key and authority.ledger off this host: without them no node can be admitted or \
         revoked.\nNext:\n  meshd --config {0}      or: systemctl enable --now meshd\n  \
         meshctl --config {0} invite NODE      prints a token for the next host",
        config_path.display()
    ));
    Ok(())
}
