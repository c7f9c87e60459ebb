//! Types that contain other types: arrays, composites and ranges.

pub(crate) mod arrays;
pub(crate) mod composites;
mod form;
mod quoting;
pub(crate) mod ranges;

pub use form::NestedForm;
