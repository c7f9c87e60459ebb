//! The beginning of the names at a destination, which must not lead out of it.

/// An error for the beginning of names that could lead out of a destination, or that stores treat
/// differently.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the names of its objects would begin with {prefix:?}, {problem}")]
pub struct InvalidKeyPrefix {
    prefix: String,
    problem: &'static str,
}

/// Checks the beginning of the names of an archive's objects, relative to a folder or bucket. It
/// stays inside of the folder whatever it contains.
///
/// # Errors
/// [`InvalidKeyPrefix`] if the text begins with `/`, or has an empty part, `.`, `..` or NUL in it.
pub fn check_key_prefix(prefix: &str) -> Result<(), InvalidKeyPrefix> {
    let parts = prefix.strip_suffix('/').unwrap_or(prefix).split('/');
    let problem = match () {
        () if prefix.is_empty() => return Ok(()),
        () if prefix.starts_with('/') => "which begins with a slash",
        () if prefix.contains('\0') => "which has a NUL in it",
        () if parts.clone().any(|part| matches!(part, "." | "..")) => "in which a part is . or ..",
        () if parts.clone().any(str::is_empty) => "in which a part between two slashes is empty",
        () => return Ok(()),
    };
    Err(InvalidKeyPrefix { prefix: prefix.to_owned(), problem })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_inside_of_their_destination() {
        for inside in ["", "t/", "users", "a/b/c", "a/b/", "..a/", "a../b", ".hidden/", "a.b/", " /", "..."] {
            assert_eq!(check_key_prefix(inside), Ok(()), "{inside}");
        }
        for outside in
            ["/", "//", "/a/", "..", "../", ".", "./", "a/../b/", "a/..", "a//b", "a//", "a/./", "a\0/", "../a"]
        {
            assert!(check_key_prefix(outside).is_err(), "{outside:?}");
        }
    }
}
