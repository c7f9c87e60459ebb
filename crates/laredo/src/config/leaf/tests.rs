use super::*;

#[test]
fn times_and_sizes_are_shown_exactly() {
    for (time, shown) in [
        (Duration::from_secs(86_400), "1d"),
        (Duration::from_secs(86_400 + 3_600), "25h"),
        (Duration::from_secs(90), "90s"),
        (Duration::from_millis(1_500), "1500ms"),
        (Duration::from_nanos(1), "1ns"),
        (Duration::ZERO, "0s"),
    ] {
        assert_eq!(show_time(time), shown);
    }
    for (size, shown) in [(4 << 30, "4GiB"), (256 << 20, "256MiB"), (1_000, "1000B"), (0, "0B")] {
        assert_eq!(show_size(size), shown);
    }
}
