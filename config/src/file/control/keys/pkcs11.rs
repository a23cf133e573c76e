//! The part of a PKCS#11 URI (RFC 7512) that names one private key, the module that speaks to its token, and where the PIN is.

use std::fmt;
use std::path::PathBuf;

use super::{encoded, file, pairs, utf8};

/// A private key on a token. It is matched by all attributes that are given.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Pkcs11Place {
    /// The token's label.
    pub token: String,
    /// The token's serial number.
    pub serial: Option<String>,
    /// The key's label (`CKA_LABEL`).
    pub object: String,
    /// The key's `CKA_ID`, where several share one label.
    pub id: Option<Vec<u8>>,
    /// The shared library.
    pub module: PathBuf,
    /// The file that holds the PIN. Without one, nobody logs in.
    pub pin_source: Option<PathBuf>,
}

impl Pkcs11Place {
    /// Reads what follows `pkcs11:`.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let (path, query) = text.split_once('?').unwrap_or((text, ""));
        let (mut token, mut serial, mut object, mut id) = (None, None, None, None);
        for (name, value) in pairs(path, ';')? {
            match name {
                "token" => token = Some(utf8(name, value)?),
                "serial" => serial = Some(utf8(name, value)?),
                "object" => object = Some(utf8(name, value)?),
                "id" if value.is_empty() => return Err("id is empty".to_owned()),
                "id" => id = Some(value),
                "type" if value == b"private" => {}
                "type" => return Err("type can only be private".to_owned()),
                _ => {
                    return Err(format!(
                        "the attribute {name:?} is not read here; known are token, serial, object, id and type"
                    ));
                }
            }
        }
        let (mut module, mut pin_source) = (None, None);
        for (name, value) in pairs(query, '&')? {
            match name {
                "module-path" => module = Some(file(name, value)?),
                "pin-source" => pin_source = Some(file(name, value)?),
                "pin-value" => return Err("a PIN has no place in a configuration; write it to a file of mode 0600 and name that with pin-source".to_owned()),
                _ => return Err(format!("the attribute {name:?} is not read here; known are module-path and pin-source")),
            }
        }
        Ok(Self {
            token: token.ok_or("token=LABEL is missing")?,
            serial,
            object: object.ok_or("object=LABEL is missing")?,
            id,
            module: module.ok_or("?module-path=/path/of/the/module.so is missing")?,
            pin_source,
        })
    }
}

impl fmt::Display for Pkcs11Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pkcs11:token={}", encoded(self.token.as_bytes()))?;
        if let Some(serial) = &self.serial {
            write!(f, ";serial={}", encoded(serial.as_bytes()))?;
        }
        write!(f, ";object={}", encoded(self.object.as_bytes()))?;
        if let Some(id) = &self.id {
            f.write_str(";id=")?;
            id.iter().try_for_each(|byte| write!(f, "%{byte:02X}"))?;
        }
        write!(f, "?module-path={}", encoded(self.module.as_os_str().as_encoded_bytes()))?;
        match &self.pin_source {
            Some(path) => write!(f, "&pin-source=file:{}", encoded(path.as_os_str().as_encoded_bytes())),
            None => Ok(()),
        }
    }
}
