//! The private key shows nowhere: not in the log at its most talkative, not in metrics, not on standard output.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::support::client::{Client, config, read_to_end};
use crate::support::mesh::Mesh;
use crate::support::scene::Scene;

#[test]
fn the_private_key_shows_nowhere() {
    let scene = Scene::with(|options| options.yaml("log: { level: trace }"));
    let stranger = Mesh::new();
    scene.refuses_client("bad_signature", |to| {
        let mut client = Client::connect(to, config(Some(&stranger.honest()))).unwrap();
        read_to_end(&mut client.stream());
        client.source()
    });
    let log = scene.proxy.log();
    assert!(log.iter().any(|line| line.contains("identity in force")));
    let shown = [log.concat(), scene.proxy.metrics().text, scene.proxy.ready.to_string()].concat();

    let encoded = scene.proxy.cache["key"].as_str().unwrap();
    let der = STANDARD.decode(encoded).unwrap();
    // The secret number itself: an OCTET STRING of 32 bytes within the PKCS#8.
    let at = der.windows(2).position(|w| w == [4, 32]).unwrap() + 2;
    let secret = &der[at..at + 32];
    let hex: String = secret.iter().map(|b| format!("{b:02x}")).collect();
    let numbers = format!("{:?}", &secret[..8]);
    let forms = [encoded, &encoded[60..100], &hex, &hex.to_uppercase(), numbers.trim_matches(['[', ']'])];
    for form in forms.into_iter().chain(["PRIVATE KEY", "BEGIN EC"]) {
        assert!(!shown.contains(form), "{form}");
    }
}
