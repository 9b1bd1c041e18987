//! Hosts behind routers that translate addresses.

use std::net::IpAddr;
use std::time::Instant;

use crate::harness::Case;
use crate::lab::{Firewall, Flow, Lab, Mesh, Result, package};
use crate::scene::{DELAY, LONG};

pub const CASES: &[Case] = &[Case {
    name: "nat::a_host_behind_a_router_is_a_member_and_is_followed",
    needs: &[&package::NFTABLES],
    run: behind_a_router,
}];

/// ```text
/// web 192.168.7.2 ── router, translates ── WAN ── db
///                      its address changes
/// ```
///
/// Nobody can reach web but by the mapping that its own packets made; no event tells anybody that the mapping changed.
fn behind_a_router(lab: &Lab) -> Result<()> {
    let wan = lab.wan(41)?;
    let (web, router, db) = (lab.host("web")?, lab.host("router")?, lab.host("db")?);
    let (outside, on_db) = (wan.attach(&router)?, wan.attach(&db)?);
    wan.all().delay(DELAY);
    lab.wire(&router, "lan0", &web, "eth0")?;
    let (gateway, own) = (IpAddr::from([192, 168, 7, 1]), IpAddr::from([192, 168, 7, 2]));
    router.add_address("lan0", gateway, 24)?;
    web.add_address("eth0", own, 24)?;
    web.add_route((IpAddr::from([0, 0, 0, 0]), 0), Some(gateway), "eth0")?;
    Firewall::new(&router)?.masquerade("eth0", true)?;

    let mesh = Mesh::init(&db, on_db.v4)?;
    mesh.start(&[&db])?;
    mesh.join(&web, own)?;
    mesh.start(&[&web])?;
    mesh.wait_until_all_up(&[&web, &db], LONG)?;
    let (web_inside, db_inside) = (mesh.addresses(&web)[0], mesh.addresses(&db)[0]);
    let mut out = Flow::open(&web, web_inside, &db, db_inside)?;
    let mut back = Flow::open(&db, db_inside, &web, web_inside)?;
    out.exchange(b"by the first mapping")?;
    back.exchange(b"by the first mapping")?;

    let new = IpAddr::from([198, 18, 77, 7]);
    wan.add_address(&router, &outside, new)?;
    wan.remove_address(&router, &outside, outside.v4.into())?;
    let changed = Instant::now();
    out.exchange(b"by the second mapping")?;
    println!("    the router's address changed: a connection from behind it goes on after {:.0?}", changed.elapsed());
    back.exchange(b"by the second mapping")?;
    println!("    … and one to behind it after {:.0?}", changed.elapsed());
    let status = mesh.wait_for(&db, "the second mapping in use", LONG, |status| {
        status.peers.iter().any(|peer| peer.path.as_ref().is_some_and(|path| path.endpoint.ip() == new))
    })?;
    assert_eq!(status.peers.len(), 1);
    Ok(())
}
