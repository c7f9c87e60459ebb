//! Checksums of a file, one for each megabyte, so that errors can name the place of the damage.

/// The number of bytes that share a checksum.
pub(crate) const SUMMED_BYTES: usize = 1024 * 1024;

/// The CRC-32 of each megabyte written.
#[derive(Clone, Debug, Default)]
pub(crate) struct MegabyteChecksums {
    hasher: crc32fast::Hasher,
    filled: usize,
    done: Vec<u32>,
}

impl MegabyteChecksums {
    /// Adds the bytes written next.
    pub(crate) fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let (now, rest) = bytes.split_at(bytes.len().min(SUMMED_BYTES - self.filled));
            self.hasher.update(now);
            self.filled += now.len();
            if self.filled == SUMMED_BYTES {
                self.done.push(std::mem::take(&mut self.hasher).finalize());
                self.filled = 0;
            }
            bytes = rest;
        }
    }

    /// Returns the checksums. The last one may cover less than a megabyte.
    pub(crate) fn finish(mut self) -> Vec<u32> {
        if self.filled > 0 {
            self.done.push(self.hasher.finalize());
        }
        self.done
    }
}
