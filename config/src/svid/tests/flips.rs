//! Damage at random: a chain with other bytes is refused or still means the same identity, and nothing panics.

use std::sync::LazyLock;

use proptest::prelude::*;

use super::forge::{NOW, Spec};
use super::{BundleSet, CertificateDer, ID, Mesh, Revocations, Role, at, brought, verify};

static GOOD: LazyLock<(Vec<CertificateDer<'static>>, BundleSet)> = LazyLock::new(|| {
    let mesh = Mesh::new();
    (mesh.chain(&Spec::leaf(ID)), mesh.bundles())
});

fn damaged(member: usize, changes: &[(usize, u8)]) -> Vec<CertificateDer<'static>> {
    let mut chain = GOOD.0.clone();
    let mut bytes = chain[member].to_vec();
    for (at, flip) in changes {
        let at = at % bytes.len();
        bytes[at] ^= flip;
    }
    chain[member] = bytes.into();
    chain
}

fn meaning(chain: &[CertificateDer<'_>]) -> Option<String> {
    let none = Revocations::default();
    verify(chain, &GOOD.1, &none, Role::Client, at(NOW), brought()).ok().map(|p| p.id.to_string())
}

/// Every single bit of both certificates. All of the leaf is signed, so no flip there may pass.
#[test]
fn no_flipped_bit_of_the_chain_is_believed() {
    for (member, certificate) in GOOD.0.iter().enumerate() {
        for at in 0..certificate.len() {
            for bit in 0..8 {
                let found = meaning(&damaged(member, &[(at, 1 << bit)]));
                assert_eq!(found, None, "certificate {member}, byte {at}, bit {bit}");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn several_changed_bytes_mean_nobody_else(
        member in 0..2usize,
        changes in prop::collection::vec((0..4096usize, 1..=255u8), 1..8),
    ) {
        if let Some(id) = meaning(&damaged(member, &changes)) {
            prop_assert_eq!(id, ID);
        }
    }

    #[test]
    fn cut_and_spliced_certificates_are_refused(
        at in 0..4096usize,
        insert in prop::collection::vec(any::<u8>(), 0..64),
        drop in 1..64usize,
    ) {
        let bytes = GOOD.0[0].to_vec();
        let at = at % bytes.len();
        let end = (at + drop).min(bytes.len());
        let spliced = [&bytes[..at], &insert, &bytes[end..]].concat();
        prop_assume!(spliced != bytes);
        let chain = [spliced.into(), GOOD.0[1].clone()];
        prop_assert_eq!(meaning(&chain), None);
    }
}
