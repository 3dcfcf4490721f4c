//! The deterministic matrix: every promise holds, whatever dies, fails or lies.
//!
//! The tests are built with crash points; see decision 20.

#![expect(clippy::unwrap_used, reason = "the helpers of tests may panic")]

mod silence;

use std::collections::HashSet;

use shared::crash::Point;
use tests::chaos::{
    cell::Trouble,
    matrix::{self, Family},
    table,
};

/// A part of the matrix holds. A point that no process came to is a finding of its cell.
async fn assert_holds(family: Family) {
    let cells = matrix::run(family.cells()).await.unwrap();
    let table = table::table(&cells);
    let held = cells.iter().all(|(_, report)| report.findings.is_empty());
    assert!(held, "\n{table}");
    #[expect(clippy::print_stdout, reason = "the figures of a run that held")]
    {
        println!("{table}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_dies_or_stops_between_two_effects() {
    assert_holds(Family::Crashes).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_becomes_of_a_request() {
    assert_holds(Family::Commands).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_fails_on_the_way() {
    assert_holds(Family::Networks).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_the_queue_says() {
    assert_holds(Family::Lies).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_the_clocks_say() {
    assert_holds(Family::Clocks).await;
}

#[test]
fn every_point_has_its_cells() {
    let cells: Vec<_> = Family::ALL.into_iter().flat_map(Family::cells).collect();
    let points = |cells: &[Trouble], pick: fn(Trouble) -> Option<Point>| -> HashSet<Point> {
        cells.iter().copied().filter_map(pick).collect()
    };
    let killed = points(&cells, |cell| {
        if let Trouble::Kill(point) = cell {
            return Some(point);
        }
        None
    });
    let stopped = points(&cells, |cell| {
        if let Trouble::Stop(point) = cell {
            return Some(point);
        }
        None
    });
    for point in Point::ALL {
        assert!(
            killed.contains(point),
            "nobody is killed at {}",
            point.name()
        );
        assert!(
            stopped.contains(point),
            "nobody is stopped at {}",
            point.name()
        );
    }
}
