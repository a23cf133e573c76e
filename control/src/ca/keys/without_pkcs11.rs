//! In a static program: PKCS#11 modules are shared libraries, and nothing can load them.

use postern_config::file::control::keys::{KeyPlace, Pkcs11Place};

use super::KeyError;
use crate::issue::csr::SubjectKey;

/// There is none.
pub(super) enum Remote {}

pub(super) fn open(
    place: &KeyPlace,
    _: &Pkcs11Place,
    _: Option<&[u8]>,
) -> Result<Option<(SubjectKey, Remote)>, KeyError> {
    Err(refused(place))
}

pub(super) fn create(place: &KeyPlace, _: &Pkcs11Place) -> Result<(SubjectKey, Remote), KeyError> {
    Err(refused(place))
}

fn refused(place: &KeyPlace) -> KeyError {
    KeyError::unusable(
        place,
        "this build of postern is a static program, which cannot load PKCS#11 modules; build it without `+crt-static`",
    )
}

impl Remote {
    pub(super) fn sign(&self, _: &KeyPlace, _: &SubjectKey, _: &[u8]) -> Result<Vec<u8>, KeyError> {
        match *self {}
    }

    pub(super) fn probe(&self, _: &KeyPlace, _: &SubjectKey) -> Result<(), KeyError> {
        match *self {}
    }

    pub(super) fn destroy(&self, _: &KeyPlace, _: &SubjectKey) -> Result<(), KeyError> {
        match *self {}
    }
}
