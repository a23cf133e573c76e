use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::telemetry::Metrics;

const LONG: Duration = Duration::from_secs(3600);

fn line(served: usize, waiting: usize) -> Line {
    Line::new(served, waiting, Metrics::new().line("issuing"))
}

/// Turns are noted in the order in which they come.
async fn wait(line: &Line, order: &Mutex<Vec<u32>>, number: u32) -> Result<(), Busy> {
    let turn = line.turn(Some(&number.to_be_bytes()), LONG).await?;
    order.lock().unwrap().push(number);
    drop(turn);
    Ok(())
}

#[tokio::test]
async fn a_line_serves_in_order_and_turns_away_whom_it_cannot_serve() {
    let (line, order) = (line(1, 2), Mutex::default());
    let first = line.turn(None, LONG).await.unwrap();
    let release = async move {
        tokio::task::yield_now().await;
        drop(first);
    };
    // The fourth finds the line full; the others get their turns one after the other.
    let (two, three, four, ()) =
        tokio::join!(wait(&line, &order, 2), wait(&line, &order, 3), wait(&line, &order, 4), release);
    assert_eq!((two, three, four.unwrap_err().why), (Ok(()), Ok(()), "full"));
    assert_eq!(*order.lock().unwrap(), [2, 3]);

    let _held = line.turn(None, LONG).await.unwrap();
    let busy = line.turn(None, Duration::from_millis(10)).await.unwrap_err();
    assert_eq!(busy.why, "slow", "and nobody waits for ever");
    assert!(busy.retry_after >= PAUSES.0 && busy.retry_after <= PAUSES.1);
}

#[tokio::test]
async fn whoever_was_sent_away_comes_back_to_the_same_place() {
    let (line, order) = (line(1, 8), Mutex::default());
    let held = line.turn(None, LONG).await.unwrap();
    // 1 gives up after a while, and so does 2, whose connection breaks.
    assert!(line.turn(Some(&1_u32.to_be_bytes()), Duration::from_millis(10)).await.is_err());
    assert!(tokio::time::timeout(Duration::from_millis(10), wait(&line, &order, 2)).await.is_err());
    let back = async {
        tokio::task::yield_now().await;
        let release = async {
            tokio::task::yield_now().await;
            drop(held);
        };
        tokio::join!(wait(&line, &order, 2), wait(&line, &order, 1), release)
    };
    let (three, (two, one, ())) = tokio::join!(wait(&line, &order, 3), back);
    assert_eq!((one, two, three), (Ok(()), Ok(()), Ok(())));
    assert_eq!(*order.lock().unwrap(), [1, 2, 3], "by their tickets, not by when they came back");
}

#[tokio::test]
async fn a_ticket_is_kept_for_a_while_and_no_more_of_them_than_the_line_is_long() {
    let (line, order) = (line(1, 2), Mutex::default());
    let held = line.turn(None, LONG).await.unwrap();
    for number in 0..10_u32 {
        assert!(line.turn(Some(&number.to_be_bytes()), Duration::from_millis(1)).await.is_err());
    }
    assert_eq!(line.state().left.len(), 2);
    for (_, until) in line.state().left.values_mut() {
        *until = Instant::now();
    }
    let release = async {
        tokio::task::yield_now().await;
        drop(held);
    };
    let (_, _, ()) = tokio::join!(wait(&line, &order, 20), wait(&line, &order, 0), release);
    assert_eq!(*order.lock().unwrap(), [20, 0], "too late");
}

#[tokio::test]
async fn a_herd_that_is_less_patient_than_the_line_is_long_is_served_and_nobody_twice() {
    const HERD: u32 = 200;
    let (line, order) = (Arc::new(line(4, 1000)), Arc::new(Mutex::new(Vec::new())));
    let (inside, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let mut herd = tokio::task::JoinSet::new();
    for number in 0..HERD {
        let (line, order) = (Arc::clone(&line), Arc::clone(&order));
        let (inside, most) = (Arc::clone(&inside), Arc::clone(&most));
        herd.spawn(async move {
            loop {
                if let Ok(_turn) = line.turn(Some(&number.to_be_bytes()), Duration::from_millis(30)).await {
                    order.lock().unwrap().push(number);
                    most.fetch_max(inside.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
                    tokio::time::sleep(Duration::from_millis(2)).await;
                    inside.fetch_sub(1, Ordering::Relaxed);
                    return;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
    }
    while herd.join_next().await.is_some() {}
    let mut served = order.lock().unwrap().clone();
    served.sort_unstable();
    assert_eq!(served, (0..HERD).collect::<Vec<_>>());
    assert!(most.load(Ordering::Relaxed) <= 4);
    let state = line.state();
    assert_eq!((state.free, state.waiting.len()), (4, 0), "every turn was given back");
}
