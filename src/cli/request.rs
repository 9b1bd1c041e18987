//! `meshctl request`.

use std::path::Path;

use rand_core::OsRng;

use super::args::RequestArgs;
use super::context::Context;
use super::exit::{Exit, Failure};
use super::new_files::NewFiles;
use crate::api::SCHEMA;
use crate::config::Files;
use crate::identity::{NodeKeys, SignedRequest};
use crate::platform::{clock, file};

/// Bytes of an identity file at most.
const IDENTITY_LIMIT: u64 = 16 * 1024;

/// Prints a request for a certificate; makes this host's keys where it has none.
pub fn run(context: &Context, args: &RequestArgs) -> Result<(), Failure> {
    let path = Files::beside(&context.config_in(args.dir.as_deref())).identity;
    let (keys, fresh) = keys_at(&path)?;
    let request = SignedRequest::new(&args.node, &args.endpoint, clock::wall(), &keys)
        .map_err(|error| Failure::new(Exit::Usage, error.to_string()))?;
    let made = if fresh { "made new keys in" } else { "used the keys in" };
    context.output.note(&format!("{made} {}", path.display()));
    if context.output.json {
        return context.output.json(&serde_json::json!({
            "schema": SCHEMA,
            "node": args.node.to_string(),
            "identity": path.display().to_string(),
            "new_keys": fresh,
            "wireguard_key": keys.public().wireguard.to_string(),
            "verifying_key": keys.public().verifying.to_string(),
            "request": request.to_armor(),
        }));
    }
    context.output.data(&request.to_armor())?;
    context.output.note("sign it where the authority is: meshctl sign REQUEST --authority authority.key");
    Ok(())
}

/// Returns the keys in a file, made and written there where it does not exist, and whether they were made.
///
/// # Errors
/// The file cannot be read or written, or is no identity.
pub fn keys_at(path: &Path) -> Result<(NodeKeys, bool), Failure> {
    match std::fs::symlink_metadata(path) {
        Ok(_) => {
            let text = file::read_private(path, IDENTITY_LIMIT)?;
            let bad = |error: String| Failure::failed(format!("{}: {error}", path.display()));
            let text = std::str::from_utf8(&text).map_err(|_| bad("it is no UTF-8 text".to_owned()))?;
            Ok((NodeKeys::from_armor(text).map_err(|error| bad(error.to_string()))?, false))
        }
        Err(_) => {
            let mut new = NewFiles::start(&[path])?;
            let keys = NodeKeys::generate(&mut OsRng);
            new.private(path, keys.to_armor().as_bytes())?;
            new.keep();
            Ok((keys, true))
        }
    }
}
