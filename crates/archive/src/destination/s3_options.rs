//! The settings of an archive in a bucket. A build without S3 has them too, for configurations.

/// The settings of an archive in S3 or in a compatible store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct S3Options {
    /// The bucket's region; that of the credentials if `None`.
    pub region: Option<String>,
    /// The URL (`https://…`) of a store other than Amazon's.
    pub endpoint: Option<String>,
    /// True if the bucket is named in the path instead of the host.
    pub force_path_style: bool,
    /// The encryption of objects; that of the bucket if `None`.
    pub encryption: Option<S3Encryption>,
}

/// The encryption of objects by a store.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum S3Encryption {
    /// Encryption with keys of the store (SSE-S3).
    Store,
    /// Encryption with a key of the key management service (SSE-KMS): the key's ID or ARN, or the
    /// account's default key if `None`.
    Kms(Option<String>),
    /// Encryption in two layers with such a key (DSSE-KMS).
    KmsTwice(Option<String>),
}

impl S3Encryption {
    /// The names that S3 uses for the kinds of encryption.
    pub const NAMES: [&str; 3] = ["AES256", "aws:kms", "aws:kms:dsse"];

    /// Returns the name that S3 uses for this kind.
    #[must_use]
    pub fn name(&self) -> &'static str {
        let [store, kms, twice] = S3Encryption::NAMES;
        match self {
            S3Encryption::Store => store,
            S3Encryption::Kms(_) => kms,
            S3Encryption::KmsTwice(_) => twice,
        }
    }

    /// Returns the ID or ARN of the key, if one is given.
    #[must_use]
    pub fn key_id(&self) -> Option<&str> {
        match self {
            S3Encryption::Store => None,
            S3Encryption::Kms(key) | S3Encryption::KmsTwice(key) => key.as_deref(),
        }
    }
}
