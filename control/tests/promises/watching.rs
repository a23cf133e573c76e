//! Watch: whole sections of what changed, for this workload alone, under growing numbers; acknowledged and announced.

use postern_config::policy::MtlsMode;
use postern_config::wire::v1::{self, watch_request::Message};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use crate::harness::{Connection, Control, LONG, Svid, TD, enrolled};

pub(crate) struct Watch {
    say: mpsc::Sender<v1::WatchRequest>,
    hear: Streaming<v1::WatchResponse>,
    _connection: Connection,
}

impl Watch {
    pub(crate) async fn open(
        control: &Control,
        join: &postern_config::enroll::JoinString,
        svid: &Svid,
    ) -> Result<Self, Status> {
        let mut connection = Connection::to(control, join, Some(svid)).await;
        let (say, said) = mpsc::channel(8);
        let hello = v1::Hello { instance: "one".into(), version: "0".into(), generation: 0 };
        say.send(request(Message::Hello(hello))).await.unwrap();
        let hear = connection.client.watch(ReceiverStream::new(said)).await?.into_inner();
        Ok(Self { say, hear, _connection: connection })
    }

    /// The next push; beats are passed over.
    pub(crate) async fn next(&mut self) -> Result<v1::WatchResponse, Status> {
        loop {
            let message = tokio::time::timeout(LONG, self.hear.message()).await.expect("a push in time")?;
            let message = message.ok_or_else(|| Status::cancelled("ended"))?;
            let sections = (&message.bundles, &message.policies, &message.revocations, &message.services);
            if sections != (&None, &None, &None, &None) {
                return Ok(message);
            }
        }
    }

    async fn say(&self, message: Message) {
        self.say.send(request(message)).await.unwrap();
    }

    pub(crate) async fn acknowledge(&self, generation: u64) {
        self.say(Message::Ack(v1::Ack { generation, error: String::new() })).await;
    }

    async fn announce(&self, service: &str, address: &str) {
        let one = v1::Announcement { service: service.into(), address: address.into() };
        self.say(Message::Announce(v1::Announce { endpoints: vec![one] })).await;
    }
}

fn request(message: Message) -> v1::WatchRequest {
    v1::WatchRequest { message: Some(message) }
}

fn policy(control: &Control, namespace: &str) {
    let text = format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{ name: p, namespace: {namespace} }}\n"
    );
    let file = control.data().join("p.yaml");
    std::fs::write(&file, text).unwrap();
    control.json(&["policy", "apply", "-f", file.to_str().unwrap()]);
}

fn service(control: &Control, name: &str, path: &str) {
    control.json(&["service", "apply", "--name", name, "--identity", &format!("spiffe://{TD}{path}")]);
}

/// Asks until it holds; the deadline is a failure, not a pause that the test relies on.
pub(crate) async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let polled = async {
        while !holds() {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(LONG, polled).await.unwrap_or_else(|_| panic!("{what} never came"));
}

#[tokio::test]
async fn the_first_push_is_whole_and_later_ones_hold_what_changed() {
    let control = Control::start();
    let (join, svid) = enrolled(&control, "/ns/shop/sa/a", &[]).await;
    let mut watch = Watch::open(&control, &join, &svid).await.unwrap();
    let first = watch.next().await.unwrap();
    assert!(first.policies.is_some() && first.revocations.is_some() && first.services.is_some());
    assert_eq!(first.bundles.unwrap().bundles[0].trust_domain, TD);

    policy(&control, "shop");
    let second = watch.next().await.unwrap();
    assert!(second.generation > first.generation);
    assert_eq!(second.policies.unwrap().documents.len(), 1);
    assert_eq!((second.bundles, second.revocations, second.services), (None, None, None));

    // A policy of another namespace is none of this workload's business; its number is.
    policy(&control, "elsewhere");
    service(&control, "s", "/b");
    let third = watch.next().await.unwrap();
    assert_eq!(third.policies, None);
    assert_eq!(third.services.unwrap().services[0].name, "s");
}

#[tokio::test]
async fn peer_authentications_go_to_the_workloads_that_they_mean() {
    let control = Control::start();
    let (join, svid) = enrolled(&control, "/ns/shop/sa/a", &["--label", "app=pay"]).await;
    let mut watch = Watch::open(&control, &join, &svid).await.unwrap();
    watch.next().await.unwrap();
    let peer = |name: &str, namespace: &str, spec: &str| {
        format!(
            "---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{ name: {name}, namespace: {namespace} }}\nspec: {spec}\n"
        )
    };
    let text = [
        peer("mesh", "istio-system", "{ mtls: { mode: PERMISSIVE } }"),
        peer(
            "mine",
            "shop",
            "{ selector: { matchLabels: { app: pay } }, portLevelMtls: { 80: { mode: DISABLE } } }",
        ),
        peer("other", "shop", "{ selector: { matchLabels: { app: web } } }"),
        peer("elsewhere", "web", "{}"),
    ];
    let file = control.data().join("p.yaml");
    std::fs::write(&file, text.concat()).unwrap();
    control.json(&["policy", "apply", "-f", file.to_str().unwrap()]);
    let pushed = watch.next().await.unwrap().policies.unwrap();
    assert_eq!((pushed.documents.len(), pushed.peer_authentications.len()), (0, 2));
    let (_, modes) = postern_config::wire::policies(&pushed).unwrap();
    assert_eq!(modes.of(80), Some(MtlsMode::Disable));
    assert_eq!(modes.of(81), Some(MtlsMode::Permissive));
}

#[tokio::test]
async fn acknowledgements_are_recorded_and_outlive_the_stream() {
    let control = Control::start();
    let (join, svid) = enrolled(&control, "/a", &[]).await;
    let mut watch = Watch::open(&control, &join, &svid).await.unwrap();
    let generation = watch.next().await.unwrap().generation;
    watch.say(Message::Ack(v1::Ack { generation, error: "broken".into() })).await;
    until("the complaint", || control.json(&["status"])["proxies"]["behind"][0]["error"] == "broken").await;
    watch.say(Message::Ack(v1::Ack { generation, error: String::new() })).await;
    until("the acknowledgement", || control.json(&["status"])["proxies"]["current"] == 1).await;
    drop(watch);
    until("the end", || control.json(&["status"])["proxies"]["connected"] == 0).await;
    until("the record", || control.json(&["identities"])[0]["generation"] == generation).await;
}

#[tokio::test]
async fn a_proxy_announces_for_its_own_identity_alone() {
    let control = Control::start();
    service(&control, "own", "/a");
    service(&control, "other", "/b");
    let (join, svid) = enrolled(&control, "/a", &[]).await;
    let mut watch = Watch::open(&control, &join, &svid).await.unwrap();
    watch.next().await.unwrap();
    watch.announce("own", "127.0.0.1:15006").await;
    let services = watch.next().await.unwrap().services.unwrap().services;
    let endpoints = |name: &str| services.iter().find(|s| s.name == name).unwrap().endpoints.clone();
    assert_eq!(endpoints("own"), ["127.0.0.1:15006"]);
    assert!(endpoints("other").is_empty());

    watch.announce("other", "127.0.0.1:6666").await;
    let services = watch.next().await.unwrap().services.unwrap().services;
    assert!(services.iter().all(|s| s.endpoints.is_empty()), "an announcement replaces the one before it");
    assert_eq!(control.refusals("announce"), ["wrong_identity"]);
}

#[tokio::test]
async fn a_service_that_comes_after_its_announcement_finds_it() {
    let control = Control::start();
    let (join, svid) = enrolled(&control, "/a", &[]).await;
    let mut watch = Watch::open(&control, &join, &svid).await.unwrap();
    watch.next().await.unwrap();
    watch.announce("late", "127.0.0.1:15006").await;
    until("the refusal", || control.refusals("announce") == ["unknown_service"]).await;
    service(&control, "late", "/a");
    let endpoints = || control.json(&["service", "list"])[0]["endpoints"].clone();
    until("the endpoint", || endpoints() == serde_json::json!(["127.0.0.1:15006"])).await;
}

#[tokio::test]
async fn an_endpoint_outlives_its_stream_and_a_crash_for_a_while() {
    let control = Control::start();
    service(&control, "s", "/a");
    let (join, svid) = enrolled(&control, "/a", &[]).await;
    let mut watch = Watch::open(&control, &join, &svid).await.unwrap();
    watch.next().await.unwrap();
    watch.announce("s", "127.0.0.1:15006").await;
    watch.next().await.unwrap();
    drop(watch);
    until("the end", || control.json(&["status"])["proxies"]["connected"] == 0).await;
    let control = control.restart();
    assert_eq!(control.json(&["service", "list"])[0]["endpoints"], serde_json::json!(["127.0.0.1:15006"]));
}

#[tokio::test]
async fn the_newest_stream_of_an_enrollment_wins() {
    let control = Control::start();
    let (join, svid) = enrolled(&control, "/a", &[]).await;
    let mut older = Watch::open(&control, &join, &svid).await.unwrap();
    older.next().await.unwrap();
    let mut newer = Watch::open(&control, &join, &svid).await.unwrap();
    newer.next().await.unwrap();
    assert_eq!(older.next().await.unwrap_err().code(), Code::Aborted);
    assert_eq!(control.json(&["status"])["proxies"]["connected"], 1);
}

#[tokio::test]
async fn a_stream_ends_with_its_certificate() {
    let control = Control::start();
    let (join, svid) = enrolled(&control, "/a", &["--svid-ttl", "2s"]).await;
    let mut watch = Watch::open(&control, &join, &svid).await.unwrap();
    watch.next().await.unwrap();
    assert!(watch.next().await.is_err(), "it ends; no push ever comes");
}

#[tokio::test]
async fn a_proxy_that_does_not_read_holds_up_nobody_and_finds_the_newest_state() {
    let control = Control::start();
    let many: String = (0..500)
        .map(|n| format!("---\nname: service-{n:04}\nidentity: spiffe://{TD}/ns/some-namespace/sa/{n}\n"))
        .collect();
    let file = control.data().join("s.yaml");
    std::fs::write(&file, many).unwrap();
    control.json(&["service", "apply", "-f", file.to_str().unwrap()]);
    let (join, deaf) = enrolled(&control, "/deaf", &[]).await;
    let (_, svid) = enrolled(&control, "/a", &[]).await;
    let mut deaf = Watch::open(&control, &join, &deaf).await.unwrap();
    let mut watch = Watch::open(&control, &join, &svid).await.unwrap();
    watch.next().await.unwrap();
    for n in 0..10 {
        service(&control, &format!("s{n}"), "/b");
        let services = watch.next().await.unwrap().services.unwrap().services;
        assert_eq!(services.len(), 500 + n + 1);
    }
    let mut pushes = 0;
    loop {
        pushes += 1;
        if deaf.next().await.unwrap().services.unwrap().services.len() == 510 {
            break;
        }
    }
    assert!(pushes < 11, "what it missed was not kept for it: {pushes}");
}
