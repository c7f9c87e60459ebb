//! What every destination has to keep to, on a folder and on two S3 servers that know nothing of each other; and what S3 alone has.

#[cfg(feature = "aws")]
mod lacking;
mod local;
#[cfg(feature = "aws")]
mod moto;
#[cfg(feature = "aws")]
mod s3s;
mod suite;
