//! The limits on the contents of an object. An archive may come from anywhere, so a small object
//! must not take any amount of memory.

use std::io::{self, BufReader, ErrorKind, Read};

/// The maximum size of a row in bytes. PostgreSQL's rows are below 1 GiB, and their text is at most
/// twice as large: in hex, a byte is two characters.
pub(super) const ROW_BYTES_MAX: u64 = (2 << 30) - 1;
/// The maximum size of a change in bytes: that of its old and its new row, and of its key.
pub(super) const CHANGE_BYTES_MAX: u64 = (4 << 30) - 1;
/// The number of bytes that every object may contain.
const FREE_BYTES: u64 = 16 << 20;
/// The maximum ratio of uncompressed to compressed bytes. Rows rarely exceed 100.
const RATIO_MAX: u64 = 1000;
/// The base-2 logarithm of the largest window that a decoder keeps in memory: 128 MiB, which is the
/// largest one that zstd uses unless it is forced to.
const WINDOW_LOG_MAX: u32 = 27;

/// The decompressed contents of an object, which end with an error at their limit.
pub(super) struct UnpackedInput<R: Read> {
    decoder: zstd::Decoder<'static, BufReader<CountedInput<R>>>,
    /// The number of bytes that the contents must have, if it is known.
    stated: Option<u64>,
    bytes: u64,
}

impl<R: Read> UnpackedInput<R> {
    pub(super) fn new(input: R) -> io::Result<UnpackedInput<R>> {
        let mut decoder = zstd::Decoder::new(CountedInput { input, bytes: 0 })?;
        decoder.window_log_max(WINDOW_LOG_MAX)?;
        Ok(UnpackedInput { decoder, stated: None, bytes: 0 })
    }

    pub(super) fn state_bytes(&mut self, bytes: Option<u64>) {
        self.stated = bytes;
    }

    /// Returns the number of decompressed bytes so far.
    pub(super) fn unpacked_bytes(&self) -> u64 {
        self.bytes
    }

    fn check(&self) -> io::Result<()> {
        let packed = self.decoder.get_ref().get_ref().bytes;
        let problem = match self.stated {
            Some(stated) if self.bytes > stated => {
                format!("it decompresses to more than the {stated} bytes that the manifest states")
            }
            None if self.bytes > FREE_BYTES.max(packed.saturating_mul(RATIO_MAX)) => format!(
                "it decompresses to more than {RATIO_MAX} times its size; if that is right, state the size as `unpacked_bytes` in \
                 the manifest"
            ),
            Some(_) | None => return Ok(()),
        };
        Err(io::Error::new(ErrorKind::InvalidData, problem))
    }
}

impl<R: Read> Read for UnpackedInput<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.decoder.read(buffer)?;
        self.bytes += read as u64;
        self.check()?;
        Ok(read)
    }
}

/// An input that counts its bytes.
struct CountedInput<R> {
    input: R,
    bytes: u64,
}

impl<R: Read> Read for CountedInput<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.input.read(buffer)?;
        self.bytes += read as u64;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packed(bytes: &[u8]) -> Vec<u8> {
        zstd::encode_all(bytes, 3).unwrap()
    }

    fn unpacked(packed: &[u8], stated: Option<u64>) -> io::Result<Vec<u8>> {
        let mut input = UnpackedInput::new(packed).unwrap();
        input.state_bytes(stated);
        let mut bytes = Vec::new();
        input.read_to_end(&mut bytes)?;
        assert_eq!(input.unpacked_bytes(), bytes.len() as u64);
        Ok(bytes)
    }

    #[test]
    fn a_stated_size_is_a_limit() {
        let bytes = vec![b'a'; 100_000];
        let object = packed(&bytes);
        for stated in [100_000, 100_001, u64::MAX] {
            assert_eq!(unpacked(&object, Some(stated)).unwrap(), bytes);
        }
        for stated in [0, 1, 99_999] {
            let error = unpacked(&object, Some(stated)).unwrap_err();
            assert!(error.to_string().contains(&format!("the {stated} bytes")), "{error}");
        }
        // Two frames are one object.
        let twice = [object.clone(), object].concat();
        assert!(unpacked(&twice, Some(100_000)).is_err());
        assert_eq!(unpacked(&twice, Some(200_000)).unwrap().len(), 200_000);
    }

    #[test]
    fn a_size_that_is_not_stated_depends_on_the_objects() {
        let free = vec![b'a'; usize::try_from(FREE_BYTES).unwrap()];
        assert_eq!(unpacked(&packed(&free), None).unwrap(), free);
        let more = [&free[..], b"more"].concat();
        let object = packed(&more);
        let error = unpacked(&object, None).unwrap_err();
        assert!(object.len() < 10_000 && error.to_string().contains("unpacked_bytes"), "{error}");
        assert_eq!(unpacked(&object, Some(more.len() as u64)).unwrap(), more);
        // This is less than 1,000 times as large as the object.
        let varied: Vec<u8> = (0..6_000_000_u32).flat_map(u32::to_be_bytes).collect();
        assert_eq!(unpacked(&packed(&varied), None).unwrap(), varied);
    }

    #[test]
    fn a_window_that_is_too_large_is_refused() {
        let mut encoder = zstd::Encoder::new(Vec::new(), 3).unwrap();
        encoder.window_log(WINDOW_LOG_MAX + 1).unwrap();
        io::copy(&mut io::repeat(b'a').take(1 << 20), &mut encoder).unwrap();
        assert!(unpacked(&encoder.finish().unwrap(), None).is_err());
    }
}
