//! Decimal numbers of any length, compared by value.

/// A number. `5`, `5.00` and `0.5e1` are equal. There is no NaN, because it equals nothing.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Decimal {
    /// `digits` × 10^`exponent`, without zeros at either end of the digits. Zero has no digits and
    /// is not negative.
    Finite {
        negative: bool,
        digits: Box<str>,
        exponent: i64,
    },
    Infinite {
        negative: bool,
    },
}

impl Decimal {
    /// Reads `[sign]digits[.digits][e[sign]digits]`, or an infinity in one of PostgreSQL's
    /// spellings.
    pub(crate) fn parse(text: &str) -> Option<Decimal> {
        let (negative, unsigned) = match text.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, text.strip_prefix('+').unwrap_or(text)),
        };
        if unsigned.eq_ignore_ascii_case("infinity") || unsigned.eq_ignore_ascii_case("inf") {
            return Some(Decimal::Infinite { negative });
        }
        let (mantissa, exponent) = match unsigned.split_once(['e', 'E']) {
            Some((mantissa, exponent)) => (mantissa, exponent.parse::<i32>().ok()?),
            None => (unsigned, 0),
        };
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let all_digits = whole.bytes().chain(fraction.bytes()).all(|byte| byte.is_ascii_digit());
        if !all_digits || (whole.is_empty() && fraction.is_empty()) {
            return None;
        }
        let digits = [whole, fraction].concat();
        let significant = digits.trim_end_matches('0');
        let dropped = i64::try_from(digits.len() - significant.len()).ok()?;
        let decimals = i64::try_from(fraction.len()).ok()?;
        let digits = significant.trim_start_matches('0');
        Some(Decimal::Finite {
            negative: negative && !digits.is_empty(),
            digits: digits.into(),
            exponent: if digits.is_empty() { 0 } else { i64::from(exponent) + dropped - decimals },
        })
    }

    /// Returns the decimal that a double prints as; `None` for NaN.
    pub(crate) fn of_double(value: f64) -> Option<Decimal> {
        Decimal::parse(&format!("{value:e}"))
    }

    /// Returns true for a finite number without a fraction.
    pub(crate) fn is_whole(&self) -> bool {
        matches!(self, Decimal::Finite { exponent: 0.., .. })
    }

    /// Multiplies the number by ten to the power of `places`.
    pub(crate) fn shifted(self, places: u8) -> Decimal {
        match self {
            Decimal::Finite { negative, digits, exponent } if !digits.is_empty() => {
                Decimal::Finite { negative, digits, exponent: exponent + i64::from(places) }
            }
            unmoved => unmoved,
        }
    }

    /// Writes the number without an exponent, as PostgreSQL does. Returns `None` if it has more
    /// digits than a `numeric` allows.
    pub(crate) fn to_plain(&self) -> Option<String> {
        const WHOLE_MAX: i64 = 131_072;
        const DECIMALS_MAX: i64 = 16_383;
        let (negative, digits, exponent) = match self {
            Decimal::Infinite { negative } => return Some(if *negative { "-Infinity" } else { "Infinity" }.to_owned()),
            Decimal::Finite { digits, .. } if digits.is_empty() => return Some("0".to_owned()),
            Decimal::Finite { negative, digits, exponent } => (*negative, digits, *exponent),
        };
        let whole = i64::try_from(digits.len()).ok()? + exponent;
        if whole > WHOLE_MAX || -exponent > DECIMALS_MAX {
            return None;
        }
        let sign = if negative { "-" } else { "" };
        let zeros = |count: i64| "0".repeat(usize::try_from(count).unwrap_or(0));
        Some(match usize::try_from(whole) {
            Ok(0) | Err(_) => format!("{sign}0.{}{digits}", zeros(-whole)),
            Ok(whole) if whole < digits.len() => format!("{sign}{}.{}", &digits[..whole], &digits[whole..]),
            Ok(_) => format!("{sign}{digits}{}", zeros(exponent)),
        })
    }

    /// Returns the number as an integer, if it is a whole number of at most 38 digits.
    pub(crate) fn to_integer(&self) -> Option<i128> {
        let Decimal::Finite { negative, digits, exponent } = self else {
            return None;
        };
        if digits.is_empty() {
            return Some(0);
        }
        let power = u32::try_from(*exponent).ok()?;
        let magnitude = digits.parse::<i128>().ok()?.checked_mul(10_i128.checked_pow(power)?)?;
        Some(if *negative { -magnitude } else { magnitude })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_value_has_one_form() {
        for (one, other) in [
            ("5", "5.00"),
            ("5", "+0.5e1"),
            ("-0", "0.000"),
            ("100", "1E2"),
            (".5", "0.50"),
            ("12345678901234567890", "1234567890123456789e1"),
            ("inf", "Infinity"),
        ] {
            assert_eq!(Decimal::parse(one), Decimal::parse(other), "{one} {other}");
            assert!(Decimal::parse(one).is_some(), "{one}");
        }
        assert_ne!(Decimal::parse("5"), Decimal::parse("-5"));
        assert_ne!(Decimal::parse("5"), Decimal::parse("50"));
        for wrong in ["", "-", ".", "e5", "1e", "NaN", "0x10", "1 ", "--1", "1.2.3", "1e99999999999"] {
            assert_eq!(Decimal::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_number_is_written_without_its_exponent() {
        for (text, plain) in [
            ("1e3", "1000"),
            ("-1.50", "-1.5"),
            ("12.34e1", "123.4"),
            ("0.00012", "0.00012"),
            ("1e-20", "0.00000000000000000001"),
            ("-0", "0"),
            ("inf", "Infinity"),
        ] {
            assert_eq!(Decimal::parse(text).and_then(|d| d.to_plain()).as_deref(), Some(plain));
        }
        assert_eq!(Decimal::parse("1e200000").and_then(|d| d.to_plain()), None);
        assert_eq!(Decimal::parse("1e-20000").and_then(|d| d.to_plain()), None);
        let cents = Decimal::parse("12.345").map(|d| d.shifted(2));
        assert_eq!(cents.clone().and_then(|d| d.to_integer()), None);
        assert!(!cents.unwrap().is_whole());
    }

    #[test]
    fn integers_come_out_exactly() {
        let integer = |text| Decimal::parse(text).and_then(|d| d.to_integer());
        assert_eq!(integer("-9223372036854775808.0"), Some(i64::MIN.into()));
        assert_eq!(integer("1e3"), Some(1000));
        assert_eq!(integer("0.5"), None);
        assert_eq!(integer("1e40"), None);
        assert_eq!(integer("Infinity"), None);
        assert_eq!(Decimal::of_double(-0.0).and_then(|d| d.to_integer()), Some(0));
    }
}
