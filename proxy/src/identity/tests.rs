//! The identity thread against control planes that are away or silent.

use postern_config::enroll::{JoinString, Pin};
use tokio::net::TcpListener;
use tonic::Status;
use zeroize::Zeroizing;

use super::*;

fn driver(address: String, join: Option<JoinSource>) -> Driver {
    let trust_domain: TrustDomain = "identity.example".parse().unwrap();
    let config = Arc::new(ProxyConfig::default());
    let snapshots = Arc::new(Snapshots::default());
    let tls = Tls::new(Arc::clone(&snapshots), 1024, crate::tls::ChainCounters::default()).unwrap();
    Driver {
        control: tls.control_connector(trust_domain.control_plane()).unwrap(),
        tls,
        metrics: Arc::new(Metrics::new(&snapshots, &config)),
        config,
        snapshots,
        readiness: Arc::default(),
        endpoints: Vec::new(),
        join,
        cache: None,
        address,
        held: Held::new(trust_domain.clone()),
        trust_domain,
        issued: key::Request::new().unwrap().issued(v1::Svid::default()),
        schedule: Schedule::new(0, 0, None, 0.0),
        steps: Steps::default(),
        failures: 0,
        spent_token: None,
        redeeming: None,
        pen: Pen::default(),
        writing: None,
        unsaved: false,
        accounts: Accounts::begin(),
        reports: None,
    }
}

#[tokio::test]
async fn a_new_token_is_not_spent_on_a_control_plane_that_is_away() {
    // Nobody listens on a port that was just given back.
    let away = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().to_string();
    let join = JoinString {
        token_id: "01JD9W3V8Q4T7ZK2M5XB6R0N1C".into(),
        secret: Zeroizing::new([7; 32]),
        pins: vec![Pin([1; 32])],
        trust_domain: "identity.example".parse().unwrap(),
        address: away.clone(),
    };
    let file = std::env::temp_dir().join(format!("postern-join-{}", ulid::Ulid::new()));
    std::fs::write(&file, join.reveal().as_bytes()).unwrap();
    let mut driver = driver(away, Some(JoinSource::File(file.clone())));
    driver.enroll_again().await;
    std::fs::remove_file(file).unwrap();
    assert_eq!(driver.spent_token, None, "it must be tried again once the control plane is back");
}

#[tokio::test]
async fn a_silent_control_plane_does_not_delay_the_stop() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let driver = driver(silent.local_addr().unwrap().to_string(), None);
    let stop = CancellationToken::new();
    let running = tokio::spawn(driver.run(stop.clone(), stop.clone()));
    let _connection = silent.accept().await.unwrap();
    stop.cancel();
    tokio::time::timeout(Duration::from_secs(2), running).await.expect("it waits for an answer").unwrap();
}

#[test]
fn a_refused_renewal_leaves_the_stream_of_pushes_open() {
    for status in [Status::permission_denied("banned"), Status::unavailable("the CA is sealed")] {
        assert!(ControlError::from(status).leaves_the_stream(), "an answer came, so pushes come too");
    }
    assert!(!ControlError::Silent.leaves_the_stream());
}

#[tokio::test]
async fn a_clock_that_jumps_ahead_makes_renewal_due_at_once() {
    let mut driver = driver("127.0.0.1:1".to_owned(), None);
    let now_ms = driver.snapshots.clock.now_ms();
    driver.schedule = Schedule::new(now_ms, now_ms + 30 * 86_400_000, None, 0.5);
    let now = driver.snapshots.clock.sample();
    driver.steps.observe(crate::clock::Sample { host_ms: now.host_ms - 86_400_000, ..now });
    assert!(driver.watch_clock(), "it asks for a try at once");
    assert_eq!(driver.schedule.wait(driver.snapshots.clock.now_ms()), Duration::ZERO);
}
