/// Returns true if tests must run at their full size. `./dev test --full` sets
/// `LAREDO_TEST_FULL=1`; empty and `0` mean no.
#[must_use]
pub fn is_full() -> bool {
    std::env::var_os("LAREDO_TEST_FULL").is_some_and(|value| !value.is_empty() && value != "0")
}
