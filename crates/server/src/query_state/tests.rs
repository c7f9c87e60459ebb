//! Tests of the rows against a plain map, and of the limits of listings.

use std::collections::BTreeMap;

use laredo_core::{Cell, Column, KeyColumns, Schema};
use laredo_values::Value;
use tokio::time::advance;

use super::*;
use crate::access::RowScope;
use crate::options::QueryIndexOptions;
use crate::peer::ClientGroup;

fn schema() -> Arc<Schema> {
    let column = |(name, type_oid, type_name): (&str, u32, &str)| Column {
        name: name.to_owned(),
        type_oid,
        type_modifier: -1,
        type_name: type_name.to_owned(),
        not_null: false,
        is_text: false,
    };
    let columns = [("kind", 25, "text"), ("id", 23, "integer"), ("size", 701, "double precision")].map(column);
    Arc::new(Schema::new(columns.to_vec(), KeyColumns::new([1]), BTreeMap::new()))
}

fn index(name: &str, fields: &[&str]) -> Arc<QueryIndexOptions> {
    let fields = fields.iter().map(|field| (*field).to_owned()).collect();
    Arc::new(QueryIndexOptions { name: name.to_owned(), fields, unique: false })
}

fn rows() -> QueryRows {
    let indexes = [index("by_kind", &["kind"]), index("by_size", &["size", "kind"]), index("wrong", &["color"])];
    QueryRows::new(schema(), &indexes)
}

/// A row of the model: its kind and its size.
type ModelRow = (Option<String>, f64);

fn put(rows: &mut QueryRows, id: i32, (kind, size): &ModelRow) -> bool {
    let (id, size) = (id.to_be_bytes(), size.to_be_bytes());
    let kind = kind.as_ref().map_or(Cell::Null, |kind| Cell::Value(kind.as_bytes()));
    let row: laredo_core::TupleBuf = [kind, Cell::Value(&id), Cell::Value(&size)].into_iter().collect();
    rows.put(row.as_ref()).is_some()
}

fn ids<'a>(found: impl Iterator<Item = &'a laredo_core::Tuple>) -> Vec<i32> {
    let id = |row: &laredo_core::Tuple| {
        let cell = row.as_ref().cell(1).value().map(<[u8]>::to_vec);
        i32::from_be_bytes(cell.and_then(|cell| cell.try_into().ok()).unwrap())
    };
    found.map(id).collect()
}

fn check(rows: &QueryRows, model: &BTreeMap<i32, ModelRow>) {
    assert_eq!(rows.len(), model.len());
    assert_eq!(ids(rows.primary().iter()), model.keys().copied().collect::<Vec<_>>());
    let index = |name: &str| rows.index(name).and_then(|index| index.rows.as_ref().ok()).unwrap();
    for kind in [None, Some("a"), Some("b"), Some("")] {
        let value = kind.map_or(Value::Null, |kind| Value::String(kind.to_owned()));
        let of_kind = |row: &ModelRow| row.0.as_deref() == kind;
        let expected: Vec<i32> = model.iter().filter(|(_, row)| of_kind(row)).map(|(id, _)| *id).collect();
        assert_eq!(ids(index("by_kind").find(std::slice::from_ref(&value)).unwrap()), expected, "{kind:?}");
        for size in [0.0, 1.5] {
            let expected: Vec<i32> =
                model.iter().filter(|(_, row)| of_kind(row) && row.1 == size).map(|(id, _)| *id).collect();
            let values = [Value::Number(size), value.clone()];
            assert_eq!(ids(index("by_size").find(&values).unwrap()), expected, "{kind:?} {size}");
        }
    }
    for id in 0..20 {
        let found = ids(rows.primary().find(&[Value::Number(f64::from(id))]).unwrap());
        assert_eq!(found, model.contains_key(&id).then_some(id).into_iter().collect::<Vec<_>>());
    }
}

#[test]
fn rows_and_indexes_are_those_of_a_plain_map_and_earlier_states_stay() {
    let (mut rows, mut model) = (rows(), BTreeMap::new());
    let (mut before, mut number) = (Vec::new(), 7_u64);
    for _ in 0..400 {
        number = number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let (id, choice) = (i32::try_from((number >> 33) % 20).unwrap(), number >> 40);
        let kind = [None, Some("a"), Some("b"), Some("")][(choice % 4) as usize];
        let row = (kind.map(str::to_owned), [0.0, -0.0, 1.5, 2.0][(choice / 4 % 4) as usize]);
        match choice / 16 % 8 {
            0..5 => assert_eq!(put(&mut rows, id, &row), model.insert(id, row).is_some()),
            _ => {
                let key = laredo_core::Key::new([Cell::Value(&id.to_be_bytes())]);
                assert_eq!(rows.remove(key.as_ref()).is_ok(), model.remove(&id).is_some());
            }
        }
        if number % 40 == 0 {
            before.push((rows.clone(), model.clone()));
        }
        check(&rows, &model);
    }
    assert!(before.len() > 3, "{}", before.len());
    before.iter().for_each(|(rows, model)| check(rows, model));
    let problem = rows.index("wrong").and_then(|index| index.rows.as_ref().err()).unwrap();
    assert!(problem.contains("`color`"), "{problem}");
}

fn owner(name: &str) -> ListingOwner {
    ListingOwner { group: ClientGroup::Identity(name.into()), scope: RowScope::default() }
}

fn table() -> (QueryTable, Arc<QueryState>) {
    let state = Arc::new(QueryState { rows: rows(), position: Lsn(16), journal: None });
    (QueryTable::new(QueryOptions::default()), state)
}

#[tokio::test(start_paused = true)]
async fn a_listing_is_its_caller_s_alone_and_ends_when_it_is_not_continued() {
    let (table, state) = table();
    let listing = table.begin_listing(owner("a"), state.clone(), 3);
    assert_eq!(table.find_listing(listing, &owner("a")).map(|(_, total)| total), Some(3));
    assert!(table.find_listing(listing, &owner("b")).is_none());
    let columns = crate::view::ColumnRules::new(vec!["size".to_owned()], Vec::new());
    let narrowed = ListingOwner { scope: RowScope { columns, ..RowScope::default() }, ..owner("a") };
    assert!(table.find_listing(listing, &narrowed).is_none(), "the caller was granted another part");
    for _ in 0..9 {
        advance(Duration::from_secs(59)).await;
        table.sweep(Instant::now());
        assert!(table.find_listing(listing, &owner("a")).is_some());
    }
    advance(Duration::from_secs(61)).await;
    assert!(table.find_listing(listing, &owner("a")).is_none());
    assert_eq!(table.listings(), 1);
    table.sweep(Instant::now());
    assert_eq!((table.listings(), Arc::strong_count(&state)), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn a_caller_s_listings_end_its_own_oldest_ones() {
    let (table, state) = table();
    let others = table.begin_listing(owner("b"), state.clone(), 0);
    let mut listings = Vec::new();
    for _ in 0..20 {
        advance(Duration::from_secs(1)).await;
        listings.push(table.begin_listing(owner("a"), state.clone(), 0));
    }
    let found: Vec<bool> = listings.iter().map(|id| table.find_listing(*id, &owner("a")).is_some()).collect();
    assert_eq!(found, [vec![false; 4], vec![true; 16]].concat());
    assert!(table.find_listing(others, &owner("b")).is_some());
}

#[tokio::test(start_paused = true)]
async fn a_wait_for_a_position_ends_when_it_is_reached_or_its_time_has_passed() {
    let (table, state) = table();
    assert!(matches!(table.reach(Lsn::ZERO, Duration::from_secs(1)).await, Err(None)));
    table.publish(QueryState::clone(&state));
    assert!(table.reach(Lsn(16), Duration::ZERO).await.is_ok());
    let late = table.reach(Lsn(17), Duration::from_secs(1)).await.unwrap_err();
    assert_eq!(late.map(|state| state.position), Some(Lsn(16)));
    let publish = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        table.publish(QueryState { position: Lsn(18), ..QueryState::clone(&state) });
    };
    let (reached, ()) = tokio::join!(table.reach(Lsn(17), Duration::from_secs(1)), publish);
    assert_eq!(reached.unwrap().position, Lsn(18));
}
