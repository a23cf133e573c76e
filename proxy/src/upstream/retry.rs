//! Whether a failed request is sent again: only where that cannot do anything twice (RFC 9110 §9.2.2, RFC 9113 §8.7).

use std::time::Duration;

use http::{Method, StatusCode};

/// The longest wait before the first retry that waits; doubled with each further one.
const FIRST_BACKOFF: Duration = Duration::from_millis(25);
/// The longest wait at all: the caller's patience is finite.
const LONGEST_BACKOFF: Duration = Duration::from_millis(250);

/// How a try ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// The upstream has seen nothing of the request, or has said that it did nothing about it: no connection, a failed
    /// handshake, a pooled connection that was closed before the head was written, `REFUSED_STREAM`, or a stream above the
    /// last one that a `GOAWAY` names.
    NotProcessed,
    /// The connection or the stream was lost, or the time for one try was up, after the request was sent and before an
    /// answer came. Nobody knows how far the upstream has come.
    NoAnswer,
    /// The upstream answered; its head is at hand and has not been passed on.
    Answer(StatusCode),
}

/// What is known of the request when a try has failed.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// Its method.
    pub method: &'a Method,
    /// Whether any of its body was taken from the caller: it cannot be had again. A request without a body has nothing to take.
    pub body_taken: bool,
    /// Whether anything of an answer was passed on to the caller.
    pub answer_begun: bool,
    /// How many retries there were already.
    pub retries: u32,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Send it again after this time, if the [budget](super::budget) allows.
    Retry {
        /// How long to wait.
        after: Duration,
    },
    /// Pass the failure on.
    GiveUp(Reason),
}

/// Why a request is not sent again; also the label in metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// The answer is no error that another try could mend.
    Final,
    /// Part of an answer is with the caller.
    AnswerBegun,
    /// Part of the body is gone.
    BodyTaken,
    /// It might be done twice, and its method is not idempotent.
    NotIdempotent,
    /// It was tried often enough.
    Attempts,
}

impl Reason {
    /// As metrics and logs name it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Final => "final",
            Self::AnswerBegun => "answer_begun",
            Self::BodyTaken => "body_taken",
            Self::NotIdempotent => "not_idempotent",
            Self::Attempts => "attempts",
        }
    }
}

/// Decides after a failed try; `attempts` is how many retries a request may have, `random` any number.
///
/// A gRPC call is a POST, so it is sent again only if it was not processed: `UNAVAILABLE` may come from the midst of the work.
/// The first retry of what was not processed goes at once, since it goes elsewhere: to another connection or endpoint.
pub fn decide(request: Request<'_>, failure: Failure, attempts: u32, random: u64) -> Decision {
    let unfinished = match failure {
        Failure::NotProcessed => false,
        Failure::NoAnswer => true,
        Failure::Answer(
            StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT,
        ) => true,
        Failure::Answer(_) => return Decision::GiveUp(Reason::Final),
    };
    if request.answer_begun {
        Decision::GiveUp(Reason::AnswerBegun)
    } else if request.body_taken {
        Decision::GiveUp(Reason::BodyTaken)
    } else if unfinished && !is_idempotent(request.method) {
        Decision::GiveUp(Reason::NotIdempotent)
    } else if request.retries >= attempts {
        Decision::GiveUp(Reason::Attempts)
    } else if !unfinished && request.retries == 0 {
        Decision::Retry { after: Duration::ZERO }
    } else {
        Decision::Retry { after: backoff(request.retries, random) }
    }
}

/// RFC 9110 §9.2.2, and nothing that is not in it: of an unknown method nobody knows.
fn is_idempotent(method: &Method) -> bool {
    [Method::GET, Method::HEAD, Method::PUT, Method::DELETE, Method::OPTIONS, Method::TRACE].contains(method)
}

/// Anything between nothing and the doubled wait: callers that failed together must not come back together.
fn backoff(retries: u32, random: u64) -> Duration {
    let most = FIRST_BACKOFF.saturating_mul(1 << retries.min(16)).min(LONGEST_BACKOFF);
    // The upper half of `random` as a fraction of 2³².
    let nanos = (u128::from(random >> 32) * most.as_nanos()) >> 32;
    Duration::from_nanos(nanos as u64)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GET: Request<'_> =
        Request { method: &Method::GET, body_taken: false, answer_begun: false, retries: 0 };
    const POST: Request<'_> = Request { method: &Method::POST, ..GET };
    const STATUS_503: Failure = Failure::Answer(StatusCode::SERVICE_UNAVAILABLE);

    fn verdict(request: Request<'_>, failure: Failure) -> Result<(), Reason> {
        match decide(request, failure, 2, 0) {
            Decision::Retry { .. } => Ok(()),
            Decision::GiveUp(reason) => Err(reason),
        }
    }

    #[test]
    fn only_where_nothing_happens_twice() {
        for (request, failure, expected) in [
            (GET, Failure::NotProcessed, Ok(())),
            (POST, Failure::NotProcessed, Ok(())),
            (GET, Failure::NoAnswer, Ok(())),
            (POST, Failure::NoAnswer, Err(Reason::NotIdempotent)),
            (GET, STATUS_503, Ok(())),
            (POST, STATUS_503, Err(Reason::NotIdempotent)),
            (Request { method: &Method::PATCH, ..GET }, Failure::NoAnswer, Err(Reason::NotIdempotent)),
            (Request { method: &Method::CONNECT, ..GET }, Failure::NoAnswer, Err(Reason::NotIdempotent)),
            (Request { method: &Method::PUT, ..GET }, STATUS_503, Ok(())),
            (Request { method: &Method::PUT, body_taken: true, ..GET }, STATUS_503, Err(Reason::BodyTaken)),
            (Request { body_taken: true, ..POST }, Failure::NotProcessed, Err(Reason::BodyTaken)),
            (Request { answer_begun: true, ..GET }, Failure::NoAnswer, Err(Reason::AnswerBegun)),
            (Request { answer_begun: true, ..GET }, Failure::NotProcessed, Err(Reason::AnswerBegun)),
            (Request { retries: 1, ..GET }, STATUS_503, Ok(())),
            (Request { retries: 2, ..GET }, STATUS_503, Err(Reason::Attempts)),
            (Request { retries: 2, ..POST }, Failure::NotProcessed, Err(Reason::Attempts)),
        ] {
            assert_eq!(verdict(request, failure), expected, "{request:?} {failure:?}");
        }
        let custom = Method::from_bytes(b"get").unwrap();
        assert_eq!(
            verdict(Request { method: &custom, ..GET }, Failure::NoAnswer),
            Err(Reason::NotIdempotent)
        );
        assert_eq!(decide(GET, Failure::NotProcessed, 0, 0), Decision::GiveUp(Reason::Attempts), "0 is off");
    }

    #[test]
    fn answers_that_another_try_could_mend() {
        let statuses = (100..600).filter_map(|s| StatusCode::from_u16(s).ok());
        let again: Vec<u16> =
            statuses.filter(|s| verdict(GET, Failure::Answer(*s)).is_ok()).map(|s| s.as_u16()).collect();
        assert_eq!(again, [502, 503, 504]);
    }

    #[test]
    fn the_first_goes_at_once_where_nothing_was_processed() {
        assert_eq!(
            decide(GET, Failure::NotProcessed, 9, u64::MAX),
            Decision::Retry { after: Duration::ZERO }
        );
        let waits: Vec<u64> = (0..6)
            .map(|retries| match decide(Request { retries, ..GET }, STATUS_503, 9, u64::MAX) {
                Decision::Retry { after } => after.as_micros().div_ceil(1000) as u64,
                Decision::GiveUp(reason) => panic!("{reason:?}"),
            })
            .collect();
        assert_eq!(waits, [25, 50, 100, 200, 250, 250]);
    }

    proptest! {
        #[test]
        fn waits_are_spread_and_bounded(retries: u32, random: u64) {
            let wait = backoff(retries, random);
            prop_assert!(wait < LONGEST_BACKOFF);
            prop_assert!(backoff(retries, random | 1 << 63) >= wait);
        }

        #[test]
        fn nothing_that_could_be_noticed_is_sent_again(status in 100u16..600, retries in 0u32..5, body: bool, begun: bool, random: u64) {
            let failures = [Failure::NoAnswer, Failure::Answer(StatusCode::from_u16(status).unwrap())];
            for failure in failures {
                let request = Request { method: &Method::POST, body_taken: body, answer_begun: begun, retries };
                prop_assert!(matches!(decide(request, failure, 5, random), Decision::GiveUp(_)));
            }
        }
    }
}
