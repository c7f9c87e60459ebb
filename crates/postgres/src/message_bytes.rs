//! Builders of pgoutput messages, for tests.

/// A cell as pgoutput sends it.
#[derive(Clone, Copy)]
pub(crate) enum SentCell<'a> {
    Null,
    Unchanged,
    Text(&'a str),
    Binary(&'a [u8]),
}

/// A message under construction.
pub(crate) struct MessageBuilder(pub(crate) Vec<u8>);

impl MessageBuilder {
    pub(crate) fn new(kind: u8) -> MessageBuilder {
        MessageBuilder(vec![kind])
    }

    pub(crate) fn u8(mut self, value: u8) -> MessageBuilder {
        self.0.push(value);
        self
    }

    pub(crate) fn u16(mut self, value: u16) -> MessageBuilder {
        self.0.extend(value.to_be_bytes());
        self
    }

    pub(crate) fn u32(mut self, value: u32) -> MessageBuilder {
        self.0.extend(value.to_be_bytes());
        self
    }

    pub(crate) fn u64(mut self, value: u64) -> MessageBuilder {
        self.0.extend(value.to_be_bytes());
        self
    }

    pub(crate) fn text(mut self, value: &str) -> MessageBuilder {
        self.0.extend(value.as_bytes());
        self.u8(0)
    }

    pub(crate) fn xid(self, xid: Option<u32>) -> MessageBuilder {
        match xid {
            Some(xid) => self.u32(xid),
            None => self,
        }
    }

    pub(crate) fn row(mut self, part: u8, cells: &[SentCell<'_>]) -> MessageBuilder {
        self = self.u8(part).u16(cells.len() as u16);
        for cell in cells {
            let (kind, bytes) = match cell {
                SentCell::Null => (b'n', None),
                SentCell::Unchanged => (b'u', None),
                SentCell::Text(text) => (b't', Some(text.as_bytes())),
                SentCell::Binary(bytes) => (b'b', Some(*bytes)),
            };
            self = self.u8(kind);
            if let Some(bytes) = bytes {
                self = self.u32(bytes.len() as u32);
                self.0.extend(bytes);
            }
        }
        self
    }
}

pub(crate) fn begin(xid: u32, commit: u64) -> Vec<u8> {
    MessageBuilder::new(b'B').u64(commit).u64(1_000_000).u32(xid).0
}

/// Builds a Commit whose commit record takes 8 bytes.
pub(crate) fn commit(commit: u64) -> Vec<u8> {
    MessageBuilder::new(b'C').u8(0).u64(commit).u64(commit + 8).u64(1_000_000).0
}

pub(crate) fn stream_start(xid: u32, first: bool) -> Vec<u8> {
    MessageBuilder::new(b'S').u32(xid).u8(first.into()).0
}

pub(crate) fn stream_stop() -> Vec<u8> {
    vec![b'E']
}

/// Builds a Stream Commit whose commit record takes 8 bytes.
pub(crate) fn stream_commit(xid: u32, commit: u64) -> Vec<u8> {
    let bytes = MessageBuilder::new(b'c').u32(xid).u8(0);
    bytes.u64(commit).u64(commit + 8).u64(1_000_000).0
}

pub(crate) fn stream_abort(xid: u32, subtransaction: u32) -> Vec<u8> {
    MessageBuilder::new(b'A').u32(xid).u32(subtransaction).0
}

/// Builds a Relation of a table in schema `public` with text columns. A `*` before a column's name
/// makes it part of the replica identity.
pub(crate) fn relation(xid: Option<u32>, oid: u32, name: &str, identity: u8, columns: &[&str]) -> Vec<u8> {
    let mut bytes = MessageBuilder::new(b'R').xid(xid).u32(oid).text("public").text(name);
    bytes = bytes.u8(identity).u16(columns.len() as u16);
    for column in columns {
        let (is_key, name) = column.strip_prefix('*').map_or((0, *column), |name| (1, name));
        bytes = bytes.u8(is_key).text(name).u32(25).u32(u32::MAX);
    }
    bytes.0
}

pub(crate) fn insert(xid: Option<u32>, oid: u32, new: &[SentCell<'_>]) -> Vec<u8> {
    MessageBuilder::new(b'I').xid(xid).u32(oid).row(b'N', new).0
}

pub(crate) fn update(xid: Option<u32>, oid: u32, old: Option<(u8, &[SentCell<'_>])>, new: &[SentCell<'_>]) -> Vec<u8> {
    let mut bytes = MessageBuilder::new(b'U').xid(xid).u32(oid);
    if let Some((part, old)) = old {
        bytes = bytes.row(part, old);
    }
    bytes.row(b'N', new).0
}

pub(crate) fn delete(xid: Option<u32>, oid: u32, part: u8, old: &[SentCell<'_>]) -> Vec<u8> {
    MessageBuilder::new(b'D').xid(xid).u32(oid).row(part, old).0
}

pub(crate) fn truncate(xid: Option<u32>, oids: &[u32]) -> Vec<u8> {
    let mut bytes = MessageBuilder::new(b'T').xid(xid).u32(oids.len() as u32).u8(0);
    for oid in oids {
        bytes = bytes.u32(*oid);
    }
    bytes.0
}
