//! What an end does with its tunnel: the plain `Tunn` and the product's seam behind one set of calls.

use std::time::Duration;

/// A datagram for the wire and the step that made it.
pub type Outgoing = (&'static str, Vec<u8>);

/// A tunnel as a rig's end drives it. Datagrams to send are added to `out`; errors are names to count.
pub trait Tunnel: Send {
    /// Sends an inner packet, or keeps it until there is a session.
    fn send(&mut self, inner: &[u8], out: &mut Vec<Outgoing>) -> Result<(), String>;

    /// Takes a datagram from the wire. Returns the inner packet, if it carried one.
    fn receive(&mut self, datagram: &[u8], out: &mut Vec<Outgoing>) -> Result<Option<Vec<u8>>, String>;

    /// Runs the timers.
    fn tick(&mut self, out: &mut Vec<Outgoing>) -> Result<(), String>;

    /// How long until [`Tunnel::tick`] is due. Any other call may change that.
    fn wait(&self) -> Duration;
}
