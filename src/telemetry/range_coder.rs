//! Arithmetic coding of bits whose chances are learned on the way: a bit that was foreseen takes next to no room.
//!
//! The coder is the carry-less binary one of Mahoney's lpaq (after Schindler's), the numbers are split as LZMA splits its
//! lengths: how long a number is and its first bits are learned, the rest is taken as it comes. A general compressor finds
//! nothing in a minute's figures, whose low bits are noise; what it costs to say the high ones is what can be saved.

use super::varint::Damaged;

/// How likely a bit is set, in 2^28ths, and how often that was put to the test.
#[derive(Clone, Copy, Debug)]
struct Chance {
    set: u32,
    seen: u16,
}

/// Tests after which a chance moves no slower: what a link does changes within a day.
const STEADY: u16 = 250;

impl Chance {
    const UNKNOWN: Chance = Chance { set: 1 << 27, seen: 0 };

    /// Returns it in 65,536ths, never 0 and never all of them, so that what is least expected can still be written.
    fn of_set(self) -> u32 {
        (self.set >> 12).clamp(32, 65_504)
    }

    fn learn(&mut self, bit: bool) {
        let (set, step) = (i64::from(self.set), 2 * i64::from(self.seen) + 3);
        let target = if bit { 1 << 28 } else { 0 };
        self.set = (set + (target - set) * 2 / step) as u32;
        self.seen = (self.seen + 1).min(STEADY);
    }
}

/// One end of the line: the writing one takes bits and returns them, the reading one returns what was written whatever it is
/// given. With one pass over the data for both, they cannot come apart.
pub(super) trait Coder {
    /// Codes a bit that is set with a chance of `set` 65,536ths.
    fn bit(&mut self, set: u32, bit: bool) -> Result<bool, Damaged>;
}

/// Writes.
pub(super) struct Encoder {
    low: u32,
    high: u32,
    out: Vec<u8>,
}

impl Encoder {
    pub(super) fn new(out: Vec<u8>) -> Encoder {
        Encoder { low: 0, high: u32::MAX, out }
    }

    /// Appends the fewest bytes that, with zeros after them, lie within what is left.
    pub(super) fn finish(mut self) -> Vec<u8> {
        for bytes in 0..=4u32 {
            let grain = 1u64 << (32 - 8 * bytes);
            let value = u64::from(self.low).div_ceil(grain) * grain;
            if value <= u64::from(self.high) {
                self.out.extend_from_slice(&(value as u32).to_be_bytes()[..bytes as usize]);
                break;
            }
        }
        self.out
    }
}

fn middle(low: u32, high: u32, set: u32) -> u32 {
    low + ((u64::from(high - low) * u64::from(set)) >> 16) as u32
}

impl Coder for Encoder {
    fn bit(&mut self, set: u32, bit: bool) -> Result<bool, Damaged> {
        let middle = middle(self.low, self.high, set);
        if bit {
            self.high = middle;
        } else {
            self.low = middle + 1;
        }
        while (self.low ^ self.high) >> 24 == 0 {
            self.out.push((self.high >> 24) as u8);
            self.low <<= 8;
            self.high = self.high << 8 | 0xff;
        }
        Ok(bit)
    }
}

/// Reads.
pub(super) struct Decoder<'a> {
    low: u32,
    high: u32,
    value: u32,
    bytes: &'a [u8],
    /// Bytes taken beyond the end.
    beyond: u32,
}

impl<'a> Decoder<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Decoder<'a> {
        let mut decoder = Decoder { low: 0, high: u32::MAX, value: 0, bytes, beyond: 0 };
        (0..4).for_each(|_| decoder.shift());
        decoder
    }

    fn shift(&mut self) {
        let (byte, rest) = self.bytes.split_first().map_or((0, self.bytes), |(byte, rest)| (*byte, rest));
        self.beyond += u32::from(self.bytes.is_empty());
        (self.value, self.bytes) = (self.value << 8 | u32::from(byte), rest);
    }
}

impl Coder for Decoder<'_> {
    fn bit(&mut self, set: u32, _: bool) -> Result<bool, Damaged> {
        // The four bytes in `value` may all be zeros that were not written.
        if self.beyond > 4 {
            return Err(Damaged);
        }
        let middle = middle(self.low, self.high, set);
        let bit = self.value <= middle;
        if bit {
            self.high = middle;
        } else {
            self.low = middle + 1;
        }
        while (self.low ^ self.high) >> 24 == 0 {
            self.low <<= 8;
            self.high = self.high << 8 | 0xff;
            self.shift();
        }
        Ok(bit)
    }
}

/// Bits after the highest one that are learned.
const LEARNED: u32 = 3;

/// What is known of the numbers of one kind.
pub(super) struct Number {
    /// How long they are, in bits: a tree of seven decisions.
    length: [Chance; 128],
    /// The bits after the highest one, by length: a tree of three decisions each, made where it is needed.
    leading: Vec<[Chance; 1 << LEARNED]>,
}

impl Default for Number {
    fn default() -> Self {
        Number { length: [Chance::UNKNOWN; 128], leading: Vec::new() }
    }
}

impl Number {
    /// Codes a number.
    pub(super) fn code(&mut self, coder: &mut impl Coder, value: u64) -> Result<u64, Damaged> {
        let bits = u64::BITS - value.leading_zeros();
        let mut node = 1usize;
        for at in (0..7).rev() {
            let bit = learned(coder, &mut self.length[node], bits >> at & 1 == 1)?;
            node = node << 1 | usize::from(bit);
        }
        let bits = node as u32 - 128;
        if bits == 0 {
            return Ok(0);
        }
        if bits > 64 {
            return Err(Damaged);
        }
        if self.leading.len() <= bits as usize {
            self.leading.resize(bits as usize + 1, [Chance::UNKNOWN; 1 << LEARNED]);
        }
        let (mut read, mut node) = (1u64, 1usize);
        for at in (0..bits - 1).rev() {
            let bit = value >> at & 1 == 1;
            let bit = if node < 1 << LEARNED {
                learned(coder, &mut self.leading[bits as usize][node], bit)?
            } else {
                coder.bit(1 << 15, bit)?
            };
            node = node << 1 | usize::from(bit);
            read = read << 1 | u64::from(bit);
        }
        Ok(read)
    }

    /// Codes a number that may be negative.
    pub(super) fn code_signed(&mut self, coder: &mut impl Coder, value: i64) -> Result<i64, Damaged> {
        let folded = self.code(coder, (value << 1 ^ value >> 63) as u64)?;
        Ok((folded >> 1) as i64 ^ -((folded & 1) as i64))
    }
}

fn learned(coder: &mut impl Coder, chance: &mut Chance, bit: bool) -> Result<bool, Damaged> {
    let bit = coder.bit(chance.of_set(), bit)?;
    chance.learn(bit);
    Ok(bit)
}

/// Numbers that stay near their own mean: what is coded is how far off it they are.
#[derive(Default)]
pub(super) struct Column {
    off: Number,
    /// The mean, times 256.
    mean: i128,
    seen: i128,
}

/// Numbers after which the mean follows no slower.
const MEMORY: i128 = 32;

impl Column {
    /// Codes a number; differences wrap, so that every one has its place.
    pub(super) fn code(&mut self, coder: &mut impl Coder, value: i64) -> Result<i64, Damaged> {
        let expected = ((self.mean + 128) >> 8) as i64;
        let value = expected.wrapping_add(self.off.code_signed(coder, value.wrapping_sub(expected))?);
        self.seen = (self.seen + 1).min(MEMORY);
        self.mean += ((i128::from(value) << 8) - self.mean) / self.seen;
        Ok(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_written_reads_back(values in prop::collection::vec((any::<i64>(), 0u32..64), 0..200)) {
            let (mut encoder, mut column) = (Encoder::new(Vec::new()), Column::default());
            for (value, shift) in &values {
                column.code(&mut encoder, value >> shift).unwrap();
            }
            let bytes = encoder.finish();
            let (mut decoder, mut column) = (Decoder::new(&bytes), Column::default());
            for (value, shift) in &values {
                prop_assert_eq!(column.code(&mut decoder, 0), Ok(value >> shift));
            }
        }

        #[test]
        fn any_bytes_end(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let (mut decoder, mut number) = (Decoder::new(&bytes), Number::default());
            for _ in 0..1_000_000 {
                if number.code(&mut decoder, 0).is_err() {
                    break;
                }
            }
        }
    }

    #[test]
    fn what_was_foreseen_takes_next_to_no_room() {
        let (mut encoder, mut column) = (Encoder::new(Vec::new()), Column::default());
        for _ in 0..1_440 {
            column.code(&mut encoder, 60_000).unwrap();
        }
        assert!(encoder.finish().len() < 20);
    }
}
