//! Changes of an input that get past the first checks of a decoder more often than random bytes.

use crate::random::FuzzRandom;

/// Numbers at which decoders go wrong.
const INTERESTING: &[u64] = &[
    0,
    1,
    2,
    0x7f,
    0x80,
    0xff,
    0x100,
    0x7fff,
    0x8000,
    0xffff,
    0x1_0000,
    0x00ff_ffff,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_fffe,
    0xffff_ffff,
    0x1_0000_0000,
    0x7fff_ffff_ffff_ffff,
    0x8000_0000_0000_0000,
    u64::MAX,
];
/// Texts at which decoders go wrong.
const INTERESTING_TEXTS: &[&str] =
    &["", "0", "-1", "-0", "9223372036854775808", "18446744073709551615", "1e999", "NaN", "null", "\u{0}", "\u{feff}"];

/// Changes an input once or a few times. Parts may come from another input or from the dictionary.
pub(crate) fn mutate(
    input: &mut Vec<u8>,
    other: &[u8],
    dictionary: &[Vec<u8>],
    length_max: usize,
    random: &mut FuzzRandom,
) {
    for _ in 0..=random.below(4) {
        mutate_once(input, other, dictionary, random);
    }
    input.truncate(length_max);
}

fn mutate_once(input: &mut Vec<u8>, other: &[u8], dictionary: &[Vec<u8>], random: &mut FuzzRandom) {
    if input.is_empty() {
        return insert(input, 0, &[random.byte()]);
    }
    let at = random.below(input.len());
    match random.below(13) {
        0 => input[at] ^= 1 << random.below(8),
        1 => input[at] = random.byte(),
        2 => input[at] = input[at].wrapping_add(if random.below(2) == 0 { 1 } else { u8::MAX }),
        3 => drop(input.drain(at..at + range_length(input.len() - at, random))),
        4 => {
            let bytes: Vec<u8> = (0..=random.below(8)).map(|_| random.byte()).collect();
            insert(input, at, &bytes);
        }
        5 => {
            let part = input[at..at + range_length(input.len() - at, random)].to_vec();
            let to = random.below(input.len() + 1);
            insert(input, to, &part);
        }
        6 => {
            let part = input[at..at + range_length(input.len() - at, random)].to_vec();
            let to = random.below(input.len());
            overwrite(input, to, &part);
        }
        7 => overwrite_number(input, at, *random.pick(INTERESTING), random),
        8 => {
            // A length that is right at this place, and its neighbors.
            let left = (input.len() - at) as u64;
            overwrite_number(input, at, left.wrapping_sub(random.below(12) as u64), random);
        }
        9 => replace_digits(input, at, random),
        10 if !other.is_empty() => {
            let from = random.below(other.len());
            let part = &other[from..from + range_length(other.len() - from, random)];
            if random.below(2) == 0 { insert(input, at, part) } else { overwrite(input, at, part) }
        }
        11 if !dictionary.is_empty() => {
            let word = random.pick(dictionary);
            if random.below(2) == 0 { insert(input, at, word) } else { overwrite(input, at, word) }
        }
        _ => insert(input, at, &vec![random.byte(); random.below(300)]),
    }
}

/// Returns a length from 1 to `most`. Short ones are more frequent.
fn range_length(most: usize, random: &mut FuzzRandom) -> usize {
    let limit = 1 << random.below(11);
    1 + random.below(most.min(limit))
}

fn insert(input: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    input.splice(at..at, bytes.iter().copied());
}

fn overwrite(input: &mut [u8], at: usize, bytes: &[u8]) {
    let length = bytes.len().min(input.len() - at);
    input[at..at + length].copy_from_slice(&bytes[..length]);
}

/// Writes a number of 1, 2, 4 or 8 bytes, in one of the two orders.
fn overwrite_number(input: &mut [u8], at: usize, number: u64, random: &mut FuzzRandom) {
    let size = 1 << random.below(4);
    match random.below(2) {
        0 => overwrite(input, at, &number.to_be_bytes()[8 - size..]),
        _ => overwrite(input, at, &number.to_le_bytes()[..size]),
    }
}

/// Replaces the digits from `at` on, if there are any, by an interesting text.
fn replace_digits(input: &mut Vec<u8>, at: usize, random: &mut FuzzRandom) {
    let Some(begin) = input[at..].iter().position(u8::is_ascii_digit).map(|begin| at + begin) else { return };
    let length = input[begin..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    let text = random.pick(INTERESTING_TEXTS).bytes();
    input.splice(begin..begin + length, text);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_input_is_changed_within_its_bound() {
        let mut random = FuzzRandom::with_seed(7);
        let mut changed = 0;
        for length in 0..200 {
            let before = vec![b'7'; length];
            let mut after = before.clone();
            mutate(&mut after, b"another", &[b"word".to_vec()], 150, &mut random);
            assert!(after.len() <= 150);
            changed += usize::from(before != after);
        }
        assert!(changed > 180, "{changed}");
    }

    #[test]
    fn a_length_is_found_that_is_right_at_its_place() {
        let mut random = FuzzRandom::with_seed(1);
        let found = (0..100_000).any(|_| {
            let mut input = [&[0xff; 4][..], &[0; 20]].concat();
            mutate(&mut input, &[], &[], 100, &mut random);
            input.first_chunk::<4>().is_some_and(|length| u32::from_be_bytes(*length) as usize == input.len() - 4)
        });
        assert!(found);
    }
}
