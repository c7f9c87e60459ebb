//! The simulated database fulfills the contract of a source.

use laredo_core::Lsn;
use laredo_testkit::conformance::{ConformanceDatabase, keeps_to_the_contract};
use laredo_testkit::{SimChange, SimDatabase};

struct SimConformanceDatabase(SimDatabase);

impl ConformanceDatabase for SimConformanceDatabase {
    type Source = SimDatabase;

    fn source(&self) -> SimDatabase {
        self.0.clone()
    }

    async fn insert(&self, rows: &[(usize, i64)]) {
        let changes = rows.iter().map(|(table, id)| (*table, SimChange::Insert(*id, "body".to_owned()))).collect();
        let end = self.0.commit_unseen(changes);
        self.0.make_visible(end);
    }

    async fn write_elsewhere(&self) -> Lsn {
        self.0.change_silently(0, Vec::new())
    }

    async fn forgotten(&self) -> Lsn {
        self.0.acknowledged()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_simulated_database_keeps_to_the_contract() {
    keeps_to_the_contract(&SimConformanceDatabase(SimDatabase::new(2))).await;
}
