//! PINs: read from a private file for each login, and never tried again once a token refused one.

use std::collections::HashMap;
use std::fmt::Display;
use std::path::{Path, PathBuf};

use cryptoki::slot::TokenInfo;
use postern_config::file::control::keys::KeyPlace;
use zeroize::Zeroizing;

use super::{KeyError, sha256};
use crate::ca::files;

/// The PINs that were refused, by file; as digests, and only for as long as this process lives.
#[derive(Default)]
pub(super) struct Refused(HashMap<PathBuf, [u8; 32]>);

impl Refused {
    /// Refuses a login that the token refused before, or that could lock the token.
    pub(super) fn check(
        &self,
        place: &KeyPlace,
        path: &Path,
        pin: &str,
        token: &TokenInfo,
    ) -> Result<(), KeyError> {
        let why = if token.user_pin_locked() {
            "the token's PIN is locked; its security officer has to set a new one".to_owned()
        } else if self.0.get(path) == Some(&sha256(pin.as_bytes())) {
            return Err(refused(place, path, &"it was refused before"));
        } else if token.user_pin_final_try() {
            "one more wrong PIN would lock the token, so none is tried; log in once with another tool"
                .to_owned()
        } else {
            return Ok(());
        };
        Err(KeyError::unusable(place, why))
    }

    pub(super) fn remember(&mut self, path: &Path, pin: &str) {
        self.0.insert(path.to_owned(), sha256(pin.as_bytes()));
    }
}

pub(super) fn refused(place: &KeyPlace, path: &Path, why: &dyn Display) -> KeyError {
    let path = path.display();
    KeyError::unusable(
        place,
        format!(
            "the token refuses the PIN in {path} ({why}); it is not tried again until that file says another"
        ),
    )
}

/// The first line of the file.
pub(super) fn read(place: &KeyPlace, path: &Path) -> Result<Zeroizing<String>, KeyError> {
    let text = files::read_secret(path)?;
    let pin = Zeroizing::new(text.lines().next().unwrap_or_default().to_owned());
    match pin.is_empty() {
        true => Err(KeyError::unusable(place, format!("{} holds no PIN", path.display()))),
        false => Ok(pin),
    }
}
