//! The decision when to ask PostgreSQL for its position.

use laredo_core::Lsn;

/// The rule for asking PostgreSQL for its position: ask if ours has not moved since the last status
/// message.
///
/// Received messages do not count. The changes of a long open transaction arrive one after the
/// other without moving the position. A server that is always sending may not report its position
/// by itself.
#[derive(Debug, Default)]
pub(super) struct PositionRequestRule {
    before: Lsn,
}

impl PositionRequestRule {
    /// Returns true if PostgreSQL should be asked now, given the current position.
    pub(super) fn is_due(&mut self, position: Lsn) -> bool {
        std::mem::replace(&mut self.before, position) == position
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::sync::Arc;

    use laredo_core::Xid;
    use laredo_engine::spool::SpoolOptions;

    use super::*;
    use crate::assemble::PgoutputAssembler;
    use crate::message_bytes::{SentCell, insert, relation, stream_start, stream_stop};

    #[test]
    fn postgres_is_asked_while_a_large_transaction_keeps_the_position_where_it_is() {
        let spool = SpoolOptions { memory_bytes_max: 1 << 20, folder: std::env::temp_dir() };
        let mut assembler = PgoutputAssembler::new(["public.users".parse().unwrap()], Arc::new(spool));
        let (mut events, mut asking) = (VecDeque::new(), PositionRequestRule::default());
        assembler.connected(Lsn(100), Xid(1));
        assert!(!asking.is_due(assembler.position()), "it has moved since we began");
        for block in 0..3 {
            let row = insert(Some(7), 10, &[SentCell::Text("1"), SentCell::Text("a")]);
            let table = relation(Some(7), 10, "users", b'd', &["*id", "note"]);
            for message in [stream_start(7, block == 0), table, row, stream_stop()] {
                assembler.take_message(&message, &mut events).unwrap();
            }
            assert!(asking.is_due(assembler.position()), "changes alone do not move it");
        }
        assembler.keepalive(Lsn(200)).unwrap();
        assert!(!asking.is_due(assembler.position()));
        assert!(asking.is_due(assembler.position()));
    }
}
