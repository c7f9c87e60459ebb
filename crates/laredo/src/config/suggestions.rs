//! Suggestions for errors: "Did you mean …?"

/// Returns the candidate that was probably meant by `word`. It has the same letters in another
/// style (`maxEntries`, `max-entries`), or differs by up to three typing errors, depending on the
/// length.
pub(crate) fn nearest<'c>(word: &str, candidates: impl IntoIterator<Item = &'c str>) -> Option<&'c str> {
    let word = plain(word);
    let slips_max = (word.chars().count() / 3).clamp(1, 3);
    candidates
        .into_iter()
        .map(|c| (strsim::damerau_levenshtein(&word, &plain(c)), c))
        .filter(|(slips, c)| *slips <= slips_max && *slips < c.chars().count())
        .min_by_key(|(slips, _)| *slips)
        .map(|(_, c)| c)
}

fn plain(word: &str) -> String {
    word.chars().filter(|c| !matches!(c, '_' | '-')).flat_map(char::to_lowercase).collect()
}

#[cfg(test)]
mod tests {
    use super::nearest;

    #[test]
    fn finds_slips_and_other_styles_but_not_strangers() {
        let keys = ["max_entries", "max_age", "store", "store_config"];
        assert_eq!(nearest("max_entires", keys), Some("max_entries"));
        assert_eq!(nearest("maxEntries", keys), Some("max_entries"));
        assert_eq!(nearest("store-config", keys), Some("store_config"));
        assert_eq!(nearest("stor", keys), Some("store"));
        assert_eq!(nearest("color", keys), None);
        assert_eq!(nearest("", keys), None);
    }
}
