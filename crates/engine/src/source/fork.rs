//! Forks of a database's history, and the receipts of the tables that have noted them.

use std::convert::Infallible;

use laredo_core::Lsn;
use tokio::sync::mpsc;

/// A point where the database's history parted, or may have parted, from the one that laredo
/// received.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fork {
    /// The newest position that both histories are known to share; zero if none is known.
    pub common: Lsn,
    /// The highest known position of the abandoned history.
    pub abandoned: Lsn,
    /// True if the histories certainly differ. Otherwise, there is only no proof that they are the
    /// same.
    pub is_certain: bool,
}

/// A receipt for a fork. Each table drops its copy once it has noted the fork on disk, and the
/// source waits for all of them.
#[derive(Clone, Debug)]
pub struct ForkReceipt(mpsc::Sender<Infallible>);

/// The source's end of a [`ForkReceipt`].
#[derive(Debug)]
pub struct ForkReceiptCollector(mpsc::Receiver<Infallible>);

impl ForkReceipt {
    /// Returns a receipt, and the end that waits for all its copies.
    #[must_use]
    pub fn new() -> (ForkReceipt, ForkReceiptCollector) {
        let (sender, receiver) = mpsc::channel(1);
        (ForkReceipt(sender), ForkReceiptCollector(receiver))
    }

    /// Returns the receipt to the source: the fork is noted.
    pub(crate) fn give_back(self) {
        drop(self.0);
    }
}

impl ForkReceiptCollector {
    /// Waits until all copies of the receipt are returned.
    pub async fn wait_for_all(mut self) {
        while self.0.recv().await.is_some() {}
    }
}
