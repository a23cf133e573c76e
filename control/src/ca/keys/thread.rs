//! A named thread that owns what others may not touch (a token's sessions, a server's login), and takes its turns one by one.

use std::sync::mpsc::{RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::time::Duration;

/// How many may wait for their turn; more would only wait for longer than they have time.
const QUEUE: usize = 256;
/// How long anybody waits for an answer: longer than any call of a healthy token, shorter than a proxy's patience.
const DEADLINE: Duration = Duration::from_secs(15);

type Job<S> = Box<dyn FnOnce(&mut S) + Send>;

/// Why there is no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Silent {
    /// Too many wait.
    #[error("too many calls wait for it")]
    Busy,
    /// No answer in time.
    #[error("no answer within 15 s")]
    Slow,
    /// The thread has ended.
    #[error("its thread has ended")]
    Gone,
}

/// The thread's other end.
pub(super) struct Worker<S>(SyncSender<Job<S>>);

impl<S> Clone for Worker<S> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<S: 'static> Worker<S> {
    /// Starts the thread. It ends when nobody can ask it any more.
    pub(super) fn start(name: &str, make: impl FnOnce() -> S + Send + 'static) -> std::io::Result<Self> {
        let (sender, jobs) = sync_channel::<Job<S>>(QUEUE);
        std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            let mut state = make();
            for job in jobs {
                job(&mut state);
            }
        })?;
        Ok(Self(sender))
    }

    /// Waits for its turn and for the answer. A call that was given up is still carried out.
    pub(super) fn ask<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut S) -> T + Send + 'static,
    ) -> Result<T, Silent> {
        let (answer, answered) = sync_channel(1);
        let job: Job<S> = Box::new(move |state| {
            let _ = answer.send(work(state));
        });
        self.0.try_send(job).map_err(|e| match e {
            TrySendError::Full(_) => Silent::Busy,
            TrySendError::Disconnected(_) => Silent::Gone,
        })?;
        answered.recv_timeout(DEADLINE).map_err(|e| match e {
            RecvTimeoutError::Timeout => Silent::Slow,
            RecvTimeoutError::Disconnected => Silent::Gone,
        })
    }
}
