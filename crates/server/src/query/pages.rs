//! Pages of a listing. A page token names the listing, whose state the server keeps, and the row
//! after which the page begins. So a page can be requested again.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use laredo_core::TupleBuf;
use prost::Message as _;
use prost_types::Struct;
use tonic::Status;

use super::{RESPONSE_BYTES_MAX, VisibleRows};
use crate::query_state::ListingId;
use crate::refusal;

/// The number of rows of a page, unless the request has one.
const PAGE_SIZE: usize = 100;
/// The maximum number of rows of a page.
const PAGE_SIZE_MAX: usize = 10_000;
/// The maximum length of a page token. Keys of PostgreSQL's indexes are far shorter.
const TOKEN_LENGTH_MAX: usize = 64 * 1024;

/// Rows of a listing.
pub(super) struct RowPage {
    pub(super) rows: Vec<Struct>,
    /// The order key of the last row, if there are more.
    pub(super) next_after: Option<Vec<u8>>,
}

/// The place of a page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PageToken {
    pub(super) listing: ListingId,
    /// The order key of the last row of the page before.
    pub(super) after: Vec<u8>,
}

impl PageToken {
    /// Parses a token.
    ///
    /// # Errors
    /// INVALID_ARGUMENT for a text that no server has made.
    pub(super) fn parse(text: &str) -> Result<PageToken, Status> {
        let invalid =
            || refusal::malformed("page_token", "no server has issued it; send a `next_page_token` unchanged");
        if text.len() > TOKEN_LENGTH_MAX {
            return Err(refusal::malformed("page_token", format!("it is longer than {TOKEN_LENGTH_MAX} bytes")));
        }
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| invalid())?;
        let (listing, after) = bytes.split_first_chunk().ok_or_else(invalid)?;
        Ok(PageToken { listing: ListingId(*listing), after: after.to_vec() })
    }

    /// Returns the token's text.
    ///
    /// # Errors
    /// FAILED_PRECONDITION for a row whose key is too long.
    pub(super) fn to_text(&self) -> Result<String, Status> {
        let text = URL_SAFE_NO_PAD.encode([&self.listing.0, self.after.as_slice()].concat());
        match text.len() <= TOKEN_LENGTH_MAX {
            true => Ok(text),
            false => Err(refusal::long_key()),
        }
    }
}

impl RowPage {
    /// Reads the page after a row. It ends early where the rows become too large for a message, but
    /// has at least one row.
    pub(super) fn read(from: &VisibleRows, after: Option<&[u8]>, size: usize) -> Result<RowPage, Status> {
        let mut page = RowPage { rows: Vec::new(), next_after: None };
        let (mut last, mut bytes, mut scratch): (Option<&[u8]>, _, _) = (None, 0, TupleBuf::new());
        for (key, row) in from.state.rows.primary().entries_after(after) {
            if page.rows.len() == size && from.selection.matches(row.as_ref()) {
                page.next_after = last.map(<[u8]>::to_vec);
                break;
            }
            let Some(shown) = from.show(row, &mut scratch)? else { continue };
            bytes += shown.encoded_len();
            if bytes > RESPONSE_BYTES_MAX && !page.rows.is_empty() {
                page.next_after = last.map(<[u8]>::to_vec);
                break;
            }
            page.rows.push(shown);
            last = Some(key);
        }
        Ok(page)
    }
}

/// Returns the number of rows of a page.
///
/// # Errors
/// INVALID_ARGUMENT for a number below zero.
pub(super) fn page_size(requested: i32) -> Result<usize, Status> {
    match usize::try_from(requested) {
        Ok(0) => Ok(PAGE_SIZE),
        Ok(size) => Ok(size.min(PAGE_SIZE_MAX)),
        Err(_) => Err(refusal::malformed("page_size", format!("it is below zero; 0 is for {PAGE_SIZE} rows"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_read_back_and_others_are_refused() {
        let token = PageToken { listing: ListingId([7; 16]), after: b"key".to_vec() };
        assert_eq!(PageToken::parse(&token.to_text().unwrap()).unwrap(), token);
        for text in ["x", "AAAA", "not base64!", &"A".repeat(TOKEN_LENGTH_MAX + 1)] {
            let refused = PageToken::parse(text).unwrap_err();
            assert_eq!(refused.code(), tonic::Code::InvalidArgument);
            assert!(refused.message().contains("`page_token`"), "{refused}");
        }
        let long = PageToken { listing: ListingId([7; 16]), after: vec![0; TOKEN_LENGTH_MAX] };
        assert_eq!(long.to_text().unwrap_err().code(), tonic::Code::FailedPrecondition);
    }

    #[test]
    fn a_page_has_a_bounded_number_of_rows() {
        assert_eq!(page_size(0).unwrap(), PAGE_SIZE);
        assert_eq!(page_size(7).unwrap(), 7);
        assert_eq!(page_size(i32::MAX).unwrap(), PAGE_SIZE_MAX);
        assert!(page_size(-1).unwrap_err().message().contains("`page_size`"));
    }
}
