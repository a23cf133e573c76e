//! What a worker tells operators of itself: asked by message, answered by a task between its connections' turns.

use std::rc::Rc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use super::Worker;
use super::open::Shown;
use crate::discover::balance::EndpointHealth;

/// Questions that may wait at one worker; operators are few, and their server asks one worker after the other.
const WAITING: usize = 8;
/// For an answer. A worker that takes longer is stuck or dead, and whoever asks about it wants to hear of the others.
const PATIENCE: Duration = Duration::from_secs(2);

/// What a worker can be asked.
#[derive(Debug)]
pub enum Question {
    /// Its open connections: up to `most` whose number is greater than `after`.
    Connections {
        /// The last number that is known already.
        after: Option<u64>,
        /// How many.
        most: usize,
        /// Where the answer goes.
        reply: oneshot::Sender<Page>,
    },
    /// What it knows about endpoints.
    Endpoints {
        /// Where the answer goes.
        reply: oneshot::Sender<Vec<EndpointHealth>>,
    },
}

/// Some of a worker's connections.
#[derive(Debug)]
pub struct Page {
    /// How many are open in all.
    pub open: usize,
    /// Those that were asked for, in order of their numbers.
    pub shown: Vec<Shown>,
}

/// The operators' end of a worker.
#[derive(Debug, Clone)]
pub struct Inquiry {
    /// Which worker.
    pub worker: usize,
    questions: mpsc::Sender<Question>,
}

/// This worker gave no answer in time; it hangs or has died.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Silent;

impl Inquiry {
    /// Both ends of worker `worker`.
    pub fn new(worker: usize) -> (Self, mpsc::Receiver<Question>) {
        let (questions, receiver) = mpsc::channel(WAITING);
        (Self { worker, questions }, receiver)
    }

    /// Its open connections: up to `most` whose number is greater than `after`.
    pub async fn connections(&self, after: Option<u64>, most: usize) -> Result<Page, Silent> {
        self.ask(|reply| Question::Connections { after, most, reply }).await
    }

    /// What it knows about endpoints.
    pub async fn endpoints(&self) -> Result<Vec<EndpointHealth>, Silent> {
        self.ask(|reply| Question::Endpoints { reply }).await
    }

    async fn ask<T>(&self, question: impl FnOnce(oneshot::Sender<T>) -> Question) -> Result<T, Silent> {
        let (reply, answer) = oneshot::channel();
        let asking = async {
            self.questions.send(question(reply)).await.map_err(|_| Silent)?;
            answer.await.map_err(|_| Silent)
        };
        tokio::time::timeout(PATIENCE, asking).await.unwrap_or(Err(Silent))
    }
}

/// Answers until nobody can ask any more.
pub(super) async fn answer(worker: Rc<Worker>, mut questions: mpsc::Receiver<Question>) {
    while let Some(question) = questions.recv().await {
        // Whoever has stopped waiting needs no answer.
        match question {
            Question::Connections { after, most, reply } => {
                let _ = reply.send(Page { open: worker.open.len(), shown: worker.open.list(after, most) });
            }
            Question::Endpoints { reply } => {
                let _ = reply.send(worker.balance.borrow().endpoints(worker.uptime()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_worker_that_hangs_or_has_died_keeps_nobody_waiting() {
        let (hangs, mut questions) = Inquiry::new(0);
        assert_eq!(hangs.endpoints().await, Err(Silent));
        // Its queue fills and stays bounded.
        for _ in 0..2 * WAITING {
            assert_eq!(hangs.endpoints().await, Err(Silent));
        }
        let mut waiting = 0;
        while questions.try_recv().is_ok() {
            waiting += 1;
        }
        assert_eq!(waiting, WAITING);
        let (died, questions) = Inquiry::new(1);
        drop(questions);
        assert_eq!(died.endpoints().await, Err(Silent));
    }
}
