//! The order in which this proxy stops; pure: events and times in, what is to be done out. `traffic.rs` does it.
//!
//! Readiness first. For `pre_drain` everything is served as before, so that balancers notice. Then peers are accepted no
//! more, and what is under way ends. The app's own connections go on meanwhile, since an answer may need them; they end
//! once the inbound side has. What is left when the time is up is cut off.

use std::time::{Duration, Instant};

/// What happens to a proxy that stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// SIGTERM, SIGINT or an operator's wish.
    Asked,
    /// Another process holds the sockets and is ready.
    HandedOver,
    /// The acceptor ended by itself.
    Deaf,
    /// The deadline may have passed.
    Tick,
    /// Nobody from outside is connected any more, and nobody is accepted.
    InboundEnded,
}

/// What is to be done, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// `/readyz` fails from here on.
    FailReadiness,
    /// Accept what peers have queued and nothing further; end what is under way in order.
    StopInbound,
    /// The same towards the app.
    StopOutbound,
    /// Cut off what is left.
    EndAll,
}

/// How far the end has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Serving,
    Announced { until: Instant },
    Inbound { until: Instant },
    Everything { until: Instant },
    CutOff,
}

/// The state of the stop.
#[derive(Debug)]
pub struct Drain {
    phase: Phase,
    pre_drain: Duration,
    timeout: Duration,
}

impl Drain {
    /// A proxy that serves.
    pub fn new(pre_drain: Duration, timeout: Duration) -> Self {
        Self { phase: Phase::Serving, pre_drain, timeout }
    }

    /// When [`Event::Tick`] is due.
    pub fn deadline(&self) -> Option<Instant> {
        match self.phase {
            Phase::Announced { until } | Phase::Inbound { until } | Phase::Everything { until } => {
                Some(until)
            }
            Phase::Serving | Phase::CutOff => None,
        }
    }

    /// What follows from `event` at `now`.
    pub fn on(&mut self, event: Event, now: Instant) -> &'static [Act] {
        use Act::{EndAll, FailReadiness, StopInbound, StopOutbound};
        let until = now + self.timeout;
        let (phase, acts): (Phase, &'static [Act]) = match (self.phase, event) {
            (Phase::Serving, Event::Asked) if self.pre_drain.is_zero() => {
                (Phase::Inbound { until }, &[FailReadiness, StopInbound])
            }
            (Phase::Serving, Event::Asked) => {
                (Phase::Announced { until: now + self.pre_drain }, &[FailReadiness])
            }
            (Phase::Announced { until: at }, Event::Tick) if now >= at => {
                (Phase::Inbound { until }, &[StopInbound])
            }
            // The successor serves both sides, and answers the probes.
            (Phase::Serving | Phase::Announced { .. }, Event::HandedOver) => {
                (Phase::Everything { until }, &[StopInbound, StopOutbound])
            }
            (Phase::Serving | Phase::Announced { .. }, Event::Deaf) => {
                (Phase::Everything { until }, &[FailReadiness, StopInbound, StopOutbound])
            }
            (Phase::Inbound { until }, Event::InboundEnded) => (Phase::Everything { until }, &[StopOutbound]),
            (Phase::Inbound { until } | Phase::Everything { until }, Event::Tick) if now >= until => {
                (Phase::CutOff, &[StopOutbound, EndAll])
            }
            (phase, _) => (phase, &[]),
        };
        self.phase = phase;
        acts
    }
}

#[cfg(test)]
mod tests {
    use super::Act::*;
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn readiness_goes_first_and_outbound_last() {
        let t = Instant::now();
        let mut drain = Drain::new(5 * SECOND, 30 * SECOND);
        assert_eq!(drain.deadline(), None);
        assert_eq!(drain.on(Event::Asked, t), [FailReadiness]);
        assert_eq!(drain.deadline(), Some(t + 5 * SECOND));
        assert_eq!(drain.on(Event::Tick, t + 4 * SECOND), []);
        assert_eq!(drain.on(Event::InboundEnded, t + 4 * SECOND), [], "peers may still come");
        assert_eq!(drain.on(Event::Tick, t + 5 * SECOND), [StopInbound]);
        assert_eq!(
            drain.deadline(),
            Some(t + 35 * SECOND),
            "the timeout counts from when nobody is accepted"
        );
        assert_eq!(drain.on(Event::InboundEnded, t + 10 * SECOND), [StopOutbound]);
        assert_eq!(drain.deadline(), Some(t + 35 * SECOND), "both sides share one timeout");
        assert_eq!(drain.on(Event::Tick, t + 35 * SECOND), [StopOutbound, EndAll]);
        assert_eq!(drain.on(Event::Tick, t + 36 * SECOND), []);
    }

    #[test]
    fn without_a_pre_drain_peers_are_refused_at_once_and_asking_twice_changes_nothing() {
        let t = Instant::now();
        let mut drain = Drain::new(Duration::ZERO, 30 * SECOND);
        assert_eq!(drain.on(Event::Asked, t), [FailReadiness, StopInbound]);
        assert_eq!(drain.on(Event::Asked, t + SECOND), []);
        assert_eq!(drain.on(Event::HandedOver, t + SECOND), [], "the sockets are closed already");
        assert_eq!(drain.deadline(), Some(t + 30 * SECOND));
        assert_eq!(drain.on(Event::Tick, t + 30 * SECOND), [StopOutbound, EndAll]);
    }

    #[test]
    fn a_successor_takes_over_without_a_pre_drain_even_in_the_midst_of_one() {
        let t = Instant::now();
        for asked in [false, true] {
            let mut drain = Drain::new(5 * SECOND, 30 * SECOND);
            if asked {
                drain.on(Event::Asked, t);
            }
            let acts = drain.on(Event::HandedOver, t + SECOND);
            assert_eq!(acts, [StopInbound, StopOutbound]);
            assert_eq!(drain.deadline(), Some(t + 31 * SECOND));
        }
    }

    #[test]
    fn whatever_happens_in_whatever_order_outbound_ends_after_inbound_and_readiness_before_both() {
        let t = Instant::now();
        let events = [Event::Asked, Event::HandedOver, Event::Deaf, Event::Tick, Event::InboundEnded];
        // All sequences of six events, a second apart.
        for sequence in 0..events.len().pow(6) {
            let mut drain = Drain::new(2 * SECOND, 2 * SECOND);
            let mut acts: Vec<Act> = Vec::new();
            for step in 0..6u32 {
                let event = events[sequence / events.len().pow(step) % events.len()];
                acts.extend(drain.on(event, t + SECOND * step));
            }
            let sequence_has = |event: Event| {
                (0..6u32).any(|step| events[sequence / events.len().pow(step) % events.len()] == event)
            };
            let first = |act: Act| acts.iter().position(|a| *a == act);
            let in_order =
                |a: Act, b: Act| first(b).is_none() || first(a).is_some_and(|i| Some(i) < first(b));
            if !sequence_has(Event::HandedOver) {
                assert!(in_order(FailReadiness, StopInbound), "{sequence}: {acts:?}");
            }
            for (a, b) in [(StopInbound, StopOutbound), (StopInbound, EndAll)] {
                assert!(in_order(a, b), "{sequence}: {acts:?}");
            }
            assert!(acts.iter().filter(|a| **a == EndAll).count() <= 1);
        }
    }
}
