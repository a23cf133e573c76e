//! How a replica hears that another one changed something: `NOTIFY` as a hint, the generation's counter as the truth.

use std::time::Duration;

use sqlx::postgres::PgListener;

use super::Store;
use super::engine::Engine;

/// How often the counter is looked at, hint or no hint.
const POLL: Duration = Duration::from_millis(250);
/// How long a lost listening connection is left alone.
const PAUSE: Duration = Duration::from_secs(1);
/// Sent with a change's commit.
pub(super) const TELL: &str = "SELECT 1 FROM pg_notify('postern_generation', '')";
const CHANNEL: &str = "postern_generation";

/// Wakes when it is time to look at the generation's counter.
#[derive(Debug)]
pub struct Hints {
    engine: Engine,
    listener: Option<PgListener>,
    retry_at: tokio::time::Instant,
}

impl Store {
    /// The hints for this store. Where nobody else writes there are none: whoever changes something publishes it.
    pub fn hints(&self) -> Option<Hints> {
        self.engine.is_shared().then(|| Hints {
            engine: self.engine.clone(),
            listener: None,
            retry_at: tokio::time::Instant::now(),
        })
    }
}

impl Hints {
    /// Returns after a hint, or after [`POLL`] at the latest. Cancelling it loses nothing but a hint.
    pub async fn next(&mut self) {
        let wake = tokio::time::Instant::now() + POLL;
        self.listen().await;
        let Some(listener) = &mut self.listener else { return tokio::time::sleep_until(wake).await };
        match tokio::time::timeout_at(wake, listener.recv()).await {
            Ok(Ok(_)) | Err(_) => {}
            Ok(Err(error)) => {
                tracing::debug!(%error, "no hints from the store for now; its counter is still looked at");
                self.lose();
                tokio::time::sleep_until(wake).await;
            }
        }
    }

    async fn listen(&mut self) {
        let Engine::Postgres { url, .. } = &self.engine else { return };
        if self.listener.is_some() || tokio::time::Instant::now() < self.retry_at {
            return;
        }
        let connected = tokio::time::timeout(PAUSE, async {
            let mut listener = PgListener::connect(&url.0).await?;
            listener.listen(CHANNEL).await?;
            Ok::<_, sqlx::Error>(listener)
        });
        match connected.await {
            Ok(Ok(listener)) => self.listener = Some(listener),
            _ => self.lose(),
        }
    }

    fn lose(&mut self) {
        self.listener = None;
        self.retry_at = tokio::time::Instant::now() + PAUSE;
    }
}
