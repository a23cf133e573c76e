//! Renewal: idempotent by key, two-phase, and a superseded certificate is a thief's until proven otherwise.

use std::time::Duration;

use postern_config::wire::v1;
use prost::Message as _;
use tonic::Code;

use crate::harness::{Connection, Control, Keys, Svid, enrolled};

async fn renew(connection: &mut Connection, keys: &Keys) -> Result<v1::RenewResponse, tonic::Status> {
    let request = v1::RenewRequest { csr: keys.csr.clone(), ttl_ms: 0 };
    connection.client.renew(request).await.map(tonic::Response::into_inner)
}

#[tokio::test]
async fn a_repeated_renewal_gets_the_same_certificate() {
    let control = Control::start();
    let (join, svid) = enrolled(&control, "/a", &[]).await;
    let mut connection = Connection::to(&control, &join, Some(&svid)).await;
    let keys = Keys::new();
    let first = renew(&mut connection, &keys).await.unwrap();
    let again = renew(&mut connection, &keys).await.unwrap();
    // The window may differ, the certificate may not.
    let [first, again] = [first, again].map(|answer| answer.svid.unwrap().chain);
    assert_eq!(first, again);
    assert_ne!(first[0], svid.chain[0].to_vec());
    assert_eq!(control.issued("renew"), 1);
}

#[tokio::test]
async fn the_old_certificate_is_good_until_the_new_one_is_used() {
    let control = Control::start();
    let (join, first) = enrolled(&control, "/a", &[]).await;
    let mut by_first = Connection::to(&control, &join, Some(&first)).await;
    let lost = renew(&mut by_first, &Keys::new()).await.unwrap();
    // The answer got lost with the process; a new key is tried, and the lost certificate counts for nothing.
    let keys = Keys::new();
    let second = Svid::new(renew(&mut by_first, &keys).await.unwrap().svid, &keys.key);
    assert_ne!(lost.svid.unwrap().chain[0], second.chain[0].to_vec());

    let mut by_second = Connection::to(&control, &join, Some(&second)).await;
    renew(&mut by_second, &Keys::new()).await.unwrap();
    let refused = renew(&mut by_first, &Keys::new()).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert!(refused.message().contains("superseded"));
    let late =
        renew(&mut by_first, &keys).await.expect("a delayed retry for the very key in use is no theft");
    assert_eq!(late.svid.unwrap().chain[0], second.chain[0].to_vec());
    assert_eq!(control.refusals("renew"), ["superseded"]);
}

#[tokio::test]
async fn a_certificate_does_not_renew_its_own_key() {
    let control = Control::start();
    let join = control.token("/a", &[]);
    let keys = Keys::new();
    let response = Connection::to(&control, &join, None).await.enroll(&join, &keys).await.unwrap();
    let svid = Svid::new(response.svid, &keys.key);
    let refused = renew(&mut Connection::to(&control, &join, Some(&svid)).await, &keys).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert_eq!(control.refusals("renew"), ["same_key"]);
}

#[tokio::test]
async fn two_enrollments_of_one_identity_do_not_shut_each_other_out() {
    let control = Control::start();
    let (join, one) = enrolled(&control, "/a", &[]).await;
    let (_, other) = enrolled(&control, "/a", &[]).await;
    for svid in [&one, &other, &one, &other] {
        renew(&mut Connection::to(&control, &join, Some(svid)).await, &Keys::new()).await.unwrap();
    }
}

#[tokio::test]
async fn a_renewal_outlives_the_issuing_ca_and_a_restart() {
    let control = Control::start();
    let (join, svid) = enrolled(&control, "/a", &[]).await;
    let before = control.json(&["status"])["issuing"]["key_id"].clone();
    let after = control.json(&["ca", "rotate"])["key_id"].clone();
    assert_ne!(before, after);
    let keys = Keys::new();
    let renewed = renew(&mut Connection::to(&control, &join, Some(&svid)).await, &keys).await.unwrap();
    let renewed = Svid::new(renewed.svid, &keys.key);
    assert_ne!(renewed.chain[1], svid.chain[1], "signed by the new CA");
    let control = control.restart();
    assert_eq!(control.json(&["status"])["issuing"]["key_id"], after);
    renew(&mut Connection::to(&control, &join, Some(&renewed)).await, &Keys::new()).await.unwrap();
}

#[tokio::test]
async fn whoever_finds_a_long_line_is_told_when_to_come_and_operators_see_the_line() {
    let control = Control::start();
    let (join, svid) = enrolled(&control, "/a", &[]).await;
    let connection = Connection::to(&control, &join, Some(&svid)).await;
    let mut told = None;
    for _round in 0..20 {
        let calls = (0..60).map(|_| {
            let mut client = connection.client.clone();
            let mut request =
                tonic::Request::new(v1::RenewRequest { csr: Keys::new().csr, ..v1::RenewRequest::default() });
            // All of it goes into the answer: nothing is left for waiting in line.
            request.set_timeout(Duration::from_secs(1));
            tokio::spawn(async move { client.renew(request).await })
        });
        for call in calls.collect::<Vec<_>>() {
            if let Err(status) = call.await.unwrap() {
                assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
                told = told.or_else(|| {
                    v1::ComeAgain::decode(status.details()).ok().filter(|t| t.retry_after_ms > 0)
                });
            }
        }
        if told.is_some() {
            break;
        }
    }
    let told = told.expect("sixty at once do not find thirty-two places");
    assert!((200..=30_000).contains(&told.retry_after_ms), "{told:?}");
    let (_, metrics) = control.probe("/metrics").await;
    let value = |name: &str| {
        let line =
            metrics.lines().find(|l| l.starts_with(name)).unwrap_or_else(|| panic!("{name}: {metrics}"));
        line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()
    };
    assert!(value(r#"postern_control_line_refused_total{line="issuing",reason="slow"}"#) >= 1.0);
    assert!(value(r#"postern_control_line_served_total{line="issuing"}"#) >= 2.0);
    assert_eq!(value(r#"postern_control_line_waiting{line="issuing"}"#), 0.0);
    assert_eq!(value(r#"postern_control_line_in_flight{line="issuing"}"#), 0.0);
    assert!(value(r#"postern_control_line_wait_seconds_count{line="issuing"}"#) >= 2.0);
}
