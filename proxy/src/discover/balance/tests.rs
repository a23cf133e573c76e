use super::*;

fn names(n: usize) -> Vec<Arc<str>> {
    (0..n).map(|i| Arc::from(format!("10.0.0.{i}:1"))).collect()
}

const NOW: Duration = Duration::from_secs(100);

#[test]
fn a_dead_endpoint_is_skipped_until_it_has_rested() {
    let endpoints = names(3);
    let mut balance = Balance::default();
    balance.failed(&endpoints[1], NOW);
    for random in 0..1000 {
        assert_ne!(balance.pick(&endpoints, &[], NOW, random), Some(&endpoints[1]));
    }
    let later = NOW + FIRST_REST;
    assert!((0..1000).any(|r| balance.pick(&endpoints, &[], later, r) == Some(&endpoints[1])));
}

#[test]
fn a_second_try_finds_out_nothing_about_the_dead() {
    let endpoints = names(20);
    let mut balance = Balance::default();
    endpoints[2..].iter().for_each(|e| balance.failed(e, NOW));
    let rested = NOW + FIRST_REST;
    for random in 0..1000_u64 {
        let random = random.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let second = balance.pick(&endpoints, &endpoints[..1], rested, random);
        assert_eq!(second, Some(&endpoints[1]), "of twenty, one is left that never failed");
    }
    let dead = balance.pick(&endpoints, &endpoints[..2], rested, 7);
    assert!(dead.is_some(), "and without it the others are tried all the same");
}

#[test]
fn where_all_rest_each_is_tried_once() {
    let endpoints = names(2);
    let mut balance = Balance::default();
    endpoints.iter().for_each(|e| balance.failed(e, NOW));
    let first = balance.pick(&endpoints, &[], NOW, 7).unwrap().clone();
    let second = balance.pick(&endpoints, std::slice::from_ref(&first), NOW, 7).unwrap().clone();
    assert_ne!(first, second);
    assert_eq!(balance.pick(&endpoints, &[first, second], NOW, 7), None);
}

#[test]
fn load_evens_out() {
    let endpoints = names(4);
    let mut balance = Balance::default();
    let mut random = 1u64;
    for _ in 0..400 {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let picked = balance.pick(&endpoints, &[], NOW, random).unwrap().clone();
        balance.opened(&picked);
    }
    for endpoint in &endpoints {
        let open = balance.endpoints[endpoint].open;
        assert!((90..=110).contains(&open), "{endpoint} got {open} of 400");
    }
}

#[test]
fn rest_grows_to_its_limit_and_a_success_ends_it() {
    let endpoints = names(1);
    let mut balance = Balance::default();
    for _ in 0..40 {
        balance.failed(&endpoints[0], NOW);
    }
    assert!(balance.rests(&endpoints[0], NOW + LONGEST_REST - Duration::from_millis(1)));
    assert!(!balance.rests(&endpoints[0], NOW + LONGEST_REST));
    balance.opened(&endpoints[0]);
    assert!(!balance.rests(&endpoints[0], NOW));
    balance.closed(&endpoints[0]);
    assert!(balance.endpoints.is_empty(), "what is as good as unknown is forgotten");
}

/// A service of `n` endpoints, and a balance that ejects after two errors.
fn service(n: usize, percent: u32) -> (Vec<Arc<str>>, Balance) {
    let outlier = http::Outlier { consecutive: 2, max_ejection_percent: percent, ..http::Outlier::default() };
    (names(n), Balance::new(outlier))
}

const MS: Duration = Duration::from_millis(1);

fn answer_all(balance: &mut Balance, endpoints: &[Arc<str>], answer: Answer, now: Duration) -> Vec<usize> {
    let mut ejected = Vec::new();
    for _ in 0..2 {
        for (i, endpoint) in endpoints.iter().enumerate() {
            balance.sent(endpoint);
            if balance.answered(endpoint, endpoints, answer, MS, now) {
                ejected.push(i);
            }
            balance.closed(endpoint);
        }
    }
    ejected
}

#[test]
fn a_failing_endpoint_is_ejected_and_comes_back() {
    let (endpoints, mut balance) = service(3, 50);
    assert!(answer_all(&mut balance, &endpoints, Answer::Good, NOW).is_empty());
    for _ in 0..2 {
        balance.answered(&endpoints[2], &endpoints, Answer::Bad, MS, NOW);
    }
    assert!((0..1000).all(|r| balance.pick(&endpoints, &[], NOW, r * 0x1_0000_0003) != Some(&endpoints[2])));
    let health = balance.endpoints(NOW).into_iter().find(|h| h.address == endpoints[2]).unwrap();
    assert!(health.ejected);
    assert_eq!((health.rests_for, health.errors, health.open), (Duration::from_secs(30), 0, 0));
    let later = NOW + Duration::from_secs(30);
    assert!(
        (0..1000).any(|r| balance.pick(&endpoints, &[], later, r * 0x1_0000_0003) == Some(&endpoints[2]))
    );
}

#[test]
fn an_upstream_that_fails_as_a_whole_is_not_ejected_as_a_whole() {
    for (count, percent, expected) in [
        (1, 100, 0),
        (2, 50, 1),
        (2, 100, 1),
        (3, 50, 1),
        (4, 50, 2),
        (4, 100, 3),
        (10, 50, 5),
        (10, 0, 0),
        (10, 5, 0),
    ] {
        let (endpoints, mut balance) = service(count, percent);
        let ejected = answer_all(&mut balance, &endpoints, Answer::Bad, NOW);
        assert_eq!(ejected.len(), expected, "{count} endpoints, {percent} %");
        assert!(balance.pick(&endpoints, &[], NOW, 7).is_some());
    }
}

#[test]
fn what_cannot_be_reached_does_not_count_as_left() {
    let (endpoints, mut balance) = service(3, 100);
    balance.failed(&endpoints[0], NOW);
    balance.failed(&endpoints[1], NOW);
    assert!(answer_all(&mut balance, &endpoints[2..], Answer::Bad, NOW).is_empty());
    for _ in 0..9 {
        assert!(!balance.answered(&endpoints[2], &endpoints, Answer::Bad, MS, NOW), "it is the only one");
    }
    balance.reached(&endpoints[0]);
    assert!(balance.answered(&endpoints[2], &endpoints, Answer::Bad, MS, NOW), "now there is another");
}

#[test]
fn opening_a_connection_does_not_end_an_ejection() {
    let (endpoints, mut balance) = service(2, 50);
    assert_eq!(answer_all(&mut balance, &endpoints, Answer::Bad, NOW), [0]);
    balance.opened(&endpoints[0]);
    assert!(balance.rests(&endpoints[0], NOW));
}

/// Serves requests one after the other, each for as long as `latency` says; how many went where.
fn spread(latency: impl Fn(usize) -> Duration, answer: impl Fn(usize) -> Answer) -> Vec<usize> {
    let endpoints = names(4);
    let mut balance = Balance::new(http::Outlier { consecutive: 0, ..http::Outlier::default() });
    let mut counts = vec![0; endpoints.len()];
    let mut under_way: Vec<(Duration, usize, Duration)> = Vec::new();
    let mut random = 1u64;
    for tick in 0..20_000u32 {
        let now = NOW + MS * tick;
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let ended: Vec<_> = under_way.extract_if(.., |(ends, ..)| *ends <= now).collect();
        for (_, i, took) in ended {
            balance.answered(&endpoints[i], &endpoints, answer(i), took, now);
            balance.closed(&endpoints[i]);
        }
        let picked = balance.pick(&endpoints, &[], now, random ^ random >> 29).unwrap().clone();
        let i = endpoints.iter().position(|e| *e == picked).unwrap();
        counts[i] += 1;
        balance.sent(&picked);
        under_way.push((now + latency(i), i, latency(i)));
    }
    counts
}

#[test]
fn equal_endpoints_get_equal_shares() {
    let counts = spread(|_| MS * 20, |_| Answer::Good);
    assert!(counts.iter().all(|n| (4500..=5500).contains(n)), "{counts:?}");
}

#[test]
fn a_slow_endpoint_gets_less() {
    let counts = spread(|i| if i == 0 { MS * 200 } else { MS * 20 }, |_| Answer::Good);
    assert!(counts[0] * 5 < counts[1], "{counts:?}");
    assert!(counts[0] > 0, "it is tried again now and then: {counts:?}");
}

#[test]
fn an_endpoint_that_fails_fast_does_not_draw_the_traffic() {
    let counts =
        spread(|i| if i == 0 { MS } else { MS * 50 }, |i| if i == 0 { Answer::Bad } else { Answer::Good });
    assert!(counts[0] * 3 < counts[1], "{counts:?}");
}

#[test]
fn news_is_kept_for_a_while_and_then_forgotten() {
    let (endpoints, mut balance) = service(2, 50);
    answer_all(&mut balance, &endpoints, Answer::Good, NOW);
    balance.forget(NOW + FORGET_AFTER - MS);
    assert_eq!(balance.endpoints(NOW).len(), 2);
    balance.sent(&endpoints[0]);
    balance.forget(NOW + FORGET_AFTER);
    assert_eq!(balance.endpoints(NOW).len(), 1, "what is in use is not forgotten");
}
