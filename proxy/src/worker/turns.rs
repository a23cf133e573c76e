//! Handshake steps take turns, so that a storm of them does not keep a worker from traffic that is established.
//!
//! A step of a handshake costs the CPU as much as ten requests. Two hundred peers that connect at once would be two hundred
//! steps in front of a byte that has just arrived. Here a worker does at most [`STEPS`] of them before it looks again at
//! what else has become ready; the others wait in a line, in order. Nothing is held while a peer is waited for, so a
//! silent peer costs nobody a turn.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, Waker};

/// Handshake steps between two looks at the sockets. Fewer make established traffic wait less, and cost more looks.
pub const STEPS: usize = 2;

/// One worker's turns.
#[derive(Debug)]
pub struct Turns {
    line: RefCell<VecDeque<Weak<Seat>>>,
    /// Steps that may still be done before the next look.
    left: Cell<usize>,
    dealer: RefCell<Option<Waker>>,
}

/// One handshake's place in the line.
#[derive(Debug)]
struct Seat {
    state: Cell<State>,
    waker: RefCell<Waker>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Waits for its peer, if for anything.
    Away,
    /// Has something to do and stands in the line.
    InLine,
    /// May do it.
    Called,
}

impl Default for Turns {
    fn default() -> Self {
        Self { line: RefCell::default(), left: Cell::new(STEPS), dealer: RefCell::default() }
    }
}

impl Turns {
    /// The handshake, each of whose steps waits for its turn.
    pub fn take<F: Future + Unpin>(&self, handshake: F) -> Taking<'_, F> {
        Taking { handshake, seat: None, turns: self }
    }

    /// Deals turns out for as long as the worker lives.
    pub async fn deal(&self) {
        loop {
            poll_fn(|cx| self.poll_wanted(cx)).await;
            // Comes back only after the runtime has looked at its sockets, and after whatever was ready before.
            tokio::task::yield_now().await;
            self.left.set(STEPS);
            while self.left.get() > 0 {
                let Some(next) = self.line.borrow_mut().pop_front() else { break };
                // One that has gone meanwhile, by its deadline, takes no turn.
                let Some(seat) = next.upgrade() else { continue };
                self.left.set(self.left.get() - 1);
                seat.state.set(State::Called);
                seat.waker.borrow().wake_by_ref();
            }
        }
    }

    fn poll_wanted(&self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.line.borrow().is_empty() {
            return Poll::Ready(());
        }
        *self.dealer.borrow_mut() = Some(cx.waker().clone());
        Poll::Pending
    }

    fn queue(&self, seat: &Rc<Seat>) {
        seat.state.set(State::InLine);
        self.line.borrow_mut().push_back(Rc::downgrade(seat));
        if let Some(dealer) = self.dealer.take() {
            dealer.wake();
        }
    }
}

/// A handshake that takes turns.
#[derive(Debug)]
pub struct Taking<'a, F> {
    handshake: F,
    /// Made when it first has to wait.
    seat: Option<Rc<Seat>>,
    turns: &'a Turns,
}

impl<F: Future + Unpin> Future for Taking<'_, F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.get_mut();
        let state = this.seat.as_ref().map_or(State::Away, |seat| seat.state.get());
        let left = this.turns.left.get();
        if state == State::Called || (state == State::Away && left > 0) {
            if let Some(seat) = &this.seat {
                seat.state.set(State::Away);
            }
            if state == State::Away {
                this.turns.left.set(left - 1);
            }
            return Pin::new(&mut this.handshake).poll(cx);
        }
        let seat = this.seat.get_or_insert_with(|| {
            Rc::new(Seat { state: Cell::new(State::Away), waker: RefCell::new(cx.waker().clone()) })
        });
        seat.waker.borrow_mut().clone_from(cx.waker());
        if state == State::Away {
            this.turns.queue(seat);
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::task::{JoinSet, LocalSet, yield_now};

    use super::*;

    /// A handshake of so many steps that writes down when each is done.
    async fn steps(many: usize, name: usize, done: Rc<RefCell<Vec<usize>>>) {
        for _ in 0..many {
            done.borrow_mut().push(name);
            yield_now().await;
        }
    }

    #[tokio::test]
    async fn what_is_established_gets_its_turn_after_a_few_steps() {
        let turns = Rc::new(Turns::default());
        let done = Rc::new(RefCell::new(Vec::new()));
        LocalSet::new()
            .run_until(async {
                let dealing = Rc::clone(&turns);
                let dealer = tokio::task::spawn_local(async move { dealing.deal().await });
                let mut storm = JoinSet::new();
                for name in 0..100 {
                    let (turns, done) = (Rc::clone(&turns), Rc::clone(&done));
                    storm.spawn_local(async move { turns.take(Box::pin(steps(3, name, done))).await });
                }
                let (looked, done_too) = (Rc::new(RefCell::new(Vec::new())), Rc::clone(&done));
                let seen = Rc::clone(&looked);
                // Established traffic is ready at each look.
                let established = tokio::task::spawn_local(async move {
                    loop {
                        seen.borrow_mut().push(done_too.borrow().len());
                        yield_now().await;
                    }
                });
                while storm.join_next().await.is_some() {}
                established.abort();
                dealer.abort();
                let looked = looked.borrow();
                // What is called before a look and what comes in unasked after it.
                let most = looked.windows(2).map(|w| w[1] - w[0]).max().unwrap();
                assert!(most <= 2 * STEPS, "{most} steps between two looks");
            })
            .await;
        let done = done.borrow();
        assert_eq!(done.len(), 300, "each handshake did all of its steps");
        assert_eq!(done[STEPS..50], (STEPS..50).collect::<Vec<_>>(), "in the order of their coming");
    }

    #[tokio::test]
    async fn one_that_gave_up_in_the_line_takes_no_turn_and_a_silent_peer_none_either() {
        let turns = Rc::new(Turns::default());
        let done = Rc::new(RefCell::new(Vec::new()));
        LocalSet::new()
            .run_until(async {
                let silent = || Box::pin(turns.take(Box::pin(std::future::pending::<()>())));
                let mut silent: Vec<_> = (0..STEPS).map(|_| silent()).collect();
                let mut gone = Box::pin(turns.take(Box::pin(steps(1, 7, Rc::clone(&done)))));
                poll_fn(|cx| {
                    assert!(silent.iter_mut().all(|s| s.as_mut().poll(cx).is_pending()));
                    assert!(gone.as_mut().poll(cx).is_pending(), "no turn is left for it");
                    Poll::Ready(())
                })
                .await;
                drop(gone);
                let dealing = Rc::clone(&turns);
                let dealer = tokio::task::spawn_local(async move { dealing.deal().await });
                let last = turns.take(Box::pin(steps(2, 8, Rc::clone(&done))));
                tokio::time::timeout(Duration::from_secs(60), last).await.unwrap();
                dealer.abort();
            })
            .await;
        assert_eq!(*done.borrow(), [8, 8]);
    }
}
