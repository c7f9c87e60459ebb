//! Versions of tables' definitions.

use std::fmt;
use std::str::FromStr;

/// The version of a table's definition, which is the same on every server that follows the
/// database.
///
/// Rows that were read under one definition are never continued with changes of another one. Zero
/// is unknown: the rows come from a program that does not know definitions. A version is written as
/// 16 hexadecimal digits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct DefinitionVersion(pub u64);

impl DefinitionVersion {
    /// The version of rows whose definition is unknown.
    pub const UNKNOWN: DefinitionVersion = DefinitionVersion(0);

    /// Returns true unless it is [`DefinitionVersion::UNKNOWN`].
    #[must_use]
    pub fn is_known(self) -> bool {
        self != DefinitionVersion::UNKNOWN
    }
}

impl fmt::Display for DefinitionVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// An error for a text that is not a definition version.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not the version of a definition, which has 16 hexadecimal digits")]
pub struct DefinitionVersionError(String);

impl FromStr for DefinitionVersion {
    type Err = DefinitionVersionError;

    fn from_str(text: &str) -> Result<DefinitionVersion, DefinitionVersionError> {
        let is_plain = text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let number = is_plain.then(|| u64::from_str_radix(text, 16).ok()).flatten();
        number.map(DefinitionVersion).ok_or_else(|| DefinitionVersionError(text.to_owned()))
    }
}

#[cfg(feature = "serde")]
impl serde::Serialize for DefinitionVersion {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

#[cfg(feature = "serde")]
impl<'de> serde::Deserialize<'de> for DefinitionVersion {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<DefinitionVersion, D::Error> {
        String::deserialize(from)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_they_are_written() {
        for number in [0, 1, 0xfedc_ba98_7654_3210, u64::MAX] {
            let version = DefinitionVersion(number);
            assert_eq!(version.to_string().parse(), Ok(version));
            #[cfg(feature = "serde")]
            {
                let json = serde_json::to_string(&version).unwrap();
                assert_eq!(serde_json::from_str::<DefinitionVersion>(&json).unwrap(), version);
            }
        }
        for text in ["", "1", "0x00000000000001", "+000000000000001", "00000000000000001", "000000000000000g"] {
            assert!(text.parse::<DefinitionVersion>().is_err(), "{text}");
        }
    }
}
