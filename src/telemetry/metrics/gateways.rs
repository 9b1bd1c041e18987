//! The metrics of gateways: a series for each gateway of each shared prefix, and for each target of this node's own checks.

use std::fmt::Error;

use super::Snapshot;
use super::exposition::Families;
use super::snapshot::GatewaySnapshot;

pub(super) fn encode(snapshot: &Snapshot, families: &mut Families<'_>) -> Result<(), Error> {
    let shown = |of: fn(&GatewaySnapshot) -> bool| {
        snapshot.gateways.iter().map(move |gateway| {
            let labels = vec![("prefix", gateway.prefix.as_str()), ("gateway", gateway.name.as_str())];
            (labels, f64::from(u8::from(of(gateway))))
        })
    };
    let help = "Whether this node sends by the gateway what is for the shared prefix";
    families.gauge("gateway_in_use", None, help, shown(|gateway| gateway.in_use))?;
    let help = "Whether the gateway serves the shared prefix: it is neither drained nor failing nor silent";
    families.gauge("gateway_fit", None, help, shown(|gateway| gateway.fit))?;
    let up = snapshot.gateway_checks.iter().filter_map(|check| {
        let labels = vec![("prefix", check.prefix.as_str()), ("target", check.target.as_str())];
        Some((labels, f64::from(u8::from(check.up?))))
    });
    let help = "Whether a target behind this gateway answers; absent before enough is known";
    families.gauge("gateway_check_up", None, help, up)
}
