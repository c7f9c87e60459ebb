//! The fuzz target of binary COPY.

mod copy {
    use laredo_fuzz::{FuzzTarget, outcome};

    use super::super::{CopyRowParser, SIGNATURE};

    const COLUMNS: usize = 2;

    fn copied(input: &[u8]) -> Result<Vec<u8>, String> {
        let mut parser = CopyRowParser::new(COLUMNS);
        parser.take(input).map_err(outcome)?;
        parser.finish().map_err(outcome)
    }

    /// Parses a copy. A parser keeps no more than it has been sent.
    #[test]
    fn any_copy_is_refused_or_gives_whole_rows() {
        let row: &[u8] = &[0, 2, 0, 0, 0, 1, b'a', 0xff, 0xff, 0xff, 0xff];
        let other: &[u8] = &[0, 2, 0, 0, 0, 0, 0, 0, 0, 2, b'b', b'c'];
        let seed = [SIGNATURE, &[0; 8], row, other, &[0xff, 0xff]].concat();
        let with_extension = [SIGNATURE, &[0, 0, 0, 0, 0, 0, 0, 3, 1, 2, 3], row, &[0xff, 0xff]].concat();
        FuzzTarget::new("copy", vec![seed, with_extension]).memory_bytes_max(4 << 20).run(|input| {
            let rows = copied(input)?;
            let (mut rest, mut count) = (rows.as_slice(), 0);
            while let Some((length, after)) = rest.split_first_chunk::<4>() {
                let (row, next) = after.split_at(u32::from_ne_bytes(*length) as usize);
                laredo_core::TupleRef::parse(row, COLUMNS).expect("a chunk has rows of the table");
                (rest, count) = (next, count + 1);
            }
            assert!(rest.is_empty());
            Ok(count)
        });
    }
}
