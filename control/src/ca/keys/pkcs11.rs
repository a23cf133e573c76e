//! Keys on PKCS#11 tokens: one thread for each module, since its sessions belong to one thread and it is initialised once a process.
//!
//! A token may be pulled out, its server restarted, a session lost: whatever fails, module and sessions are let go and opened
//! anew, once for each call, and no more often than once a second. A PIN that the token refused is not tried again until its
//! file says another, and never when it would be the last try: nobody's token is locked by a retry.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::error::{Error, RvError};
use cryptoki::mechanism::Mechanism;
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::{Session, UserType};
use cryptoki::slot::Slot;
use cryptoki::types::AuthPin;
use postern_config::file::control::keys::{KeyPlace, Pkcs11Place};
use rcgen::PublicKeyData as _;

use super::thread::Worker;
use super::{KeyError, ecdsa};
use crate::digest::{random, sha256};
use crate::issue::csr::SubjectKey;

mod pin;

/// `CKA_EC_PARAMS` of the curves that sign here: their object identifiers in DER.
const P256: &[u8] = &[0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
const P384: &[u8] = &[0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x22];
/// After a failure the module is left alone for so long.
const PAUSE: Duration = Duration::from_secs(1);

/// The thread of each module.
static MODULES: LazyLock<Mutex<HashMap<PathBuf, Worker<Module>>>> = LazyLock::new(Mutex::default);

/// A key on a token.
pub(super) struct Remote {
    token: Pkcs11Place,
    worker: Worker<Module>,
}

/// Finds the key with this public half, or the only one there is.
pub(super) fn open(
    place: &KeyPlace,
    token: &Pkcs11Place,
    expected: Option<&[u8]>,
) -> Result<Option<(SubjectKey, Remote)>, KeyError> {
    let remote = Remote { token: token.clone(), worker: worker(place, &token.module)? };
    let expected = expected.map(<[u8]>::to_vec);
    let public = remote.ask(place, move |module, place, token| {
        let mut found = module.with(place, token, |session| public_keys(session, token))?;
        if let Some(expected) = &expected {
            found.retain(|(public, _)| public.subject_public_key_info() == *expected);
        }
        match found.len() {
            0 => Ok(None),
            1 => Ok(found.pop()),
            many => Err(KeyError::unusable(
                place,
                format!("the token holds {many} keys with this label; name one by its id (;id=%01…)"),
            )),
        }
    })?;
    Ok(public.map(|(public, _)| (public, remote)))
}

/// Makes a key that cannot leave the token.
pub(super) fn create(place: &KeyPlace, token: &Pkcs11Place) -> Result<(SubjectKey, Remote), KeyError> {
    let remote = Remote { token: token.clone(), worker: worker(place, &token.module)? };
    let id = match &token.id {
        Some(id) => id.clone(),
        None => random::<16>().map_err(|_| KeyError::unusable(place, "no randomness"))?.to_vec(),
    };
    let public = remote.ask(place, move |module, place, token| {
        // Finds out whether the session still lives: what makes a key is not done twice.
        module.with(place, token, |session| public_keys(session, token))?;
        let failed = |e: Error| KeyError::unusable(place, format!("no key was made: {e}"));
        let (slot, context) = module.place_of(place, token)?;
        let session = context.open_rw_session(slot).map_err(failed)?;
        let (public, _) = session
            .generate_key_pair(
                &Mechanism::EccKeyPairGen,
                &public_template(token, &id),
                &private_template(token, &id),
            )
            .map_err(failed)?;
        let public = read_public(&session, public).map_err(failed)?;
        public.ok_or_else(|| KeyError::unusable(place, "the token made a key that is not on P-256"))
    })?;
    Ok((public, remote))
}

fn public_template(token: &Pkcs11Place, id: &[u8]) -> Vec<Attribute> {
    vec![
        Attribute::Token(true),
        Attribute::Private(false),
        Attribute::Verify(true),
        Attribute::EcParams(P256.to_vec()),
        Attribute::Label(token.object.clone().into_bytes()),
        Attribute::Id(id.to_vec()),
    ]
}

fn private_template(token: &Pkcs11Place, id: &[u8]) -> Vec<Attribute> {
    vec![
        Attribute::Token(true),
        Attribute::Private(true),
        Attribute::Sensitive(true),
        Attribute::Extractable(false),
        Attribute::Sign(true),
        Attribute::Label(token.object.clone().into_bytes()),
        Attribute::Id(id.to_vec()),
    ]
}

impl Remote {
    pub(super) fn sign(
        &self,
        place: &KeyPlace,
        public: &SubjectKey,
        message: &[u8],
    ) -> Result<Vec<u8>, KeyError> {
        let digest = ecdsa::digest_for(public, message)
            .ok_or_else(|| KeyError::unusable(place, "keys of this kind do not sign here"))?;
        let public = public.clone();
        self.ask(place, move |module, place, token| {
            let raw = module.with_key(place, token, &public, |session, key| {
                session.sign(&Mechanism::Ecdsa, key, &digest)
            })?;
            ecdsa::der(&raw)
                .ok_or_else(|| KeyError::unavailable(place, "what the token gave is no signature"))
        })
    }

    pub(super) fn probe(&self, place: &KeyPlace, public: &SubjectKey) -> Result<(), KeyError> {
        let public = public.clone();
        self.ask(place, move |module, place, token| {
            // Reading an attribute asks the token itself, unlike a search, which a module may answer from memory.
            module.with_key(place, token, &public, |session, key| {
                session.get_attributes(key, &[AttributeType::KeyType, AttributeType::Sign]).map(drop)
            })
        })
    }

    pub(super) fn destroy(&self, place: &KeyPlace, public: &SubjectKey) -> Result<(), KeyError> {
        let public = public.clone();
        self.ask(place, move |module, place, token| {
            let failed = |e: Error| KeyError::unavailable(place, format!("the key was not removed: {e}"));
            module.with(place, token, |session| public_keys(session, token))?;
            let (slot, context) = module.place_of(place, token)?;
            let session = context.open_rw_session(slot).map_err(failed)?;
            let found = public_keys(&session, token).map_err(failed)?;
            let ours = found.into_iter().find(|(known, _)| *known == public);
            let Some((_, id)) = ours else { return Ok(()) };
            module.handles.clear();
            for class in [ObjectClass::PRIVATE_KEY, ObjectClass::PUBLIC_KEY] {
                let template = [
                    Attribute::Class(class),
                    Attribute::Label(token.object.clone().into_bytes()),
                    Attribute::Id(id.clone()),
                ];
                for object in session.find_objects(&template).map_err(failed)? {
                    session.destroy_object(object).map_err(failed)?;
                }
            }
            Ok(())
        })
    }

    fn ask<T: Send + 'static>(
        &self,
        place: &KeyPlace,
        work: impl FnOnce(&mut Module, &KeyPlace, &Pkcs11Place) -> Result<T, KeyError> + Send + 'static,
    ) -> Result<T, KeyError> {
        let (own, token) = (place.clone(), self.token.clone());
        self.worker
            .ask(move |module| work(module, &own, &token))
            .unwrap_or_else(|silent| Err(KeyError::unavailable(place, silent.to_string())))
    }
}

fn worker(place: &KeyPlace, path: &Path) -> Result<Worker<Module>, KeyError> {
    let mut modules = MODULES.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(worker) = modules.get(path) {
        return Ok(worker.clone());
    }
    let own = path.to_owned();
    let started = Worker::start("pkcs11", move || Module { path: own, ..Module::default() });
    let worker = started.map_err(|e| KeyError::unavailable(place, format!("no thread: {e}")))?;
    modules.insert(path.to_owned(), worker.clone());
    Ok(worker)
}

/// A loaded module with its open sessions.
#[derive(Default)]
struct Module {
    path: PathBuf,
    context: Option<Pkcs11>,
    /// By the token's label and serial; logged in where there is a PIN.
    sessions: HashMap<(String, Option<String>), Session>,
    /// Handles of private keys by their public half.
    handles: HashMap<Vec<u8>, ObjectHandle>,
    refused: pin::Refused,
    /// When the last attempt with a token failed, and why.
    failed: HashMap<(String, Option<String>), (Instant, KeyError)>,
}

impl Module {
    /// Uses a session, and once more a new one if that fails.
    fn with<T>(
        &mut self,
        place: &KeyPlace,
        token: &Pkcs11Place,
        work: impl Fn(&Session) -> Result<T, Error>,
    ) -> Result<T, KeyError> {
        if let Some((at, error)) = self.failed.get(&id_of(token))
            && at.elapsed() < PAUSE
        {
            return Err(error.clone().at(place));
        }
        let was_open = self.sessions.contains_key(&id_of(token));
        let mut result = self.attempt(place, token, &work);
        if was_open && result.is_err() {
            self.let_go();
            result = self.attempt(place, token, &work);
        }
        match &result {
            Ok(_) => drop(self.failed.remove(&id_of(token))),
            Err(error) => {
                self.failed.insert(id_of(token), (Instant::now(), error.clone()));
                self.let_go();
            }
        }
        result
    }

    /// Uses the private key that belongs to a public one.
    fn with_key<T>(
        &mut self,
        place: &KeyPlace,
        token: &Pkcs11Place,
        public: &SubjectKey,
        work: impl Fn(&Session, ObjectHandle) -> Result<T, Error>,
    ) -> Result<T, KeyError> {
        let spki = public.subject_public_key_info();
        let known = self.handles.get(&spki).copied();
        let (handle, result) = self.with(place, token, |session| {
            // A handle from before the session was lost means nothing in the next one: it is looked up again on failure.
            if let Some(Ok(result)) = known.map(|handle| work(session, handle)) {
                return Ok((known, Some(result)));
            }
            let Some(handle) = private_key(session, token, public)? else { return Ok((None, None)) };
            work(session, handle).map(|result| (Some(handle), Some(result)))
        })?;
        match (handle, result) {
            (Some(handle), Some(result)) => {
                self.handles.insert(spki, handle);
                Ok(result)
            }
            _ => {
                self.let_go();
                Err(KeyError::unavailable(place, "the token no longer holds this private key"))
            }
        }
    }

    fn attempt<T>(
        &mut self,
        place: &KeyPlace,
        token: &Pkcs11Place,
        work: impl Fn(&Session) -> Result<T, Error>,
    ) -> Result<T, KeyError> {
        let session = self.session(place, token)?;
        work(session).map_err(|e| KeyError::unavailable(place, e.to_string()))
    }

    fn session(&mut self, place: &KeyPlace, token: &Pkcs11Place) -> Result<&Session, KeyError> {
        let id = id_of(token);
        if !self.sessions.contains_key(&id) {
            let session = self.log_in(place, token)?;
            self.sessions.insert(id.clone(), session);
        }
        self.sessions.get(&id).ok_or_else(|| KeyError::unavailable(place, "no session"))
    }

    fn log_in(&mut self, place: &KeyPlace, token: &Pkcs11Place) -> Result<Session, KeyError> {
        let (slot, context) = self.place_of(place, token)?;
        let lost = |e: Error| KeyError::unavailable(place, e.to_string());
        let about = context.get_token_info(slot).map_err(lost)?;
        let session = context.open_ro_session(slot).map_err(lost)?;
        let Some(path) = &token.pin_source else { return Ok(session) };
        let pin = pin::read(place, path)?;
        self.refused.check(place, path, &pin, &about)?;
        match session.login(UserType::User, Some(&AuthPin::from(pin.to_string()))) {
            Ok(()) | Err(Error::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => Ok(session),
            Err(Error::Pkcs11(
                why @ (RvError::PinIncorrect | RvError::PinInvalid | RvError::PinLenRange),
                _,
            )) => {
                self.refused.remember(path, &pin);
                Err(pin::refused(place, path, &format!("{why:?}")))
            }
            Err(e) => Err(lost(e)),
        }
    }

    /// The token's slot, in a module that is loaded.
    fn place_of(&mut self, place: &KeyPlace, token: &Pkcs11Place) -> Result<(Slot, Pkcs11), KeyError> {
        let context = match &self.context {
            Some(context) => context.clone(),
            None => {
                let context = load(place, &self.path)?;
                self.context = Some(context.clone());
                context
            }
        };
        let lost = |e: Error| KeyError::unavailable(place, e.to_string());
        let mut found = Vec::new();
        for slot in context.get_slots_with_initialized_token().map_err(lost)? {
            // A token may be pulled out between the two calls.
            let Ok(about) = context.get_token_info(slot) else { continue };
            let serial = token.serial.as_ref().is_none_or(|serial| about.serial_number() == serial);
            if about.label() == token.token && serial {
                found.push(slot);
            }
        }
        match found[..] {
            [slot] => Ok((slot, context)),
            [] => Err(KeyError::unavailable(place, format!("there is no token {:?} now", token.token))),
            _ => Err(KeyError::unusable(
                place,
                format!("several tokens are called {:?}; name one by ;serial=…", token.token),
            )),
        }
    }

    /// Closes everything, so that the next call begins anew.
    fn let_go(&mut self) {
        self.handles.clear();
        self.sessions.clear();
        if let Some(context) = self.context.take() {
            let _ = context.finalize();
        }
    }
}

fn id_of(token: &Pkcs11Place) -> (String, Option<String>) {
    (token.token.clone(), token.serial.clone())
}

fn load(place: &KeyPlace, path: &Path) -> Result<Pkcs11, KeyError> {
    let context = Pkcs11::new(path)
        .map_err(|e| KeyError::unusable(place, format!("the module cannot be loaded: {e}")))?;
    match context.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)) {
        Ok(()) | Err(Error::Pkcs11(RvError::CryptokiAlreadyInitialized, _)) => Ok(context),
        Err(e) => Err(KeyError::unavailable(place, e.to_string())),
    }
}

/// Public keys with the label (and id), each with its `CKA_ID`.
fn public_keys(session: &Session, token: &Pkcs11Place) -> Result<Vec<(SubjectKey, Vec<u8>)>, Error> {
    let mut template = vec![
        Attribute::Class(ObjectClass::PUBLIC_KEY),
        Attribute::KeyType(KeyType::EC),
        Attribute::Label(token.object.clone().into_bytes()),
    ];
    template.extend(token.id.clone().map(Attribute::Id));
    let mut found = Vec::new();
    for object in session.find_objects(&template)? {
        let Some(public) = read_public(session, object)? else { continue };
        let id = session.get_attributes(object, &[AttributeType::Id])?;
        let id = id.into_iter().find_map(|a| if let Attribute::Id(id) = a { Some(id) } else { None });
        found.push((public, id.unwrap_or_default()));
    }
    Ok(found)
}

/// `None` for a curve that does not sign here.
fn read_public(session: &Session, object: ObjectHandle) -> Result<Option<SubjectKey>, Error> {
    let (mut curve, mut point) = (Vec::new(), Vec::new());
    for attribute in session.get_attributes(object, &[AttributeType::EcParams, AttributeType::EcPoint])? {
        match attribute {
            Attribute::EcParams(der) => curve = der,
            Attribute::EcPoint(bytes) => point = bytes,
            _ => {}
        }
    }
    let length = match &curve[..] {
        P256 => 65,
        P384 => 97,
        _ => return Ok(None),
    };
    // DER of an OCTET STRING, as the standard wants; some tokens leave the wrapping out.
    let point = match point.strip_prefix(&[0x04, u8::try_from(length).unwrap_or(0)]) {
        Some(inner) if inner.len() == length => inner,
        _ => &point[..],
    };
    Ok(SubjectKey::from_point(point.to_vec()).filter(|_| point.len() == length))
}

fn private_key(
    session: &Session,
    token: &Pkcs11Place,
    public: &SubjectKey,
) -> Result<Option<ObjectHandle>, Error> {
    let found = public_keys(session, token)?;
    let Some((_, id)) = found.iter().find(|(known, _)| known == public) else { return Ok(None) };
    let mut template =
        vec![Attribute::Class(ObjectClass::PRIVATE_KEY), Attribute::Label(token.object.clone().into_bytes())];
    if !id.is_empty() {
        template.push(Attribute::Id(id.clone()));
    }
    Ok(session.find_objects(&template)?.first().copied())
}
