//! ^C and SIGTERM as events that the one who waits receives.

use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::signal::unix::{SignalKind, signal};

/// The end that somebody asked for.
#[derive(Debug)]
pub struct Interrupt(Receiver<()>);

impl Interrupt {
    /// From here on SIGINT, SIGTERM and SIGHUP end nothing by themselves.
    pub fn watch() -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
        let [mut int, mut term, mut hup] = {
            let _context = runtime.enter();
            let [int, term, hup] = kinds.map(signal);
            [int?, term?, hup?]
        };
        let (send, receive) = channel();
        let watch = move || {
            runtime.block_on(async {
                loop {
                    tokio::select! { _ = int.recv() => {}, _ = term.recv() => {}, _ = hup.recv() => {} }
                    if send.send(()).is_err() {
                        return;
                    }
                }
            });
        };
        std::thread::Builder::new()
            .name("signals".to_owned())
            .spawn(watch)
            .context("no thread for signals")?;
        Ok(Self(receive))
    }

    /// Waits at most this long; true once it has come.
    pub fn within(&self, limit: Duration) -> bool {
        !matches!(self.0.recv_timeout(limit), Err(RecvTimeoutError::Timeout))
    }

    /// Whether it has come already.
    pub fn has_come(&self) -> bool {
        self.within(Duration::ZERO)
    }

    /// Waits until it comes.
    pub fn wait(&self) {
        // An error means that nobody watches any more: an end, too.
        let _ = self.0.recv();
    }
}
