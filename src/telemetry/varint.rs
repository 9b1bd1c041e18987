//! Whole numbers in as few bytes as they need (LEB128), for what is kept for years.

/// Bytes that were not written by this code, or not all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it is damaged, or was written by a newer version")]
pub struct Damaged;

/// Appends a number: seven bits a byte, the lowest first.
pub fn write(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Takes a number off the front.
///
/// # Errors
/// The bytes end within it, or it does not fit 64 bits.
pub fn read(bytes: &mut &[u8]) -> Result<u64, Damaged> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first().ok_or(Damaged)?;
        *bytes = rest;
        let bits = u64::from(byte & 0x7f);
        if bits << shift >> shift != bits {
            return Err(Damaged);
        }
        value |= bits << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(Damaged)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_written_reads_back(values in prop::collection::vec(any::<u64>(), 0..20), shift in 0u32..64) {
            let mut bytes = Vec::new();
            values.iter().for_each(|value| write(&mut bytes, value >> shift));
            let mut rest = bytes.as_slice();
            for value in &values {
                prop_assert_eq!(read(&mut rest), Ok(value >> shift));
            }
            prop_assert!(rest.is_empty());
            prop_assert_eq!(read(&mut rest), Err(Damaged));
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        assert_eq!(read(&mut [0xff; 12].as_slice()), Err(Damaged));
        assert_eq!(read(&mut [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02].as_slice()), Err(Damaged));
    }
}
