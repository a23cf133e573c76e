//! Places of keys: each reads back what it prints, and nothing secret can be written into one.

use super::*;

fn place(text: &str) -> Result<KeyPlace, String> {
    text.parse()
}

#[test]
fn every_kind_of_place_reads_back_what_it_prints() {
    for text in [
        "/etc/postern/root.key",
        "root.key",
        "pkcs11:token=corp;object=root?module-path=/usr/lib/softhsm/libsofthsm2.so&pin-source=file:/etc/postern/pin",
        "pkcs11:token=a%20b%3B;serial=12ab;object=root%C3%A9;id=%00%FF?module-path=/m.so",
        "vault:https://vault.corp.example:8200/transit/keys/root?token-file=/run/token",
        "vault:http://127.0.0.1:8200/a/b/keys/root?role-id-file=/r&secret-id-file=/s&auth-mount=approle&ca-file=/ca.pem&namespace=team",
        "vault:https://v/transit/keys/root?kubernetes-role=postern&kubernetes-token-file=/t&auth-mount=k8s/west",
    ] {
        let read = place(text).unwrap();
        assert_eq!(read.to_string(), text);
        assert_eq!(place(&read.to_string()).unwrap(), read);
    }
    assert_eq!("offline".parse(), Ok(RootKey::Offline));
    let upstream = "vault-pki:https://vault:8200/pki/mesh?token-file=/t&issuer=2026";
    assert_eq!(upstream.parse::<Upstream>().unwrap().to_string(), upstream);
}

#[test]
fn a_mistake_is_named() {
    for (text, why) in [
        ("", "no place of a key"),
        ("gcpkms:projects/x", "no place of a key"),
        ("pkcs11:object=root?module-path=/m.so", "token=LABEL is missing"),
        ("pkcs11:token=a?module-path=/m.so", "object=LABEL is missing"),
        ("pkcs11:token=a;object=b", "module-path"),
        ("pkcs11:token=a;token=b;object=c?module-path=/m", "token stands twice"),
        ("pkcs11:token=a%2;object=c?module-path=/m", "two hex digits"),
        ("pkcs11:token=a%+1;object=c?module-path=/m", "two hex digits"),
        ("pkcs11:token=a;object=c?module-path=m.so", "absolute path"),
        ("pkcs11:token=a;object=c?module-path=/m&pin-value=1234", "a PIN has no place"),
        ("pkcs11:token=a;object=c?module-path=/m&pin-source=|/bin/pin", "absolute path"),
        ("pkcs11:token=a;slot-id=1;object=c?module-path=/m", "slot-id"),
        ("vault:http://vault:8200/transit/keys/a?token-file=/t", "only https"),
        ("vault:https://u:p@vault/transit/keys/a?token-file=/t", "without user"),
        ("vault:https://vault/transit/a?token-file=/t", "transit/keys/NAME"),
        ("vault:https://vault/keys/a?token-file=/t", "transit/keys/NAME"),
        ("vault:https://vault/transit/keys/../../sys?token-file=/t", "its path"),
        ("vault:https://vault/transit/keys/a", "say how to log in"),
        ("vault:https://vault/transit/keys/a?token-file=/t&kubernetes-role=x", "in one way"),
        ("vault:https://vault/transit/keys/a?token=hvs.secret", "no place in a configuration"),
    ] {
        let said = place(text).unwrap_err();
        assert!(said.contains(why), "{text}: {said}");
        assert!(!said.contains("1234") && !said.contains("hvs."), "{said}");
    }
}
