//! `meshctl sign`.

use std::io::Read;
use std::path::Path;
use std::time::Duration;

use rand_core::OsRng;

use super::args::SignArgs;
use super::authority::OpenAuthority;
use super::context::{Context, read_text};
use super::exit::Failure;
use crate::api::SCHEMA;
use crate::identity::{NodeId, SignedRequest, Term, Wish};
use crate::platform::clock;

/// Bytes of a request at most.
const REQUEST_LIMIT: u64 = 16 * 1024;

/// Signs a request, enters it into the ledger and prints the certificate.
pub fn run(context: &Context, args: &SignArgs) -> Result<(), Failure> {
    let name =
        if args.request == Path::new("-") { "standard input".to_owned() } else { args.request.display().to_string() };
    let request = SignedRequest::from_armor(&read_request(&args.request)?)
        .map_err(|error| Failure::failed(format!("{name}: {error}")))?;
    let mut open = OpenAuthority::open(&args.authority, args.passphrase_file.as_deref())?;
    let now = clock::wall();
    let term = Term::lasting(now, Duration::from_secs(u64::from(args.days) * 86_400));
    let keys = request.request().keys();
    let wish = Wish {
        name: request.request().name.clone(),
        address_v4: args.grant.address,
        prefixes: args.grant.route.clone(),
        shares: args.grant.shares(),
        tags: args.grant.tag.clone(),
        permissions: args.grant.permissions(),
        keys: Some(keys),
        replace_keys: args.grant.replace,
        not_after: term.not_after,
    };
    let anchor = open.authority.anchor().clone();
    let admission = open.ledger.admit(&wish, NodeId::generate(&mut OsRng), &anchor, now)?;
    let certificate = open
        .authority
        .issue(&admission, &keys, &term)
        .map_err(|error| Failure::failed(format!("cannot issue the certificate: {error}")))?;
    open.save()?;
    if context.output.json {
        return context.output.json(&serde_json::json!({
            "schema": SCHEMA,
            "node": admission.name.to_string(),
            "node_id": admission.node.to_string(),
            "address_v4": admission.address_v4,
            "address_v6": anchor.address_v6(admission.address_v4),
            "serial": admission.serial,
            "certificate_expires": term.not_after.to_string(),
            "certificate": certificate.to_armor(),
        }));
    }
    context.output.data(&certificate.to_armor())?;
    context.output.note(&format!(
        "{} is {} in mesh {}, certificate until {}; put it beside that host's identity.key as node.cert",
        admission.name, admission.address_v4, anchor.mesh_name, term.not_after
    ));
    Ok(())
}

fn read_request(path: &Path) -> Result<String, Failure> {
    if path != Path::new("-") {
        return read_text(path, REQUEST_LIMIT);
    }
    let mut text = String::new();
    std::io::stdin()
        .take(REQUEST_LIMIT)
        .read_to_string(&mut text)
        .map_err(|error| Failure::failed(format!("cannot read the request from standard input: {error}")))?;
    Ok(text)
}
