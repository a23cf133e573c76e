//! `PeerAuthentication`: which document goes before which, and what an unset mode means (spec: authorization §4, §6).

use std::collections::BTreeMap;

use super::PAY;
use crate::policy::{Document, MtlsMode, MtlsModes, PeerAuthentication, read_stream};

const ROOT: &str = "istio-system";

fn text(namespace: &str, spec: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{ name: p, namespace: {namespace} }}\nspec: {spec}\n"
    )
}

fn peer(namespace: &str, spec: &str) -> PeerAuthentication {
    match read_stream(&text(namespace, spec)).unwrap().remove(0) {
        Document::Peer(peer) => peer,
        Document::Policy(_) => unreachable!(),
    }
}

fn modes(documents: &[(&str, &str)]) -> MtlsModes {
    let documents: Vec<_> = documents.iter().map(|(namespace, spec)| peer(namespace, spec)).collect();
    MtlsModes::effective(&documents, ROOT)
}

const MESH: (&str, &str) = (ROOT, "{ mtls: { mode: PERMISSIVE } }");
const NAMESPACE: (&str, &str) = ("shop", "{ mtls: { mode: DISABLE } }");
const WORKLOAD: (&str, &str) = (
    "shop",
    "{ selector: { matchLabels: { app: pay } }, mtls: { mode: STRICT }, portLevelMtls: { 8080: { mode: PERMISSIVE }, \"9090\": { mode: UNSET } } }",
);

#[test]
fn a_port_goes_before_its_workload_before_its_namespace_before_the_mesh() {
    assert_eq!(modes(&[]).of(8080), None, "nothing is said, and who asks takes STRICT");
    assert_eq!(MtlsMode::default(), MtlsMode::Strict);
    assert_eq!(modes(&[MESH]).of(8080), Some(MtlsMode::Permissive));
    for both in [[MESH, NAMESPACE], [NAMESPACE, MESH]] {
        assert_eq!(modes(&both).of(8080), Some(MtlsMode::Disable));
    }
    for all in [[MESH, NAMESPACE, WORKLOAD], [WORKLOAD, NAMESPACE, MESH]] {
        let modes = modes(&all);
        assert_eq!(modes.of(8080), Some(MtlsMode::Permissive));
        assert_eq!(modes.of(9090), Some(MtlsMode::Strict), "an unset port inherits from the workload");
        assert_eq!(modes.of(1), Some(MtlsMode::Strict));
    }
}

#[test]
fn what_is_unset_is_inherited() {
    for unset in ["{}", "{ mtls: {} }", "{ mtls: { mode: UNSET } }"] {
        assert_eq!(modes(&[("shop", unset), MESH]).of(1), Some(MtlsMode::Permissive), "{unset}");
        assert_eq!(modes(&[("shop", unset)]).of(1), None, "{unset}");
    }
    // An empty selector is none.
    assert_eq!(
        modes(&[("shop", "{ selector: {}, mtls: { mode: DISABLE } }"), WORKLOAD]).of(1),
        Some(MtlsMode::Strict)
    );
}

#[test]
fn of_two_documents_of_one_scope_the_stricter_holds() {
    let two = [("shop", "{ mtls: { mode: STRICT } }"), ("shop", "{ mtls: { mode: PERMISSIVE } }")];
    assert_eq!(modes(&two).of(1), Some(MtlsMode::Strict));
    let port = |mode| {
        format!("{{ selector: {{ matchLabels: {{ a: b }} }}, portLevelMtls: {{ 80: {{ mode: {mode} }} }} }}")
    };
    let (open, closed) = (port("DISABLE"), port("PERMISSIVE"));
    assert_eq!(modes(&[("shop", &closed), ("shop", &open)]).of(80), Some(MtlsMode::Permissive));
}

#[test]
fn a_selector_in_the_root_namespace_selects_nothing() {
    let void = peer(ROOT, "{ selector: { matchLabels: { app: pay } }, mtls: { mode: DISABLE } }");
    assert!(void.is_void(ROOT));
    let labels: BTreeMap<String, String> = [("app".to_owned(), "pay".to_owned())].into();
    assert!(!void.applies_to(&PAY.parse().unwrap(), &labels, ROOT));
    assert_eq!(MtlsModes::effective(&[void], ROOT).of(1), None);
    assert!(!peer(ROOT, "{ selector: {} }").is_void(ROOT));
}

#[test]
fn scope_is_the_same_as_a_policys() {
    let labels: BTreeMap<String, String> = [("app".to_owned(), "pay".to_owned())].into();
    let applies =
        |(namespace, spec), labels: &_| peer(namespace, spec).applies_to(&PAY.parse().unwrap(), labels, ROOT);
    assert!(applies(MESH, &BTreeMap::new()));
    assert!(applies(NAMESPACE, &BTreeMap::new()));
    assert!(!applies(("web", "{}"), &labels));
    assert!(applies(WORKLOAD, &labels));
    assert!(!applies(WORKLOAD, &BTreeMap::new()));
}

#[test]
fn documents_of_both_kinds_stand_in_one_stream() {
    let policy = super::document("p", " {}");
    let read =
        read_stream(&format!("# first\n---\n{policy}---\n{}--- # third\n---\n", text("shop", "{}"))).unwrap();
    assert!(matches!(read.as_slice(), [Document::Policy(_), Document::Peer(_)]));
    for document in read {
        assert_eq!(Document::from_json(&document.to_json()).unwrap(), document);
    }
    // The same name under the other kind is another document; under the same kind it is a mistake.
    let twice = read_stream(&format!("{}---\n{}", text("shop", "{}"), text("shop", "{}"))).unwrap_err();
    assert_eq!(twice.to_string(), "PeerAuthentication shop/p stands twice in the input");
}

#[test]
fn a_mistake_is_named_with_its_place() {
    for (spec, expected) in [
        (
            "{ mtls: { mode: strict } }",
            "4:23  error: unknown value `strict`; known here: `UNSET`, `DISABLE`, `PERMISSIVE`, `STRICT`",
        ),
        ("{ mtls: { mdoe: STRICT } }", "4:17  error: unknown field `mdoe`; did you mean `mode`?"),
        ("{ tls: {} }", "4:9  error: unknown field `tls`; did you mean `mtls`?"),
        (
            "{ portLevelMtls: { 80: {} } }",
            "4:7  error: portLevelMtls needs a selector with matchLabels: ports are a workload's",
        ),
        (
            "{ selector: { matchLabels: { a: b } }, portLevelMtls: { http: {} } }",
            "4:63  error: \"http\" is not a port (1 to 65535)",
        ),
    ] {
        assert_eq!(read_stream(&text("shop", spec)).unwrap_err().to_string(), expected, "{spec}");
        // Lines are counted over the whole stream, whatever stands before.
        let before = "# a comment\n---\n\n";
        let error =
            read_stream(&format!("{before}{}", text("shop", spec).replace("apiVersion", "---\napiVersion")));
        assert!(error.unwrap_err().to_string().starts_with("8:"), "{spec}");
    }
}
