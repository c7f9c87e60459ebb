//! Keys of other implementations that this one refuses, with advice on what to do instead.

/// The name of each key and the sentence of its error, wherever in the configuration the key is.
pub(super) const KEYS: &[(&str, &str)] = &[
    (
        "always_baseline",
        "has no meaning in this version: a copy is taken whenever the position it could resume from is lost; \
         slot_mode = ephemeral takes one at every start",
    ),
    (
        "buffer",
        "has no meaning in this version: the journal holds what clients have yet to read; see client_buffer and journal",
    ),
    (
        "error_handling",
        "has no meaning in this version: a change is never skipped, and an error stops its table until it is fixed",
    ),
    ("ttl", "has no meaning in this version: rows do not expire"),
    ("validation", "has no meaning in this version: rows are passed on as the source has them"),
    (
        "lookup_fields",
        "has no meaning in this version: write a unique index into indexes, with query = true; clients of the library \
         declare their own",
    ),
    (
        "additional_indexes",
        "has no meaning in this version: write indexes, with query = true; clients of the library declare their own",
    ),
];
