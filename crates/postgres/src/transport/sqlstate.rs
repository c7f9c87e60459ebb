//! SQLSTATEs by what they mean for another attempt. This is the only place that judges them by
//! class.

/// The prospects of another attempt at the same statement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RetryOutlook {
    /// The attempt may succeed without an operator. The cause is a lack of resources, a time limit,
    /// a conflict or a race inside the catalog. Or the server starts, stops or is briefly a
    /// standby.
    Passing,
    /// An object was missing. Another session may have replaced it at that moment, which the next
    /// catalog read shows.
    Missing,
    /// The server did not accept the role or its password. Both may be changed while laredo runs.
    Login,
    /// The attempt fails until an operator acts.
    Lasting,
}

/// Classifies an SQLSTATE.
pub(crate) fn outlook(code: &str) -> RetryOutlook {
    match code {
        // The database was dropped.
        "57P04" => RetryOutlook::Lasting,
        // Damaged data or indexes.
        "XX001" | "XX002" => RetryOutlook::Lasting,
        // An object in use by another session (a slot of a connection that is just ending), or a
        // lock that was not available in time.
        "55006" | "55P03"
        // An error of a file of the server, mostly one on a full disk.
        | "58030"
        // `idle_in_transaction_session_timeout` and `transaction_timeout`.
        | "25P03" | "25P04"
        // A hot standby behind the same address, which is promoted or left soon.
        | "25006" => RetryOutlook::Passing,
        // No such table, column, object, schema or function, and features that a hot standby lacks
        // ("during recovery").
        "42P01" | "42703" | "42704" | "3F000" | "42883" | "0A000" => RetryOutlook::Missing,
        // No such database. It may be being restored.
        "3D000" => RetryOutlook::Login,
        _ => match code.get(..2).unwrap_or_default() {
            // Connections, transaction conflicts, lack of resources, operator intervention, and
            // internal errors. An example of the latter is a relation that vanished between two
            // lookups by PostgreSQL.
            "08" | "40" | "53" | "57" | "XX" => RetryOutlook::Passing,
            "28" => RetryOutlook::Login,
            _ => RetryOutlook::Lasting,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_class_that_may_pass_is_tried_again() {
        for (code, expected) in [
            ("57014", RetryOutlook::Passing), // statement_timeout
            ("55P03", RetryOutlook::Passing), // lock_timeout
            ("25P03", RetryOutlook::Passing),
            ("25P04", RetryOutlook::Passing),
            ("57P05", RetryOutlook::Passing), // idle_session_timeout
            ("53300", RetryOutlook::Passing), // too many connections
            ("53100", RetryOutlook::Passing), // disk full
            ("57P03", RetryOutlook::Passing), // the server starts
            ("40P01", RetryOutlook::Passing), // deadlock
            ("40001", RetryOutlook::Passing),
            ("25006", RetryOutlook::Passing),
            ("XX000", RetryOutlook::Passing), // cache lookup failed
            ("XX001", RetryOutlook::Lasting),
            ("57P04", RetryOutlook::Lasting),
            ("42P01", RetryOutlook::Missing),
            ("28P01", RetryOutlook::Login),
            ("28000", RetryOutlook::Login),
            ("42501", RetryOutlook::Lasting),
            ("22012", RetryOutlook::Lasting),
            ("", RetryOutlook::Lasting),
        ] {
            assert_eq!(outlook(code), expected, "{code}");
        }
    }
}
