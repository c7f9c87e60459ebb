//! Static tokens, and the hashes by which a configuration names them.

use std::fmt;
use std::str::FromStr;

use laredo_values::hex;
use subtle::ConstantTimeEq;

/// The beginning of every token. Scanners for leaked secrets find tokens by it.
const PREFIX: &str = "laredo_";
/// The number of random bytes of a token, and of the bytes of its hash.
const BYTES: usize = 32;

/// A static token: `laredo_` and 64 hexadecimal digits.
///
/// Only its owner keeps it. A server knows the [`TokenHash`].
#[derive(Clone)]
pub struct AccessToken(String);

/// The SHA-256 hash of a token, written as 64 hexadecimal digits.
///
/// A token has 256 random bits, so its hash needs neither salt nor a slow function.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct TokenHash([u8; BYTES]);

/// An error for a text that is not the hash of a token.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenHashError {
    /// A token instead of its hash.
    #[error("it is a token, which must not be in a configuration; write its hash, which `laredo token hash` prints")]
    Token,
    /// Any other text.
    #[error("it is not 64 hexadecimal digits; `laredo token new` prints a token and its hash")]
    Malformed,
}

impl AccessToken {
    /// Returns the token of random bytes. They must come from the operating system.
    #[must_use]
    pub fn from_random(bytes: [u8; BYTES]) -> AccessToken {
        AccessToken(format!("{PREFIX}{}", hex(&bytes)))
    }

    /// Returns the text, which the owner sends.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Returns the hash, which the server's configuration has.
    #[must_use]
    pub fn hash(&self) -> TokenHash {
        TokenHash::of(&self.0)
    }
}

impl fmt::Debug for AccessToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AccessToken(…)")
    }
}

impl TokenHash {
    /// Returns the hash of a token's text.
    #[must_use]
    pub fn of(token: &str) -> TokenHash {
        let digest = ring::digest::digest(&ring::digest::SHA256, token.as_bytes());
        let mut bytes = [0; BYTES];
        bytes.copy_from_slice(digest.as_ref());
        TokenHash(bytes)
    }

    /// Compares two hashes in a time that does not depend on where they differ.
    pub(super) fn is_same(&self, other: &TokenHash) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl FromStr for TokenHash {
    type Err = TokenHashError;

    fn from_str(text: &str) -> Result<TokenHash, TokenHashError> {
        if text.starts_with(PREFIX) {
            return Err(TokenHashError::Token);
        }
        let digits: Option<Vec<u8>> =
            text.chars().map(|digit| u8::try_from(digit.to_digit(16)?).ok()).collect::<Option<_>>();
        let digits = digits.filter(|digits| digits.len() == 2 * BYTES).ok_or(TokenHashError::Malformed)?;
        let mut bytes = [0; BYTES];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = pair.iter().fold(0, |byte, digit| byte << 4 | digit);
        }
        Ok(TokenHash(bytes))
    }
}

impl fmt::Display for TokenHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl fmt::Debug for TokenHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TokenHash({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_is_that_of_the_whole_text() {
        let token = AccessToken::from_random([0xab; 32]);
        assert_eq!(token.expose(), format!("laredo_{}", "ab".repeat(32)));
        // `printf %s laredo_abab… | sha256sum`
        assert_eq!(token.hash(), TokenHash::of(token.expose()));
        assert_eq!(
            TokenHash::of("abc").to_string(),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
            "the example of FIPS 180-2"
        );
        assert!(!format!("{token:?}").contains("ab"), "a token is not printed by accident");
    }

    #[test]
    fn a_hash_is_read_as_it_is_written() {
        let hash = TokenHash::of("a token");
        assert_eq!(hash.to_string().parse(), Ok(hash));
        assert_eq!(hash.to_string().to_uppercase().parse(), Ok(hash));
        assert!(hash.is_same(&hash) && !hash.is_same(&TokenHash::of("another")));
        for (text, error) in [
            ("", TokenHashError::Malformed),
            ("ab", TokenHashError::Malformed),
            (&"0g".repeat(32), TokenHashError::Malformed),
            (&"00".repeat(33), TokenHashError::Malformed),
            (&"é".repeat(32), TokenHashError::Malformed),
            (AccessToken::from_random([1; 32]).expose(), TokenHashError::Token),
        ] {
            assert_eq!(text.parse::<TokenHash>(), Err(error), "{text}");
        }
    }
}
