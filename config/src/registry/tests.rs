use super::*;
use proptest::prelude::*;

use crate::attest::{NotAdmitted, Selectors};
use crate::file;

const WHOLE: &str = "apiVersion: postern.dev/v1\nkind: Identity\nmetadata: { name: payments }\nspec:\n  \
    spiffeId: spiffe://corp.example/ns/shop/sa/payments\n  owner: team-payments\n  environment: prod\n  \
    maxTtl: 15m\n  dnsNames: [payments.shop.svc]\n  expires: 2027-01-31T00:00:00Z\n";

fn read(text: &str) -> Result<Identity, String> {
    let piece = file::pieces(text).next().unwrap();
    Placed::read(&piece).map(|placed| placed.identity).map_err(|e| e.to_string())
}

#[test]
fn a_document_reads_back_as_it_was_written() {
    let identity = read(WHOLE).unwrap();
    let json = serde_json::to_string(&identity).unwrap();
    assert_eq!(serde_json::from_str::<Identity>(&json).unwrap(), identity);
    assert!(identity.has_ended(1_801_353_600_000) && !identity.has_ended(1_801_353_599_999));
}

#[test]
fn a_mistake_names_its_place_and_its_cure() {
    let wrong = |from: &str, to: &str| read(&WHOLE.replace(from, to)).unwrap_err();
    assert!(wrong("owner:", "ower:").contains("ower"), "{}", wrong("owner:", "ower:"));
    assert!(wrong("ns/shop/sa/payments", "postern/control").contains("control plane's own"));
    assert!(wrong("2027-01-31T00:00:00Z", "next year").contains("is not a moment such as"));
    for bad in ["-a.b", "a..b", "a b", "a.*.b", "*", "é.b", ""] {
        assert!(wrong("payments.shop.svc", &format!("{bad:?}")).contains("is not a DNS name"), "{bad:?}");
    }
    assert!(read(&WHOLE.replace("payments.shop.svc", "\"*.shop.svc\", payments.shop.svc")).is_ok());
}

#[test]
fn a_credential_of_another_environment_yields_nothing() {
    let prod = read(WHOLE).unwrap();
    assert!(prod.admits(Some("prod")));
    for other in [None, Some("staging"), Some("Prod"), Some("")] {
        assert!(!prod.admits(other), "{other:?}");
    }
    let anywhere = read(&WHOLE.replace("  environment: prod\n", "")).unwrap();
    assert!(anywhere.admits(None) && !anywhere.admits(Some("staging")));
}

fn document(name: &str, id: &str, more: &str) -> Identity {
    read(&format!(
        "apiVersion: postern.dev/v1\nkind: Identity\nmetadata: {{ name: {name} }}\nspec:\n  spiffeId: {id}\n  owner: o\n{more}"
    ))
    .unwrap()
}

fn attested(pairs: &[(&str, &str)]) -> Selectors {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

const ACCOUNTS: &str = "spiffe://corp.example/ns/{k8s.namespace}/sa/{k8s.service_account}";

fn pod(namespace: &str, account: &str) -> Selectors {
    attested(&[("k8s.cluster", "eu"), ("k8s.namespace", namespace), ("k8s.service_account", account)])
}

#[test]
fn the_document_with_most_selectors_wins_and_equals_must_agree() {
    let all = Declarations::new(vec![
        document("all", ACCOUNTS, "  selectors: { k8s.namespace: \"*\" }\n"),
        document("shop", ACCOUNTS, "  selectors: { k8s.namespace: shop }\n  maxTtl: 5m\n"),
        document(
            "pay",
            "spiffe://corp.example/pay",
            "  selectors: { k8s.namespace: shop, k8s.service_account: pay }\n",
        ),
        document(
            "tie",
            "spiffe://corp.example/tie",
            "  selectors: { k8s.cluster: eu, k8s.namespace: \"*\", k8s.service_account: web }\n",
        ),
        document(
            "tied",
            "spiffe://corp.example/tied",
            "  selectors: { k8s.cluster: eu, k8s.namespace: \"*\", k8s.service_account: web }\n",
        ),
    ]);
    let id = |attested: &Selectors| admit(&[], &all, None, attested).map(|(_, id)| id.to_string());
    assert_eq!(id(&pod("bank", "till")).unwrap(), "spiffe://corp.example/ns/bank/sa/till");
    assert_eq!(id(&pod("shop", "till")).unwrap(), "spiffe://corp.example/ns/shop/sa/till");
    assert_eq!(id(&pod("shop", "pay")).unwrap(), "spiffe://corp.example/pay");
    assert_eq!(id(&pod("bank", "web")).unwrap_err().reason(), "ambiguous");
    assert_eq!(id(&pod("bank", "../admin")).unwrap_err().reason(), "bad_identity");
    let bound = |id: &str| all.of(&id.parse().unwrap()).map(|own| own.metadata.name.as_str());
    assert_eq!(bound("spiffe://corp.example/ns/shop/sa/x"), Some("shop"));
    assert_eq!(bound("spiffe://corp.example/ns/bank/sa/x"), Some("all"));
    assert_eq!(bound("spiffe://corp.example/pay"), Some("pay"));
    assert_eq!(bound("spiffe://corp.example/ns/shop/sa/x/y"), None);
}

#[test]
fn a_document_admits_in_its_own_environment_alone() {
    let all = Declarations::new(vec![document(
        "pay",
        "spiffe://corp.example/pay",
        "  environment: prod\n  selectors: { k8s.namespace: shop, k8s.service_account: pay }\n",
    )]);
    assert!(admit(&[], &all, Some("prod"), &pod("shop", "pay")).is_ok());
    for other in [None, Some("staging")] {
        assert_eq!(admit(&[], &all, other, &pod("shop", "pay")), Err(NotAdmitted::NoRule), "{other:?}");
    }
}

#[test]
fn no_template_gives_an_operators_identity() {
    let all = Declarations::new(vec![
        document("all", ACCOUNTS, "  selectors: { k8s.namespace: ops }\n"),
        document(
            "ann",
            "spiffe://corp.example/ns/ops/sa/ann",
            "  role: admin\n  expires: 2027-01-31T00:00:00Z\n",
        ),
    ]);
    assert!(admit(&[], &all, None, &pod("ops", "bob")).is_ok());
    let refused = admit(&[], &all, None, &pod("ops", "ann")).unwrap_err();
    assert_eq!(refused.reason(), "operator_by_template");
    let ann = "spiffe://corp.example/ns/ops/sa/ann".parse().unwrap();
    assert_eq!(all.role(&ann, 0), Some(OperatorRole::Admin));
    assert_eq!(all.role(&ann, 1_801_353_600_000), None, "it has ended");
    assert_eq!(all.role(&"spiffe://corp.example/ns/ops/sa/bob".parse().unwrap(), 0), None);
}

#[test]
fn what_chooses_too_little_or_too_much_is_refused_with_its_place() {
    let wrong = |more: &str| read(&format!("{WHOLE}{more}")).unwrap_err();
    for (more, why) in [
        ("  selectors: { k8s.namespace: shop }\n", "must say `k8s.namespace` and `k8s.service_account`"),
        ("  selectors: { oidc.repository: corp/shop }\n", "whose claims these are"),
        ("  selectors: { oidc.iss: \"https://ci.example\" }\n", "exact value of a claim"),
        ("  selectors: { x509.san: a }\n", "must pin the issuing CA"),
        ("  selectors: { host: a }\n", "nobody attests"),
        ("  federatesWith: [corp.example]\n", "its own trust domain"),
        ("  federatesWith: [a.example, a.example]\n", "each once"),
    ] {
        let said = wrong(more);
        assert!(said.starts_with("11:") && said.contains(why), "{said}");
    }
    assert!(wrong("  role: root\n").starts_with("11:"), "{}", wrong("  role: root\n"));
    let replaced = |from: &str, to: &str| read(&WHOLE.replace(from, to)).unwrap_err();
    assert!(replaced("team-payments", "\"\"").starts_with("6:"), "{}", replaced("team-payments", "\"\""));
    assert!(
        replaced("payments.shop.svc", "a b").starts_with("9:"),
        "{}",
        replaced("payments.shop.svc", "a b")
    );
    let template = replaced("ns/shop/sa/payments", "ns/{k8s.namespace}");
    assert!(template.starts_with("5:") && template.contains("say in `selectors`"), "{template}");
}

proptest! {
    /// Whatever was attested: what a template gives is covered by it, and bound by a document that covers it.
    #[test]
    fn whoever_is_admitted_is_bound(namespace in "[a-z./-]{0,6}", account in ".{0,6}") {
        let all = Declarations::new(vec![
            document("all", ACCOUNTS, "  selectors: { k8s.namespace: \"*\" }\n"),
            document("shop", ACCOUNTS, "  selectors: { k8s.namespace: a }\n"),
        ]);
        if let Ok((rule, id)) = admit(&[], &all, None, &pod(&namespace, &account)) {
            prop_assert!(rule.id.covers(&id));
            let own = all.of(&id).unwrap();
            prop_assert_eq!(own.metadata.name.as_str(), if namespace == "a" { "shop" } else { "all" });
            prop_assert_eq!(id.segments().collect::<Vec<_>>(), ["ns", namespace.as_str(), "sa", account.as_str()]);
        }
    }

    /// No text makes the reader panic, and a document that is taken is read back as it was written.
    #[test]
    fn a_document_that_is_taken_reads_back(field in "[a-zA-Z]{0,12}", value in ".{0,40}") {
        let text = format!("{WHOLE}  {field}: {value}\n");
        if let Ok(identity) = read(&text) {
            let json = serde_json::to_string(&identity).unwrap();
            prop_assert_eq!(serde_json::from_str::<Identity>(&json).unwrap(), identity);
        }
    }

    /// A pattern covers exactly the identities that have its shape.
    #[test]
    fn a_pattern_covers_its_shape(path in "(/[a-c]{1,2}){1,4}") {
        let id: SpiffeId = format!("spiffe://corp.example{path}").parse().unwrap();
        let pattern: Template = "spiffe://corp.example/a/{x}/b{y}".parse().unwrap();
        let parts: Vec<&str> = id.segments().collect();
        let fits = matches!(parts.as_slice(), ["a", _, last] if last.len() > 1 && last.starts_with('b'));
        prop_assert_eq!(pattern.covers(&id), fits);
        prop_assert!(Template::from(id.clone()).covers(&id));
        prop_assert_eq!(Template::from(id.clone()).whole(), Some(id));
    }
}
