//! The rig's side of TLS: one configuration for a whole measurement, built once.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use postern_config::bundle::{BundleSet, TrustBundle};
use postern_config::id::SpiffeId;
use postern_config::revocation::Revocations;
use postern_config::svid::{self, Role};
use rustls::client::danger::ServerCertVerifier as _;
use rustls::client::{ResolvesClientCert, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::sign::{CertifiedKey, SigningKey};
use rustls::{ClientConfig, RootCertStore, SignatureScheme};

use super::{Kx, Suite, Tls};
use crate::believe::{self, Believer, Judge, Shown};

/// For so long a chain that was verified is taken for good by its bytes.
const SURE_FOR: Duration = Duration::from_secs(1);

/// The configuration with the name that goes into the SNI.
pub(super) fn client_config(tls: &Tls, alpn: &[&str], resume: bool) -> Result<ClientConfig> {
    let provider = Arc::new(provider(tls));
    let roots = certificates(&tls.ca)?;
    let own = Arc::clone(&provider);
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider));
    let builder = match tls.suite {
        // The suites are those of TLS 1.3.
        Some(_) => builder.with_protocol_versions(&[&rustls::version::TLS13]),
        None => builder.with_safe_default_protocol_versions(),
    };
    let judge: Box<dyn Judge> = match &tls.spiffe_id {
        Some(id) => Box::new(Identity::new(id, roots, &provider)?),
        None => {
            let mut store = RootCertStore::empty();
            for root in roots {
                store.add(root).with_context(|| format!("{}: no CA", tls.ca.display()))?;
            }
            Box::new(WebPkiServerVerifier::builder_with_provider(Arc::new(store), provider).build()?)
        }
    };
    let judge = OnceASecond { judge, last: Mutex::default() };
    let verifier = Arc::new(Believer { judge, provider: Arc::clone(&own) });
    let builder = builder?.dangerous().with_custom_certificate_verifier(verifier);
    let mut config = match (&tls.cert, &tls.key) {
        (Some(cert), Some(key)) => {
            let der = PrivateKeyDer::from_pem_file(key)
                .with_context(|| format!("{}: no PEM key", key.display()))?;
            let pair = || format!("{} and {} do not go together", cert.display(), key.display());
            match tls.in_turn {
                false => builder.with_client_auth_cert(certificates(cert)?, der).with_context(pair)?,
                true => {
                    let key = own.key_provider.load_private_key(der).with_context(pair)?;
                    builder.with_client_cert_resolver(Arc::new(InTurn::new(certificates(cert)?, &key)))
                }
            }
        }
        _ => builder.with_no_client_auth(),
    };
    if !resume {
        config.resumption = rustls::client::Resumption::disabled();
    }
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    config.enable_sni = tls.spiffe_id.is_none() || tls.server_name.is_some();
    Ok(config)
}

/// Many leaves of one key, each handshake the next.
#[derive(Debug)]
struct InTurn {
    leaves: Vec<Arc<CertifiedKey>>,
    next: AtomicUsize,
}

impl InTurn {
    fn new(leaves: Vec<CertificateDer<'static>>, key: &Arc<dyn SigningKey>) -> Self {
        let certified = |leaf| Arc::new(CertifiedKey::new(vec![leaf], Arc::clone(key)));
        Self { leaves: leaves.into_iter().map(certified).collect(), next: AtomicUsize::new(0) }
    }
}

impl ResolvesClientCert for InTurn {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.leaves.get(number % self.leaves.len().max(1)).cloned()
    }

    fn has_certs(&self) -> bool {
        !self.leaves.is_empty()
    }
}

/// Has the chain that a server shows judged once a second. Judged at each handshake, a chain costs the rig more than most servers
/// need for all of it: the rig would be what is measured.
#[derive(Debug)]
struct OnceASecond {
    judge: Box<dyn Judge>,
    last: Mutex<Option<Sure>>,
}

/// A chain that was verified.
#[derive(Debug)]
struct Sure {
    chain: Vec<CertificateDer<'static>>,
    name: ServerName<'static>,
    since: Instant,
}

impl Sure {
    fn holds(&self, shown: &Shown<'_>) -> bool {
        self.since.elapsed() < SURE_FOR && self.name == *shown.name && shown.chain().eq(&self.chain)
    }
}

impl Judge for OnceASecond {
    fn judge(&self, shown: &Shown<'_>) -> Result<(), rustls::Error> {
        let last = || self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if shown.ocsp.is_empty() && last().as_ref().is_some_and(|sure| sure.holds(shown)) {
            return Ok(());
        }
        self.judge.judge(shown)?;
        let chain = shown.chain().map(|c| c.clone().into_owned()).collect();
        *last() = Some(Sure { chain, name: shown.name.to_owned(), since: Instant::now() });
        Ok(())
    }
}

/// By the names in the certificate, under the given roots.
impl Judge for Arc<WebPkiServerVerifier> {
    fn judge(&self, shown: &Shown<'_>) -> Result<(), rustls::Error> {
        self.verify_server_cert(shown.leaf, shown.more, shown.name, shown.ocsp, shown.now).map(drop)
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let wrong = || format!("{}: no PEM certificates", path.display());
    let read: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path).with_context(wrong)?.collect();
    let read = read.with_context(wrong)?;
    ensure!(!read.is_empty(), "{}: no PEM certificates", path.display());
    Ok(read)
}

fn provider(tls: &Tls) -> CryptoProvider {
    use aws_lc_rs::{cipher_suite as suite, kx_group as group};
    let mut provider = aws_lc_rs::default_provider();
    match tls.suite {
        Some(Suite::Aes128) => provider.cipher_suites = vec![suite::TLS13_AES_128_GCM_SHA256],
        Some(Suite::Aes256) => provider.cipher_suites = vec![suite::TLS13_AES_256_GCM_SHA384],
        Some(Suite::Chacha20) => provider.cipher_suites = vec![suite::TLS13_CHACHA20_POLY1305_SHA256],
        None => provider.cipher_suites.sort_by_key(|s| s.suite() != suite::TLS13_AES_128_GCM_SHA256.suite()),
    }
    match tls.kx {
        Some(Kx::X25519) => provider.kx_groups = vec![group::X25519],
        Some(Kx::X25519mlkem768) => provider.kx_groups = vec![group::X25519MLKEM768],
        Some(Kx::P256) => provider.kx_groups = vec![group::SECP256R1],
        None => provider.kx_groups.sort_by_key(|g| g.name() != group::X25519.name()),
    }
    provider
}

/// Believes exactly one workload under the given roots.
#[derive(Debug)]
struct Identity {
    expected: SpiffeId,
    bundles: BundleSet,
    provider: Arc<CryptoProvider>,
}

impl Identity {
    fn new(id: &str, roots: Vec<CertificateDer<'static>>, provider: &Arc<CryptoProvider>) -> Result<Self> {
        let expected: SpiffeId = id.parse().with_context(|| format!("{id:?} is no SPIFFE ID"))?;
        let bundle = TrustBundle::new(expected.trust_domain().clone(), 0, roots).context("the CA")?;
        Ok(Self { expected, bundles: [bundle].into_iter().collect(), provider: Arc::clone(provider) })
    }
}

impl Judge for Identity {
    fn judge(&self, shown: &Shown<'_>) -> Result<(), rustls::Error> {
        let chain: Vec<_> = shown.chain().cloned().collect();
        let (none, algorithms) = (Revocations::default(), believe::algorithms(&self.provider));
        let found = svid::verify(&chain, &self.bundles, &none, Role::Server, shown.now, algorithms);
        believe::only(&self.expected, found)
    }
}

#[cfg(test)]
mod tests {
    use rustls::CertificateError;
    use rustls::pki_types::UnixTime;

    use super::*;

    /// Accepts every chain but one of the leaf `bad`, and counts.
    #[derive(Debug, Default)]
    struct Counting(Arc<AtomicUsize>);

    impl Judge for Counting {
        fn judge(&self, shown: &Shown<'_>) -> Result<(), rustls::Error> {
            self.0.fetch_add(1, Ordering::Relaxed);
            match shown.leaf.as_ref() {
                b"bad" => Err(CertificateError::BadSignature.into()),
                _ => Ok(()),
            }
        }
    }

    #[test]
    fn only_the_same_chain_for_the_same_name_is_taken_for_good_and_not_for_long() {
        let counted = Arc::new(AtomicUsize::new(0));
        let judge = Box::new(Counting(Arc::clone(&counted)));
        let once = OnceASecond { judge, last: Mutex::default() };
        let shows = |chain: &[&'static str], name: &'static str| {
            let before = counted.load(Ordering::Relaxed);
            let chain: Vec<_> = chain.iter().map(|c| CertificateDer::from(c.as_bytes())).collect();
            let name = ServerName::try_from(name).unwrap();
            let now = UnixTime::now();
            let shown = Shown { leaf: &chain[0], more: &chain[1..], name: &name, ocsp: &[], now };
            (once.judge(&shown).is_ok(), counted.load(Ordering::Relaxed) - before)
        };
        assert_eq!(shows(&["leaf", "ca"], "a.example"), (true, 1));
        assert_eq!(shows(&["leaf", "ca"], "a.example"), (true, 0));
        assert_eq!(shows(&["leaf"], "a.example"), (true, 1), "without its issuer");
        assert_eq!(shows(&["leaf", "ca"], "a.example"), (true, 1));
        assert_eq!(shows(&["leaf", "ca"], "b.example"), (true, 1), "another name");
        assert_eq!(shows(&["bad", "ca"], "b.example"), (false, 1));
        assert_eq!(shows(&["bad", "ca"], "b.example"), (false, 1), "nothing bad is remembered");
        assert_eq!(shows(&["leaf", "ca"], "b.example"), (true, 0));
        if let Some(sure) = &mut *once.last.lock().unwrap() {
            sure.since -= SURE_FOR;
        }
        assert_eq!(shows(&["leaf", "ca"], "b.example"), (true, 1), "a second later");
    }
}
