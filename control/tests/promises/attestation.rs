//! Workloads enroll by what their platform says of them; each way to abuse that is refused, recorded, and gets nothing.

use postern_config::svid::Role;
use postern_config::wire::v1::{self, enroll_request::Credential};
use rustls::pki_types::CertificateDer;
use tonic::{Code, Status};

use crate::harness::{Connection, Control, Keys, verify};

mod kubernetes;
mod oidc;
mod tpm;
mod x509;

/// What every caller is told whose credential is not taken.
const REFUSED: &str = "the credential is not taken; the control plane's audit record says why";

/// Enrolls over a connection of its own.
async fn enroll(
    control: &Control,
    credential: Credential,
    keys: &Keys,
) -> Result<v1::EnrollResponse, Status> {
    let mut connection = Connection::open(control.listen, control.pin(), None).await.unwrap();
    let request = connection.attested(credential, keys);
    connection.client.enroll(request).await.map(tonic::Response::into_inner)
}

/// The identity in an answer whose chain is good.
fn identity(response: &v1::EnrollResponse) -> String {
    let chain = &response.svid.as_ref().unwrap().chain;
    let chain: Vec<_> = chain.iter().cloned().map(CertificateDer::from).collect();
    let document = &response.bundle.as_ref().unwrap().document;
    let bundle =
        postern_config::bundle::TrustBundle::parse("corp.example".parse().unwrap(), document).unwrap();
    let root = CertificateDer::from(bundle.anchors()[0].der().to_vec());
    verify(&chain, root, Role::Client).id.to_string()
}

/// Expects a refusal in the one voice that callers hear, and the reason in the record.
async fn refused(control: &Control, credential: Credential, reason: &str) {
    let before = control.refusals("enroll").len();
    let status = enroll(control, credential, &Keys::new()).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::PermissionDenied, REFUSED), "{reason}");
    assert_eq!(control.refusals("enroll")[before..], [reason]);
}
