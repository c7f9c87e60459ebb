use laredo_core::{CommitMark, CommitTime, Sequence, TupleBuf};
use laredo_proto::replication::{RowEncoding, SyncRequest};
use tonic::Code;

use super::*;

const WAIT: Duration = Duration::from_secs(10);
const POSITION: Lsn = Lsn(7);

fn roster() -> Arc<StreamRoster> {
    Arc::new(StreamRoster::new("main", TableName::new("public", "t")))
}

fn join(roster: &Arc<StreamRoster>, client_id: &str, encoding: RowEncoding) -> RosterMembership {
    let request = SyncRequest {
        client_id: client_id.to_owned(),
        accept: vec![encoding.into()],
        wants_checksums: true,
        answers_checks: true,
        ..SyncRequest::default()
    };
    roster.join(&SessionRequest::new(request, crate::access::RowScope::default()).unwrap())
}

fn binary(roster: &Arc<StreamRoster>, client_id: &str) -> RosterMembership {
    join(roster, client_id, RowEncoding::PostgresBinary)
}

fn other() -> Checksum {
    Checksum::of_row(TupleBuf::new().as_ref())
}

fn head(checksum: Option<Checksum>) -> Head {
    let (committed_at, mark) = (CommitTime::default(), CommitMark::default());
    Head { sequence: Sequence(1), position: POSITION, committed_at, mark, checksum }
}

/// Returns the check of a member that was sent everything.
fn check(member: &RosterMembership) -> CheckId {
    member.take_check(head(Some(Checksum::default()))).unwrap()
}

fn report(check: CheckId, checksum: Option<Checksum>) -> ChecksumReport {
    ChecksumReport { check, position: POSITION, checksum, rows: Some(3) }
}

/// Begins a round, and returns once it asks its clients.
async fn begin(roster: &Arc<StreamRoster>) -> tokio::task::JoinHandle<Vec<ComparedClient>> {
    let roster = roster.clone();
    let round = tokio::spawn(async move { roster.compare(WAIT).await });
    tokio::task::yield_now().await;
    round
}

#[tokio::test(start_paused = true)]
async fn every_client_gets_its_own_result() {
    let (roster, began) = (roster(), Instant::now());
    let members = ["equal", "differs", "declines", "silent", "unasked"].map(|id| binary(&roster, id));
    let [equal, differs, declines, silent, _unasked] = &members;
    let structs = join(&roster, "structs", RowEncoding::Struct);
    assert!(members.iter().all(|member| !member.is_wanted() && member.take_check(head(None)).is_none()));
    let round = begin(&roster).await;
    assert!(members.iter().all(RosterMembership::is_wanted) && !structs.is_wanted());
    let newcomer = binary(&roster, "newcomer");
    assert!(!newcomer.is_wanted(), "it came after the question");
    roster.answer(report(check(equal), Some(Checksum::default()))).unwrap();
    roster.answer(report(check(differs), Some(other()))).unwrap();
    roster.answer(report(check(declines), None)).unwrap();
    assert!(!equal.is_wanted() && equal.take_check(head(None)).is_none(), "it is asked once");
    check(silent);
    let results = round.await.unwrap();
    assert_eq!(began.elapsed(), WAIT, "it waits for those that are silent");
    let found: Vec<(&str, ComparisonOutcome)> =
        results.iter().map(|client| (client.client_id.as_str(), client.outcome)).collect();
    let (position, rows) = (POSITION, Some(3));
    let expected = [
        ("equal", ComparisonOutcome::Equal { position, rows }),
        ("differs", ComparisonOutcome::Differs { position, rows, ours: Checksum::default(), theirs: other() }),
        ("declines", ComparisonOutcome::NotComparable(NOTHING_TO_COMPARE)),
        ("silent", ComparisonOutcome::NoAnswer(UNANSWERED)),
        ("unasked", ComparisonOutcome::NoAnswer(UNASKED)),
        ("structs", ComparisonOutcome::NotComparable("it reads rows as Structs, which have no checksum")),
    ];
    assert_eq!(found, expected);
    assert_eq!(roster.differing(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_leaves_is_waited_for_no_longer_than_its_answer_takes() {
    let (roster, began) = (roster(), Instant::now());
    let [early, healing, silent] = ["early", "healing", "silent"].map(|id| binary(&roster, id));
    let round = begin(&roster).await;
    drop(early);
    let under_way = check(&healing);
    check(&silent);
    // A client that differs ends its stream while its answer is on the way.
    drop(healing);
    drop(silent);
    tokio::time::advance(Duration::from_secs(1)).await;
    roster.answer(report(under_way, Some(other()))).unwrap();
    let results = round.await.unwrap();
    assert_eq!(began.elapsed(), LAST_ANSWER);
    let outcomes: Vec<ComparisonOutcome> = results.into_iter().map(|client| client.outcome).collect();
    assert!(
        matches!(
            outcomes[..],
            [ComparisonOutcome::Left(_), ComparisonOutcome::Differs { .. }, ComparisonOutcome::Left(_)]
        ),
        "a client that has left is not forgotten before the round ends: {outcomes:?}"
    );
    assert!(roster.streams.lock().members.is_empty(), "nothing is kept of those that left");
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_was_not_asked_for_is_refused() {
    let roster = roster();
    let (one, two) = (binary(&roster, "one"), binary(&roster, "two"));
    let unknown = |check| roster.answer(report(check, None)).unwrap_err().code() == Code::NotFound;
    assert!(unknown(CheckId([0; 16])));
    let round = begin(&roster).await;
    let (first, second) = (check(&one), check(&two));
    assert_ne!(first, second);
    assert!(unknown(CheckId([0; 16])));
    let elsewhere = ChecksumReport { position: Lsn(8), ..report(first, Some(Checksum::default())) };
    let refused = roster.answer(elsewhere).unwrap_err();
    assert!(refused.code() == Code::InvalidArgument && refused.message().contains("0/7"), "{refused}");
    roster.answer(report(first, Some(Checksum::default()))).unwrap();
    assert!(unknown(first), "a check is answered once");
    let results = round.await.unwrap();
    assert!(matches!(results[0].outcome, ComparisonOutcome::Equal { .. }), "{results:?}");
    assert!(unknown(second), "the round is over");
    assert!(roster.streams.lock().asked.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_table_without_a_checksum_cannot_be_compared() {
    let roster = roster();
    let member = binary(&roster, "client");
    let round = begin(&roster).await;
    assert_eq!(member.take_check(head(None)), None);
    assert_eq!(round.await.unwrap()[0].outcome, ComparisonOutcome::NotComparable(NO_CHECKSUM));
}

#[tokio::test(start_paused = true)]
async fn a_round_that_is_given_up_asks_no_client_any_more_and_rounds_take_turns() {
    let roster = roster();
    let (stays, leaves) = (binary(&roster, "stays"), binary(&roster, "leaves"));
    let round = begin(&roster).await;
    let next = begin(&roster).await;
    drop(leaves);
    assert_eq!(roster.streams.lock().members.len(), 2);
    round.abort();
    assert!(round.await.unwrap_err().is_cancelled());
    tokio::task::yield_now().await;
    assert_eq!(roster.streams.lock().members.len(), 1);
    stays.wanted().await;
    roster.answer(report(check(&stays), Some(Checksum::default()))).unwrap();
    assert_eq!(next.await.unwrap().len(), 1);
    assert!(roster.compare(WAIT).await[0].outcome == ComparisonOutcome::NoAnswer(UNASKED), "a later one asks again");
}
