//! The checksum of a table's contents, which can be compared between all copies of the table.
//!
//! A row's hash is XXH3-128 (seed 0) of its bytes. The hashes are added modulo 2^128. So the order
//! of rows does not matter, and a change costs the hashes of two rows. `docs/checksums.md` defines
//! the checksum for other programs.

use std::fmt;
use std::str::FromStr;

use twox_hash::XxHash3_128;

use crate::key::KeyColumns;
use crate::tuple::{TupleBuf, TupleRef};

/// The number of buckets that a table's checksum is divided into.
pub const CHECKSUM_BUCKETS: usize = 256;

/// A sum of row hashes, of a whole table or of one bucket. Tables with the same rows have the same
/// checksum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Checksum(u128);

/// An error for bytes that are not a checksum.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a checksum has 16 bytes, and this has {found}")]
pub struct ChecksumError {
    /// The number of bytes found.
    pub found: usize,
}

impl Checksum {
    /// Returns the checksum of one row, which is the row's hash.
    #[must_use]
    pub fn of_row(row: TupleRef<'_>) -> Checksum {
        Checksum(XxHash3_128::oneshot(row.bytes()))
    }

    /// Returns the checksum of the rows of both operands.
    #[must_use]
    pub fn plus(self, more: Checksum) -> Checksum {
        Checksum(self.0.wrapping_add(more.0))
    }

    /// Returns the checksum without the rows of `less`, which must be among those of `self`.
    #[must_use]
    pub fn minus(self, less: Checksum) -> Checksum {
        Checksum(self.0.wrapping_sub(less.0))
    }

    /// Returns the 16 bytes of the checksum on the wire, most significant byte first.
    #[must_use]
    pub fn to_bytes(self) -> [u8; 16] {
        self.0.to_be_bytes()
    }

    /// Reads a checksum from the wire. Returns `None` if the field is empty, because the sender
    /// does not know the checksum.
    ///
    /// # Errors
    /// Returns an error if the number of bytes is neither 0 nor 16.
    pub fn from_wire(bytes: &[u8]) -> Result<Option<Checksum>, ChecksumError> {
        match bytes {
            [] => Ok(None),
            bytes => match <[u8; 16]>::try_from(bytes) {
                Ok(bytes) => Ok(Some(Checksum(u128::from_be_bytes(bytes)))),
                Err(_) => Err(ChecksumError { found: bytes.len() }),
            },
        }
    }
}

impl fmt::Display for Checksum {
    /// Writes 32 hexadecimal digits.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl FromStr for Checksum {
    type Err = ChecksumError;

    /// Reads 32 hexadecimal digits.
    fn from_str(text: &str) -> Result<Checksum, ChecksumError> {
        let error = ChecksumError { found: text.len() / 2 };
        match text.len() == 32 && text.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            true => u128::from_str_radix(text, 16).map(Checksum).map_err(|_| error),
            false => Err(error),
        }
    }
}

/// The checksum of a table's rows, in total and by bucket.
///
/// A row belongs to the bucket given by the last byte of its key's XXH3-128. So a comparison of two
/// tables shows which buckets differ, and a key is in the same bucket everywhere.
#[derive(Clone)]
pub struct ChecksumBuckets {
    total: u128,
    buckets: Box<[u128; CHECKSUM_BUCKETS]>,
    /// A buffer for keys whose cells are not the first ones of their rows.
    scratch: TupleBuf,
}

impl Default for ChecksumBuckets {
    fn default() -> ChecksumBuckets {
        ChecksumBuckets { total: 0, buckets: Box::new([0; CHECKSUM_BUCKETS]), scratch: TupleBuf::new() }
    }
}

impl fmt::Debug for ChecksumBuckets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ChecksumBuckets").field(&self.total()).finish()
    }
}

impl ChecksumBuckets {
    /// Returns the checksum of all rows.
    #[must_use]
    pub fn total(&self) -> Checksum {
        Checksum(self.total)
    }

    /// Returns the checksum of the rows in each bucket.
    #[must_use]
    pub fn buckets(&self) -> [Checksum; CHECKSUM_BUCKETS] {
        self.buckets.map(Checksum)
    }

    /// Replaces a row with another one of the same key. Either may be missing.
    pub fn replace(&mut self, key: &KeyColumns, old: Option<TupleRef<'_>>, new: Option<TupleRef<'_>>) {
        let Some(row) = new.or(old) else { return };
        let hash = |row: Option<TupleRef<'_>>| row.map_or(0, |row| Checksum::of_row(row).0);
        let moved = hash(new).wrapping_sub(hash(old));
        self.total = self.total.wrapping_add(moved);
        let bucket = &mut self.buckets[bucket_of(key.key_in(row, &mut self.scratch))];
        *bucket = bucket.wrapping_add(moved);
    }

    /// Removes all rows.
    pub fn clear(&mut self) {
        self.total = 0;
        self.buckets.fill(0);
    }
}

/// Returns the bucket of a key that is given as a row of its cells.
fn bucket_of(key: TupleRef<'_>) -> usize {
    usize::from(Checksum::of_row(key).to_bytes()[15])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tuple::Cell;

    fn row(cells: &[Option<&str>]) -> TupleBuf {
        cells.iter().map(|cell| cell.map_or(Cell::Null, |text| Cell::Value(text.as_bytes()))).collect()
    }

    /// Tests the examples of `docs/checksums.md`, which were made with another implementation: the
    /// reference's, by Python's `xxhash`.
    #[test]
    fn the_definition_is_what_the_documentation_says() {
        assert_eq!(Checksum::default().to_string(), "00000000000000000000000000000000");
        let (ada, bob) = (row(&[Some("1"), Some("Ada")]), row(&[Some("2"), None]));
        assert_eq!(ada.as_ref().bytes(), b"\0\0\0\x011\0\0\0\x03Ada");
        assert_eq!(Checksum::of_row(ada.as_ref()).to_string(), "d9fc93f39452d780764ec7ed8a23c9fc");
        assert_eq!(Checksum::of_row(bob.as_ref()).to_string(), "d2b0c1cc60302255b680cb82fdaa929d");
        assert_eq!(
            Checksum::of_row(ada.as_ref()).plus(Checksum::of_row(bob.as_ref())).to_string(),
            "acad55bff482f9d62ccf937087ce5c99"
        );
        assert_eq!(bucket_of(row(&[Some("1")]).as_ref()), 180);
        assert_eq!(bucket_of(row(&[Some("2")]).as_ref()), 18);
    }

    #[test]
    fn the_wire_has_16_bytes_or_none() {
        let sum = Checksum::of_row(row(&[Some("x")]).as_ref());
        assert_eq!(Checksum::from_wire(&sum.to_bytes()), Ok(Some(sum)));
        assert_eq!(Checksum::from_wire(&[]), Ok(None));
        assert_eq!(Checksum::from_wire(&[1; 8]), Err(ChecksumError { found: 8 }));
        assert_eq!(sum.to_string().parse(), Ok(sum));
        for text in ["", "0", "+0000000000000000000000000000000", "0000000000000000000000000000000g"] {
            assert!(text.parse::<Checksum>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_key_is_in_one_bucket_wherever_its_cells_stand() {
        let of = |key: &[usize], cells: &[Option<&str>]| {
            let mut sums = ChecksumBuckets::default();
            sums.replace(&KeyColumns::new(key), None, Some(row(cells).as_ref()));
            sums.buckets().iter().position(|sum| *sum != Checksum::default()).unwrap()
        };
        let leading = of(&[0, 1], &[Some("a"), Some("b"), Some("c")]);
        assert_eq!(of(&[2, 0], &[Some("b"), Some("c"), Some("a")]), leading);
        assert_eq!(of(&[1, 2], &[None, Some("a"), Some("b")]), leading);
        assert_eq!(leading, bucket_of(row(&[Some("a"), Some("b")]).as_ref()));
    }
}
