//! Decimal digits as ASCII.

/// Appends a number without leading zeros.
pub(crate) fn push(to: &mut Vec<u8>, mut number: u64) {
    let mut digits = [0; 20];
    let mut first = digits.len();
    // Two digits at a time need half as many divisions.
    while number >= 100 {
        first -= 2;
        digits[first..first + 2].copy_from_slice(&pair(number % 100));
        number /= 100;
    }
    let [tens, ones] = pair(number);
    first -= 1;
    digits[first] = ones;
    if number >= 10 {
        first -= 1;
        digits[first] = tens;
    }
    to.extend_from_slice(&digits[first..]);
}

/// Appends a number with its sign.
pub(crate) fn push_signed(to: &mut Vec<u8>, number: i64) {
    if number < 0 {
        to.push(b'-');
    }
    push(to, number.unsigned_abs());
}

/// Appends a number with at least four digits.
pub(crate) fn push_four(to: &mut Vec<u8>, number: u64) {
    match number {
        0..10_000 => {
            let ([thousands, hundreds], [tens, ones]) = (pair(number / 100), pair(number % 100));
            to.extend_from_slice(&[thousands, hundreds, tens, ones]);
        }
        _ => push(to, number),
    }
}

/// Returns the two digits of a number below 100.
#[expect(clippy::cast_possible_truncation, reason = "each is one digit")]
pub(crate) fn pair(number: u64) -> [u8; 2] {
    [b'0' + (number / 10) as u8, b'0' + (number % 10) as u8]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn they_are_those_that_format_writes(number: i64, small in 0_u64..100_000) {
            let text = |push: &dyn Fn(&mut Vec<u8>)| {
                let mut to = Vec::new();
                push(&mut to);
                String::from_utf8(to).unwrap()
            };
            prop_assert_eq!(text(&|to| push_signed(to, number)), number.to_string());
            prop_assert_eq!(text(&|to| to.extend(pair(small % 100))), format!("{:02}", small % 100));
            prop_assert_eq!(text(&|to| push_four(to, small)), format!("{small:04}"));
        }
    }
}
