//! A connection that switched protocols, such as a WebSocket's: bytes from here on, judged by the request that began it.

use std::rc::Rc;

use tokio::task::JoinHandle;

use super::forward::Far;
use crate::finish::{self, Socketed};
use crate::prefixed::Prefixed;
use crate::relay::relay;
use crate::telemetry::{Direction, Outcome, Record};
use crate::worker::Worker;
use crate::worker::open::{Cause, Counting, Open, Subject};

/// Relays between the two ends. `subject` is who the tunnel depends on, and what policy was asked.
pub async fn carry(
    worker: &Worker,
    open: &Open,
    near: Prefixed<impl Socketed>,
    far: JoinHandle<Option<Far>>,
    subject: Option<Rc<Subject>>,
    direction: Direction,
    record: &mut Record,
) -> Outcome {
    open.note(|about| about.protocol = "tunnel");
    if let Some(subject) = subject {
        // Registered first: a push between the two would otherwise miss it.
        if let Err(failure) = worker.prove(open, &subject) {
            near.reset();
            return finish::refused(record, &failure);
        }
        let policy = worker.shared.snapshots.policy.load();
        if policy.as_ref().is_some_and(|policy| !subject.is_admitted(policy)) {
            near.reset();
            return Cause::PolicyChanged.into();
        }
    }
    match far.await.ok().flatten() {
        None => {
            near.reset();
            record.detail = Some("the other end of the tunnel is gone".to_owned());
            Outcome::Broken
        }
        Some(Far::Plain(far)) => bytes(worker, open, near, far, direction, record).await,
        Some(Far::Tls(far)) => bytes(worker, open, near, *far, direction, record).await,
    }
}

async fn bytes(
    worker: &Worker,
    open: &Open,
    mut near: impl Socketed,
    mut far: impl Socketed,
    direction: Direction,
    record: &mut Record,
) -> Outcome {
    let progress = Counting { open, counters: worker.shared.telemetry.metrics.bytes(direction) };
    tokio::select! {
        biased;
        cause = open.closed() => {
            near.reset();
            far.reset();
            cause.into()
        }
        end = relay(&mut near, &mut far, &progress) => finish::ended(end, &near, &far, record),
    }
}
