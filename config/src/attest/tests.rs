use proptest::prelude::*;

use super::*;

fn rule(selectors: &[(&str, &str)], id: &str) -> Rule {
    let selectors = selectors.iter().map(|(k, v)| ((*k).to_owned(), Wanted::One((*v).to_owned()))).collect();
    Rule { selectors, id: id.parse().unwrap(), labels: BTreeMap::new(), environment: None, max_ttl: None }
}

fn attested(selectors: &[(&str, &str)]) -> Selectors {
    selectors.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

const BY_ACCOUNT: &str = "spiffe://corp.example/ns/{ns}/sa/{sa}";

#[test]
fn the_rule_that_names_most_wins_and_equals_must_agree() {
    let rules = [
        rule(&[("ns", "*"), ("sa", "*")], BY_ACCOUNT),
        rule(&[("ns", "shop"), ("sa", "*")], "spiffe://corp.example/shop/{sa}"),
        rule(&[("ns", "shop"), ("sa", "web")], "spiffe://corp.example/shop-front"),
    ];
    let id = |ns, sa| admit(&rules, &attested(&[("ns", ns), ("sa", sa)])).unwrap().1.to_string();
    assert_eq!(id("bank", "web"), "spiffe://corp.example/ns/bank/sa/web");
    assert_eq!(id("shop", "cart"), "spiffe://corp.example/shop/cart");
    assert_eq!(id("shop", "web"), "spiffe://corp.example/shop-front");
    assert_eq!(admit(&rules, &attested(&[("ns", "shop")])), Err(NotAdmitted::NoRule));

    let tied = [
        rule(&[("ns", "shop"), ("sa", "*")], "spiffe://corp.example/a"),
        rule(&[("ns", "*"), ("sa", "web")], "spiffe://corp.example/b"),
    ];
    let refused = admit(&tied, &attested(&[("ns", "shop"), ("sa", "web")])).unwrap_err();
    assert_eq!(refused.reason(), "ambiguous");
}

#[test]
fn one_of_several_values_fits_and_nothing_else() {
    let mut rules = [rule(&[], "spiffe://corp.example/a")];
    rules[0].selectors.insert("ref".into(), Wanted::AnyOf(vec!["main".into(), "next".into()]));
    assert!(admit(&rules, &attested(&[("ref", "next")])).is_ok());
    for other in ["*", "mai", "main2", ""] {
        assert_eq!(admit(&rules, &attested(&[("ref", other)])), Err(NotAdmitted::NoRule), "{other:?}");
    }
}

#[test]
fn a_value_that_is_no_segment_gives_no_identity() {
    let rules = [rule(&[("ns", "*"), ("sa", "*")], BY_ACCOUNT)];
    for hostile in ["", "..", ".", "a/b", "../admin", "a%2fb", "a b", "é", "{ns}", "a?b", "a#b", "a\0"] {
        let refused = admit(&rules, &attested(&[("ns", "shop"), ("sa", hostile)])).unwrap_err();
        assert_eq!(refused.reason(), "bad_identity", "{hostile:?}");
    }
    let long = "x".repeat(2048);
    assert!(admit(&rules, &attested(&[("ns", "shop"), ("sa", &long)])).is_err());
    // A value never leads to the control plane's own names, nor into another segment.
    let free = [rule(&[("a", "*")], "spiffe://corp.example/{a}/control")];
    assert_eq!(admit(&free, &attested(&[("a", "postern")])), Err(FillError::Reserved.into()));
}

#[test]
fn a_template_that_could_be_read_twice_is_none() {
    for bad in [
        "spiffe://corp.example",
        "spiffe://corp.example/",
        "https://corp.example/a",
        "spiffe://{td}/a",
        "spiffe://corp.example/{a}{b}",
        "spiffe://corp.example/{a}-{b}",
        "spiffe://corp.example/{a",
        "spiffe://corp.example/a}",
        "spiffe://corp.example/{}",
        "spiffe://corp.example/{a b}",
        "spiffe://corp.example/a b",
        "spiffe://corp.example/../{a}",
        "spiffe://corp.example/postern/{a}",
        "spiffe://Corp.example/a",
    ] {
        assert!(bad.parse::<Template>().is_err(), "{bad}");
    }
    for good in [BY_ACCOUNT, "spiffe://corp.example/ci-{oidc.repository_id}/x"] {
        assert_eq!(good.parse::<Template>().unwrap().to_string(), good);
    }
}

proptest! {
    /// Whatever was attested: what comes out has exactly the shape of the template.
    #[test]
    fn an_identity_has_the_segments_of_its_template(ns in ".{0,12}", sa in "[a-z./%{}*-]{0,8}") {
        let template: Template = BY_ACCOUNT.parse().unwrap();
        if let Ok(id) = template.fill(&attested(&[("ns", &ns), ("sa", &sa)])) {
            let segments: Vec<&str> = id.segments().collect();
            prop_assert_eq!(segments, ["ns", ns.as_str(), "sa", sa.as_str()]);
        }
    }
}
