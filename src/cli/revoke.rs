//! `meshctl revoke`.

use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::args::RevokeArgs;
use super::authority::OpenAuthority;
use super::context::Context;
use super::exit::{Exit, Failure};
use super::passphrase;
use crate::api::{Client, Member, Members, RevokeRequest, Revoked};
use crate::identity::Revocation;
use crate::platform::clock;

/// Takes a node out of the mesh.
pub async fn run(context: &Context, args: &RevokeArgs) -> Result<(), Failure> {
    let client = context.client()?;
    if !args.yes && !passphrase::confirm(&format!("Take {} out of the mesh for good?", args.node))? {
        return Err(Failure::failed("nothing was revoked"));
    }
    let revoked = match &args.authority.authority {
        Some(_) => signed_here(&client, args).await?,
        None => client.revoke(&RevokeRequest { node: args.node.clone(), revocation: None }).await?,
    };
    if context.output.json {
        return context.output.json(&revoked);
    }
    let addresses: Vec<String> = revoked.addresses.iter().map(ToString::to_string).collect();
    context.output.data(&format!(
        "{} ({}) is out of the mesh; told {} at once, who tell the others\n",
        revoked.name,
        addresses.join(", "),
        match revoked.sent_to {
            1 => "1 member".to_owned(),
            count => format!("{count} members"),
        }
    ))
}

/// Signs the revocation with the authority's key at hand here, and lets the daemon spread it.
async fn signed_here(client: &Client, args: &RevokeArgs) -> Result<Revoked, Failure> {
    let Some(key) = &args.authority.authority else { return Err(Failure::new(Exit::Usage, "--authority is missing")) };
    let members = client.members().await?;
    let member = find(&members, &args.node)?;
    let mut open = OpenAuthority::open(key, args.authority.passphrase_file.as_deref())?;
    // The member's certificate tells its keys even where a delegate admitted it and the ledger never saw them.
    let revocation = Revocation {
        mesh: open.authority.anchor().mesh,
        node: told(member, "node id", &member.node_id)?,
        wireguard_key: told(member, "key", &member.wireguard_key)?,
        verifying_key: told(member, "key", &member.verifying_key)?,
        name: told(member, "name", &member.name)?,
        at: clock::wall(),
        not_after: member.certificate_expires.0,
    };
    let signed = open
        .authority
        .revoke(&revocation)
        .map_err(|error| Failure::failed(format!("cannot sign the revocation: {error}")))?;
    let request = RevokeRequest { node: member.node_id.clone(), revocation: Some(STANDARD.encode(signed.bytes())) };
    let revoked = client.revoke(&request).await?;
    // After the mesh knows: a ledger that has not heard of it only keeps an address longer than needed.
    open.ledger.mark_revoked(revocation.node, revocation.at);
    open.save()?;
    Ok(revoked)
}

fn find<'a>(members: &'a Members, name: &str) -> Result<&'a Member, Failure> {
    members.members.iter().find(|member| member.name == name || member.node_id == name).ok_or_else(|| {
        let known = members.members.iter().map(|member| member.name.as_str());
        Failure::not_found("member", name, known, "meshctl members")
    })
}

fn told<T: FromStr>(member: &Member, what: &str, text: &str) -> Result<T, Failure> {
    text.parse()
        .map_err(|_| Failure::failed(format!("the daemon told an unreadable {what} of {}: {text}", member.name)))
}
