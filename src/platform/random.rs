//! Randomness from the operating system.

use rand_core::{OsRng, RngCore};
use zeroize::Zeroizing;

/// Returns 32 bytes from the kernel's generator, to seed a deterministic generator of a pure room.
///
/// The bytes are wiped when dropped. Fails only where the kernel has no `getrandom` (before Linux 3.17).
pub fn seed() -> Result<Zeroizing<[u8; 32]>, rand_core::Error> {
    let mut bytes = Zeroizing::new([0u8; 32]);
    OsRng.try_fill_bytes(bytes.as_mut())?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_seeds_differ() {
        assert_ne!(*seed().unwrap(), *seed().unwrap());
    }
}
