//! The limit of open files.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// The highest soft limit that the program asks for. Kernels refuse a higher one by default.
const LIMIT_MAX: u64 = 1 << 20;
/// The share of the file descriptors that is reserved for files: one in this many. The two
/// constants after it bound the number.
const RESERVED_SHARE: u64 = 8;
const RESERVED_MIN: u64 = 8;
const RESERVED_MAX: u64 = 64;

/// Raises the soft limit of open files to the hard limit, or to [`LIMIT_MAX`] if that is lower.
/// Shells and service managers start programs with a limit of 1,024.
pub(super) fn raise_limit() {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let wanted = maximum.unwrap_or(LIMIT_MAX).min(LIMIT_MAX);
    if current.is_none_or(|current| current >= wanted) {
        return;
    }
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum }) {
        tracing::warn!(
            event = "descriptor_limit_not_raised", limit = current, %error,
            "cannot raise the limit of open files"
        );
    }
}

/// Reserves file descriptors for files, so that connections cannot use them up.
pub(crate) fn reserve_descriptors() {
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(LIMIT_MAX);
    let reserved = (limit / RESERVED_SHARE).clamp(RESERVED_MIN, RESERVED_MAX);
    tracing::info!(event = "descriptor_limit", limit, reserved, "file descriptors");
    if !laredo_engine::descriptors::reserve(usize::try_from(reserved).unwrap_or_default()) {
        tracing::warn!(
            event = "descriptors_few",
            limit,
            "too few file descriptors; raise the limit of open files (ulimit -n, LimitNOFILE)"
        );
    }
}
