//! Two trust domains, each with a control plane of its own: their proxies talk where both sides federate and policy says so.

use std::time::Duration;

use postern_config::bundle::TrustBundle;
use postern_loadtest::app::App;
use postern_loadtest::http;
use postern_loadtest::mesh::{
    Binaries, ControlOptions, ControlPlane, Directory, Mesh, Postgres, Sidecar, allow_only, until,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use serde_json::Value;

const SOON: Duration = Duration::from_secs(15);

fn mesh(trust_domain: &str) -> Mesh {
    let config = "public: { listen: '127.0.0.1:0' }\n".to_owned();
    Mesh::start_with(ControlOptions {
        trust_domain: trust_domain.to_owned(),
        config,
        ..ControlOptions::default()
    })
    .unwrap()
}

/// Lets `members` of `here` believe who is of `there`, from nothing but what an operator carries over by hand.
fn federate(here: &Mesh, there: &ControlPlane, members: &[&str]) -> Value {
    let domain = there.trust_domain();
    let root = CertificateDer::from_pem_file(there.data().join("ca/root.pem")).unwrap();
    let bundle = TrustBundle::new(domain.parse().unwrap(), 0, [root]).unwrap();
    let file = here.dir().join(format!("{domain}.json"));
    std::fs::write(&file, bundle.to_document()).unwrap();
    let url = format!("https://{}/bundle", there.public_address().unwrap());
    let (endpoint, ids) = (format!("spiffe://{domain}/postern/control"), members.iter().map(|m| here.id(m)));
    let mut command: Vec<String> = ["federation", "add", domain, "--url", &url, "--profile", "https_spiffe"]
        .into_iter()
        .chain(["--endpoint-id", &endpoint, "--bundle", file.to_str().unwrap()])
        .map(str::to_owned)
        .collect();
    ids.for_each(|id| command.extend(["--for".to_owned(), id]));
    let command: Vec<&str> = command.iter().map(String::as_str).collect();
    let added = here.control.json(&command).unwrap();
    assert_eq!(added["error"], "", "{added}");
    assert!(
        added["federation"]["sequence"].as_u64().unwrap() > 0,
        "fetched, and not only what was carried: {added}"
    );
    added["federation"].clone()
}

/// A request that is refused, one way or another.
fn refused(client: &Sidecar) {
    if let Ok(answer) = http::get(client.outbound(), "/", SOON) {
        assert!(answer.status >= 400, "{}", answer.status);
    }
}

#[test]
fn two_trust_domains_talk_where_both_want_it() {
    let (ours, theirs) = (mesh("a.example"), mesh("b.example"));
    let (app, aside) = (App::http("hello").unwrap(), App::http("aside").unwrap());
    let shop = theirs.server("shop", app.address()).unwrap();
    let closed = theirs.server("closed", aside.address()).unwrap();
    for (name, sidecar) in [("shop", &shop), ("closed", &closed)] {
        ours.control.apply_service(name, &theirs.id(name), &[sidecar.inbound()]).unwrap();
    }
    federate(&ours, &theirs.control, &["web", "other"]);
    federate(&theirs, &ours.control, &["shop"]);
    let principals = [ours.id("web").trim_start_matches("spiffe://").to_owned()];
    let generation = theirs.control.apply_policy(&allow_only("abroad", &principals)).unwrap();
    for sidecar in [&shop, &closed] {
        sidecar.wait_for_generation(generation, SOON).unwrap();
    }

    // Named on both sides and by the policy.
    let web = ours.client("web", "shop").unwrap();
    assert_eq!(http::get(web.outbound(), "/", SOON).unwrap().text(), "hello");
    let seen =
        shop.wait_for_log(SOON, |l| l["direction"] == "inbound" && l["outcome"] == "completed").unwrap();
    assert_eq!(seen["peer"], ours.id("web"));

    // The same bundles, but no policy that names it; then no bundle at all on the calling side.
    let other = ours.client("other", "shop").unwrap();
    refused(&other);
    let denied = shop.wait_for_log(SOON, |l| l["outcome"] == "denied").unwrap();
    assert_eq!(denied["peer"], ours.id("other"));
    let stranger = ours.client("stranger", "shop").unwrap();
    refused(&stranger);
    assert_eq!(app.accepted(), 1, "nobody else reached the app");

    // No bundle on the called side: the policy names the caller, and it is still nobody.
    let options = ours.options("web").unwrap();
    let mut options = options.outbound("closed");
    options.name = "web-two".into();
    let second = ours.sidecar(options).unwrap();
    refused(&second);
    let failed = closed.wait_for_log(SOON, |l| l["reason"] == "wrong_trust_domain").unwrap();
    assert_eq!(failed["direction"], "inbound", "{failed}");
    assert_eq!(aside.accepted(), 0);

    // Taken back, it is as if it had never been.
    theirs.control.json(&["federation", "remove", "a.example"]).unwrap();
    until(SOON, || http::get(web.outbound(), "/", SOON).is_err().then_some(())).unwrap();
}

/// Keys for JWT-SVIDs are each replica's own; what they publish is one bundle under one sequence.
#[test]
fn every_replica_publishes_the_keys_of_all() {
    let (binaries, dir, postgres) =
        (Binaries::build().unwrap(), Directory::new().unwrap(), Postgres::start().unwrap());
    let config = format!("store: {{ url: {:?} }}\npublic: {{ listen: '127.0.0.1:0' }}\n", postgres.url());
    let mut replicas: Vec<ControlPlane> = Vec::new();
    for number in 0..2 {
        let place = dir.path().join(format!("r{number}"));
        std::fs::create_dir(&place).unwrap();
        let options = ControlOptions { config: config.clone(), ..ControlOptions::default() };
        let approve = |key: &str| replicas[0].json(&["ca", "approve", key]).map(drop);
        replicas.push(ControlPlane::start_replica(&binaries, &place, options, approve).unwrap());
    }
    let abroad = mesh("b.example");
    federate(&abroad, &replicas[0], &["web"]);
    // Whichever of them is asked, and whether or not it has heard of the other's key yet when it is asked first.
    for replica in [&replicas[1], &replicas[0]] {
        let url = format!("https://{}/bundle", replica.public_address().unwrap());
        let domain = replica.trust_domain();
        let endpoint = format!("spiffe://{domain}/postern/control");
        let add = [
            "federation",
            "add",
            domain,
            "--url",
            &url,
            "--profile",
            "https_spiffe",
            "--endpoint-id",
            &endpoint,
        ];
        let web = abroad.id("web");
        let added = abroad.control.json(&[&add[..], &["--for", &web]].concat()).unwrap();
        assert_eq!(added["error"], "", "{added}");
        let seen = until(SOON, || {
            let refreshed = abroad.control.json(&["federation", "refresh", domain]).unwrap();
            (refreshed["federation"]["jwt_keys"] == 2).then_some(refreshed)
        });
        assert!(seen.is_some(), "{added}");
    }
    let sequences = abroad.control.json(&["federation", "list"]).unwrap();
    assert!(sequences[0]["sequence"].as_u64().unwrap() >= 2, "{sequences}");
}
