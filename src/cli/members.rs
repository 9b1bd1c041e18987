//! `meshctl members`, `meshctl version` and `meshctl renew`: one question, one answer.

use super::context::Context;
use super::exit::Failure;
use super::output::{BAD, HEADING, STRONG};
use super::table::{Align, Cell, Table};
use crate::api::{Members, SCHEMA};

/// Lists the members.
pub async fn run(context: &Context) -> Result<(), Failure> {
    let members = context.client()?.members().await?;
    if context.output.json { context.output.json(&members) } else { context.output.data(&render(&members)) }
}

/// Renders the members.
pub fn render(members: &Members) -> String {
    let mut table = Table::new(&[
        ("NAME", Align::Left),
        ("ADDRESS", Align::Left),
        ("IPV6", Align::Left),
        ("ENDPOINTS", Align::Left),
        ("ROUTES", Align::Left),
        ("TAGS", Align::Left),
        ("CERTIFICATE UNTIL", Align::Left),
    ]);
    let joined = |items: Vec<String>| if items.is_empty() { "-".to_owned() } else { items.join(" ") };
    for member in &members.members {
        let mut name = member.name.clone();
        name.push_str(if member.is_self { " (this node)" } else { "" });
        name.push_str(if member.relays { ", relay" } else { "" });
        let until = member.certificate_expires.to_string();
        table.row([
            Cell::styled(name, STRONG),
            member.address_v4.to_string().into(),
            member.address_v6.to_string().into(),
            joined(member.endpoints.iter().map(ToString::to_string).collect()).into(),
            joined(member.prefixes.iter().map(ToString::to_string).collect()).into(),
            joined(member.tags.clone()).into(),
            if member.revoked { Cell::styled("revoked", BAD) } else { until.into() },
        ]);
    }
    table.render(HEADING)
}

/// Prints the versions of this command and of the daemon, where one runs.
pub async fn version(context: &Context) -> Result<(), Failure> {
    let own = env!("CARGO_PKG_VERSION");
    let daemon = context.client()?.version().await;
    if context.output.json {
        let daemon = daemon.ok();
        return context.output.json(&serde_json::json!({ "schema": SCHEMA, "meshctl": own, "daemon": daemon }));
    }
    let daemon = match daemon {
        Ok(daemon) => format!("{} (protocol {})", daemon.version, daemon.protocol_version),
        Err(_) => "not reachable".to_owned(),
    };
    context.output.data(&format!("meshctl {own}\nmeshd   {daemon}\n"))
}

/// Renews this node's certificate.
pub async fn renew(context: &Context) -> Result<(), Failure> {
    let renewed = context.client()?.renew().await?;
    if context.output.json {
        return context.output.json(&renewed);
    }
    context
        .output
        .data(&format!("certificate valid until {}, issued by {}\n", renewed.certificate_expires, renewed.issuer))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::Backend;
    use crate::api::fake::{Fake, troubled_status};

    #[tokio::test]
    async fn members_with_a_revoked_one() {
        let mut status = troubled_status();
        status.peers.retain(|peer| ["old1", "web2"].contains(&peer.name.as_str()));
        let mut members = Fake { status, ping: Vec::new() }.members().await.unwrap();
        members.members[1].is_self = true;
        members.members[1].tags.clear();
        insta::assert_snapshot!(anstream::adapter::strip_str(&render(&members)).to_string(), @r#"
            NAME                     ADDRESS    IPV6                   ENDPOINTS          ROUTES        TAGS  CERTIFICATE UNTIL
            old1                     10.77.0.8  fd12:3456:789a::a4d:8  198.51.100.2:7655  192.0.2.0/24  db    revoked
            web2 (this node), relay  10.77.0.4  fd12:3456:789a::a4d:4  198.51.100.2:7655  192.0.2.0/24  -     2027-06-10T14:02:00Z
        "#);
    }
}
