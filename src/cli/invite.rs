//! `meshctl invite`.

use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rand_core::OsRng;

use super::args::InviteArgs;
use super::authority::OpenAuthority;
use super::context::Context;
use super::exit::{Exit, Failure};
use super::output::{BAD, GOOD, HEADING, STRONG, WORRYING};
use super::table::{Align, Cell, Table};
use crate::api::{
    Client, DelegatedInvite, InviteList, InviteRequest, InviteRevokeRequest, InviteState, Invited, NodeInfo,
};
use crate::identity::{Delegation, DelegationTerms, MeshId, NodeId, NodeName, Priority, Term, VerifyingKey, Wish};
use crate::platform::clock;

/// Makes, lists or revokes invites.
pub async fn run(context: &Context, args: &InviteArgs) -> Result<(), Failure> {
    let client = context.client()?;
    if args.list {
        let list = client.invites().await?;
        return if context.output.json { context.output.json(&list) } else { context.output.data(&render(&list)) };
    }
    if let Some(invite) = &args.revoke {
        let revoked = client.revoke_invite(&InviteRevokeRequest { invite: invite.clone() }).await?;
        return match context.output.json {
            true => context.output.json(&revoked),
            false => context.output.data(&format!("the invite of {} works no more\n", revoked.invite.name)),
        };
    }
    let Some(name) = &args.node else { return Err(Failure::new(Exit::Usage, "name the node to invite")) };
    if args.expires.is_zero() || args.expires > Delegation::LONGEST {
        return Err(Failure::new(Exit::Usage, "--expires must lie between 1s and 30d"));
    }
    let invited = match &args.authority.authority {
        Some(_) => delegated(&client, args, name).await?,
        None => client.invite(&request(args, name)).await?,
    };
    show(context, &invited)
}

fn request(args: &InviteArgs, name: &NodeName) -> InviteRequest {
    InviteRequest {
        name: name.to_string(),
        tags: args.grant.tag.iter().map(ToString::to_string).collect(),
        prefixes: args.grant.route.clone(),
        shared_priority: args.grant.shared_priority().map(Priority::get),
        address: args.grant.address,
        lifetime_seconds: args.expires.as_secs(),
        relay: args.grant.relay,
        replace: args.grant.replace,
        delegated: None,
    }
}

/// Signs, with the authority's key at hand here, the local daemon's right to issue this one certificate.
async fn delegated(client: &Client, args: &InviteArgs, name: &NodeName) -> Result<Invited, Failure> {
    let Some(key) = &args.authority.authority else { return Err(Failure::new(Exit::Usage, "--authority is missing")) };
    let issuer = client.node().await?;
    let mut open = OpenAuthority::open(key, args.authority.passphrase_file.as_deref())?;
    let anchor = open.authority.anchor().clone();
    if told::<MeshId>(&issuer, "mesh id", &issuer.mesh_id)? != anchor.mesh {
        return Err(Failure::failed(format!(
            "{} is of mesh {}, this node's daemon is in {}",
            key.display(),
            anchor.mesh_name,
            issuer.mesh_name
        )));
    }
    let now = clock::wall();
    let terms = DelegationTerms {
        delegate: told::<VerifyingKey>(&issuer, "key", &issuer.verifying_key)?,
        now,
        window: args.expires,
        // Nobody but the authority renews what a delegate issued, so it holds as long as one signed by hand.
        certificate: Term::OFFLINE,
    };
    let wish = Wish {
        name: name.clone(),
        address_v4: args.grant.address,
        prefixes: args.grant.route.clone(),
        shares: args.grant.shares(),
        tags: args.grant.tag.clone(),
        permissions: args.grant.permissions(),
        keys: None,
        replace_keys: args.grant.replace,
        not_after: now + args.expires + Term::OFFLINE,
    };
    let admission = open.ledger.admit(&wish, NodeId::generate(&mut OsRng), &anchor, now)?;
    let delegation = open
        .authority
        .delegate(&admission, &terms)
        .map_err(|error| Failure::failed(format!("cannot sign the delegation: {error}")))?;
    // What was granted is on disk before anybody can use it: no address is ever given out twice.
    open.save()?;
    let mut request = request(args, name);
    request.address = Some(admission.address_v4);
    request.delegated = Some(DelegatedInvite {
        node_id: admission.node.to_string(),
        serial: admission.serial,
        delegation: STANDARD.encode(delegation.bytes()),
    });
    Ok(client.invite(&request).await?)
}

fn told<T: FromStr>(issuer: &NodeInfo, what: &str, text: &str) -> Result<T, Failure> {
    text.parse()
        .map_err(|_| Failure::failed(format!("the daemon of {} told an unreadable {what}: {text}", issuer.name)))
}

/// The token goes alone to standard output, so that it can be piped; the rest is for the person.
fn show(context: &Context, invited: &Invited) -> Result<(), Failure> {
    if context.output.json {
        return context.output.json(invited);
    }
    context.output.data(&format!("{}\n", invited.token))?;
    context.output.note(&format!(
        "{} will be {}. The token works once, until {}. On the new host:\n  meshctl join TOKEN --endpoint ADDRESS:PORT",
        invited.name, invited.address, invited.expires
    ));
    Ok(())
}

/// Renders the invites.
pub fn render(list: &InviteList) -> String {
    if list.invites.is_empty() {
        return "No invites.\n".to_owned();
    }
    let mut table = Table::new(&[
        ("NODE", Align::Left),
        ("STATE", Align::Left),
        ("ADDRESS", Align::Left),
        ("EXPIRES", Align::Left),
        ("INVITE", Align::Left),
    ]);
    for invite in &list.invites {
        let state = match invite.state {
            InviteState::Open => Cell::styled("open", WORRYING),
            InviteState::Used => Cell::styled("used", GOOD),
            InviteState::Expired => "expired".into(),
            InviteState::Revoked => Cell::styled("revoked", BAD),
        };
        table.row([
            Cell::styled(invite.name.as_str(), STRONG),
            state,
            invite.address.to_string().into(),
            invite.expires.to_string().into(),
            invite.invite.as_str().into(),
        ]);
    }
    table.render(HEADING)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::fake::{Fake, empty_status};
    use crate::api::{Backend, SCHEMA};

    #[tokio::test]
    async fn invites_and_none() {
        let list = Fake { status: empty_status(), ping: Vec::new() }.invites().await.unwrap();
        insta::assert_snapshot!(anstream::adapter::strip_str(&render(&list)).to_string(), @r#"
            NODE  STATE  ADDRESS    EXPIRES               INVITE
            web9  open   10.77.0.9  2026-11-22T15:02:00Z  aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa
            db1   used   10.77.0.9  2026-11-22T15:02:00Z  aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa
        "#);
        assert_eq!(render(&InviteList { schema: SCHEMA, invites: Vec::new() }), "No invites.\n");
    }
}
