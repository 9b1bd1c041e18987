//! `meshctl authority`: who rests on which authority, a second one, and certificates of it for everybody.

use std::path::PathBuf;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::{Args, Subcommand};
use rand_core::OsRng;
use serde_json::json;

use super::authority::{OpenAuthority, armored};
use super::context::{Context, read_config};
use super::exit::{Exit, Failure};
use super::new_files::NewFiles;
use super::output::{HEADING, STRONG};
use super::quantity;
use super::table::{Align, Cell, Table};
use crate::api::{Certificates, CertificatesRequest, SCHEMA};
use crate::config::ledger_beside;
use crate::identity::{Authority, Ledger, NodeName, SignedCertificate, SigningSecret, Term, TrustAnchor, Wish};
use crate::platform::clock;
use crate::time::UnixTime;

/// Certificates in one request to the daemon: the longest are 1 KiB, 1.4 KiB in base64, and the daemon reads 64 KiB.
const AT_ONCE: usize = 32;

/// `meshctl authority`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  meshctl authority                                          who rests on which authority\n  \
                        meshctl authority new /root/new/authority.key              a second one, for the same mesh\n  \
                        meshctl authority certify --authority /root/new/authority.key   and its certificates for everybody\n\n\
                        The whole way from one authority to the next: docs/operations.md, \"Exchanging the authority\"."
)]
pub struct TrustArgs {
    /// What to do; nothing shows the authorities.
    #[command(subcommand)]
    pub command: Option<TrustCommand>,
}

/// What `meshctl authority` can do.
#[derive(Debug, Subcommand)]
pub enum TrustCommand {
    /// Makes another authority for this mesh, whose ledger has all members.
    #[command(after_help = "Examples:\n  meshctl authority new /root/new/authority.key\n  \
                            meshctl authority new /media/stick/authority.key --ask-passphrase\n\n\
                            Nothing is trusted by this: name both keys in mesh.authorities on every node first.")]
    New(NewArgs),
    /// Gives every member, or some, a certificate of this authority; keys, names, addresses and links stay.
    #[command(after_help = "Examples:\n  meshctl authority certify --authority /root/new/authority.key --dry-run\n  \
                            meshctl authority certify --authority /root/new/authority.key\n  \
                            meshctl authority certify --authority /root/new/authority.key web1 web2\n\n\
                            Members that are away get theirs when they come back; each writes its own node.cert.")]
    Certify(CertifyArgs),
}

/// `meshctl authority new`.
#[derive(Debug, Args)]
pub struct NewArgs {
    /// The key's file; its ledger is put beside it.
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Encrypts the key with the first line of this file.
    #[arg(long, value_name = "FILE", conflicts_with = "ask_passphrase")]
    pub passphrase_file: Option<PathBuf>,
    /// Encrypts the key with a passphrase asked for here.
    #[arg(long)]
    pub ask_passphrase: bool,
}

/// `meshctl authority certify`.
#[derive(Debug, Args)]
pub struct CertifyArgs {
    /// The members; all that rest on another authority unless given.
    #[arg(value_name = "NODE")]
    pub nodes: Vec<NodeName>,
    /// The authority's key; its ledger lies beside it.
    #[arg(long, value_name = "FILE")]
    pub authority: PathBuf,
    /// A file whose first line is the key's passphrase; asked for on the terminal unless given.
    #[arg(long, value_name = "FILE")]
    pub passphrase_file: Option<PathBuf>,
    /// Days the certificates are valid.
    #[arg(long, value_name = "DAYS", default_value_t = 365, value_parser = clap::value_parser!(u32).range(1..=1098))]
    pub days: u32,
    /// Says who would get one, and signs nothing.
    #[arg(long)]
    pub dry_run: bool,
}

/// Runs `meshctl authority`.
pub async fn run(context: &Context, args: &TrustArgs) -> Result<(), Failure> {
    match &args.command {
        None => show(context).await,
        Some(TrustCommand::New(args)) => new(context, args).await,
        Some(TrustCommand::Certify(args)) => certify(context, args).await,
    }
}

async fn show(context: &Context) -> Result<(), Failure> {
    let held = context.client()?.certificates().await?;
    if context.output.json {
        let authorities: Vec<_> =
            held.authorities.iter().map(|key| json!({ "authority": key, "members": on(&held, key) })).collect();
        return context.output.json(&json!({ "schema": SCHEMA, "authorities": authorities }));
    }
    context.output.data(&render(&held))
}

fn on(held: &Certificates, authority: &str) -> Vec<String> {
    held.certificates.iter().filter(|one| one.authority == authority).map(|one| one.name.clone()).collect()
}

fn render(held: &Certificates) -> String {
    let mut table = Table::new(&[("AUTHORITY", Align::Left), ("MEMBERS", Align::Right), ("WHO", Align::Left)]);
    for key in &held.authorities {
        let names = on(held, key);
        let who = if names.is_empty() { "-".to_owned() } else { names.join(" ") };
        table.row([Cell::styled(key.clone(), STRONG), names.len().to_string().into(), who.into()]);
    }
    table.render(HEADING)
}

/// The members' certificates as the daemon has them, checked against the configuration's authorities.
async fn members(context: &Context, anchor: &TrustAnchor) -> Result<Vec<SignedCertificate>, Failure> {
    let held = context.client()?.certificates().await?;
    let one = |name: &str, encoded: &str| {
        let bytes = STANDARD.decode(encoded).map_err(|error| error.to_string());
        let checked =
            bytes.and_then(|bytes| SignedCertificate::verify(&bytes, anchor).map_err(|error| error.to_string()));
        checked.map_err(|error| Failure::failed(format!("the certificate of {name}: {error}")))
    };
    held.certificates.iter().map(|member| one(&member.name, &member.certificate)).collect()
}

async fn new(context: &Context, args: &NewArgs) -> Result<(), Failure> {
    let known =
        read_config(&context.config)?.mesh.trust_anchor().map_err(|error| Failure::failed(error.to_string()))?;
    let ledger_path = ledger_beside(&args.file);
    let mut files = NewFiles::start(&[&args.file, &ledger_path])?;
    let members = members(context, &known).await?;
    let secret = SigningSecret::generate(&mut OsRng);
    let mut anchor = known.clone();
    anchor.authorities.push(secret.public());
    let authority = Authority::from_parts(anchor, secret).map_err(|error| Failure::failed(error.to_string()))?;
    let now = clock::wall();
    let mut ledger = Ledger::new(authority.anchor());
    for member in &members {
        let certificate = member.certificate();
        let wish = Wish::again(certificate, certificate.not_after);
        ledger.admit(&wish, certificate.node, authority.anchor(), now)?;
    }
    let armor = armored(&authority, args.passphrase_file.as_deref(), args.ask_passphrase)?;
    files.private(&args.file, armor.as_bytes())?;
    files.private(&ledger_path, ledger.to_text().as_bytes())?;
    let written = files.keep();
    let keys: Vec<String> = authority.anchor().authorities.iter().map(ToString::to_string).collect();
    if context.output.json {
        return context.output.json(&json!({
            "schema": SCHEMA,
            "authority": authority.public().to_string(),
            "authorities": keys,
            "members": members.len(),
            "files": written.iter().map(|path| path.display().to_string()).collect::<Vec<_>>(),
        }));
    }
    let list: Vec<String> = keys.iter().map(|key| format!("\"{key}\"")).collect();
    context.output.data(&format!("[mesh]\nauthorities = [{}]\n", list.join(", ")))?;
    context.output.note(&format!(
        "wrote {} and its ledger with {}. Nobody trusts it yet: put the two lines above into the configuration of \
         every node (conf.d/authorities.toml) and reload; then meshctl authority certify --authority {}",
        args.file.display(),
        quantity::count(members.len() as u64, "member"),
        args.file.display()
    ));
    Ok(())
}

async fn certify(context: &Context, args: &CertifyArgs) -> Result<(), Failure> {
    let anchor =
        read_config(&context.config)?.mesh.trust_anchor().map_err(|error| Failure::failed(error.to_string()))?;
    let members = members(context, &anchor).await?;
    let unknown = args.nodes.iter().find(|name| !members.iter().any(|member| member.certificate().name == **name));
    if let Some(name) = unknown {
        return Err(Failure::new(Exit::NotFound, format!("no member is named {name}")));
    }
    let mut open = OpenAuthority::open(&args.authority, args.passphrase_file.as_deref())?;
    let key = open.authority.public();
    if !anchor.authorities.contains(&key) {
        return Err(Failure::failed(format!(
            "mesh.authorities does not name {key}: add it on every node and reload; then again"
        )));
    }
    let wanted = |member: &&SignedCertificate| match args.nodes.is_empty() {
        true => member.root() != key,
        false => args.nodes.contains(&member.certificate().name),
    };
    let chosen: Vec<&SignedCertificate> = members.iter().filter(wanted).collect();
    let names: Vec<String> = chosen.iter().map(|member| member.certificate().name.to_string()).collect();
    let mut issued = Vec::new();
    if !args.dry_run {
        for member in &chosen {
            issued.push(again(&mut open, member, args.days, clock::wall())?);
        }
        open.save()?;
        let client = context.client()?;
        for part in issued.chunks(AT_ONCE) {
            let certificates = part.iter().map(|signed| STANDARD.encode(signed.bytes())).collect();
            client.take_certificates(&CertificatesRequest { certificates }).await?;
        }
    }
    if context.output.json {
        let answer = json!({
            "schema": SCHEMA, "authority": key.to_string(), "certified": names, "dry_run": args.dry_run,
        });
        return context.output.json(&answer);
    }
    let count = quantity::count(names.len() as u64, "member");
    context.output.data(&match (names.is_empty(), args.dry_run) {
        (true, _) => format!("every member rests on {key} already\n"),
        (false, true) => format!("would certify {count}: {}\n", names.join(" ")),
        (false, false) => format!("certified {count}: {}\n", names.join(" ")),
    })
}

/// What a member was granted, again, by this authority.
fn again(
    open: &mut OpenAuthority,
    member: &SignedCertificate,
    days: u32,
    now: UnixTime,
) -> Result<SignedCertificate, Failure> {
    let certificate = member.certificate();
    // The newer of two certificates holds, to the second.
    let now = now.max(certificate.issued + Duration::from_secs(1));
    let term = Term::lasting(now, Duration::from_secs(u64::from(days) * 86_400));
    let wish = Wish::again(certificate, term.not_after);
    let anchor = open.authority.anchor().clone();
    let admission = open.ledger.admit(&wish, certificate.node, &anchor, now)?;
    if admission.node != certificate.node {
        return Err(Failure::failed(format!("the ledger has another node by the name of {}", certificate.name)));
    }
    open.authority
        .issue(&admission, &certificate.keys(), &term)
        .map_err(|error| Failure::failed(format!("cannot certify {}: {error}", certificate.name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_authorities_are_shown_with_who_rests_on_them() {
        let mut held = crate::api::fake::certificates();
        held.authorities.push("another".into());
        held.certificates[1].authority = "another".into();
        let text = render(&held);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3, "{text}");
        assert!(lines[1].ends_with(&held.certificates[0].name), "{text}");
        assert!(lines[2].contains("another") && lines[2].ends_with(&held.certificates[1].name), "{text}");
    }
}
