//! The writer and the reader against each other, on real folders, with calls that fail. The rebuilt
//! rows are compared with the table's rows at that time.

#![expect(clippy::disallowed_methods, reason = "these run by the machine's own clock")]

mod checksums;
mod destinations;
mod faults;
mod faulty_destination;
mod fencing;
mod histories;
#[cfg(feature = "aws")]
mod requests;
mod sealing;
mod upkeep;
