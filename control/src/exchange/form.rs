//! The request of a token exchange (RFC 8693 §2.1), read strictly from `application/x-www-form-urlencoded`.

use zeroize::Zeroizing;

const GRANT: &str = "urn:ietf:params:oauth:grant-type:token-exchange";
const JWT: &str = "urn:ietf:params:oauth:token-type:jwt";
const ID_TOKEN: &str = "urn:ietf:params:oauth:token-type:id_token";
/// The most parameters that are looked at.
const MAX_PARAMETERS: usize = 32;

/// What is asked for.
pub struct Form {
    /// `subject_token`, a secret.
    pub subject_token: Zeroizing<String>,
    /// `audience`, each of them; at least one.
    pub audiences: Vec<String>,
}

/// Why a request is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FormError {
    /// It cannot be read.
    #[error("the body is not application/x-www-form-urlencoded in UTF-8")]
    Encoding,
    /// A parameter that stands once stands twice (RFC 6749 §3.2).
    #[error("a parameter stands twice")]
    Twice,
    /// Another grant.
    #[error("the grant type is not token exchange (RFC 8693)")]
    Grant,
    /// A parameter is missing or has another value than it may.
    #[error("{0}")]
    Parameter(&'static str),
    /// A resource cannot be looked up here.
    #[error("name the target by `audience`, at least one; `resource` is not understood here")]
    Target,
    /// Scopes mean nothing here.
    #[error("`scope` is not understood here: rules alone decide")]
    Scope,
}

impl FormError {
    /// The word of RFC 6749 §5.2 and RFC 8693 §2.2.2.
    pub fn word(self) -> &'static str {
        match self {
            Self::Grant => "unsupported_grant_type",
            Self::Target => "invalid_target",
            Self::Scope => "invalid_scope",
            Self::Encoding | Self::Twice | Self::Parameter(_) => "invalid_request",
        }
    }
}

impl Form {
    /// Reads a body. Parameters that RFC 8693 does not know are passed over (RFC 6749 §3.2).
    pub fn parse(body: &[u8]) -> Result<Self, FormError> {
        let text = std::str::from_utf8(body).map_err(|_| FormError::Encoding)?;
        let (mut grant, mut token, mut kind, mut wanted) = (None, None, None, None);
        let mut audiences = Vec::new();
        let pairs = text.split('&').filter(|pair| !pair.is_empty());
        for (index, pair) in pairs.enumerate() {
            if index == MAX_PARAMETERS {
                return Err(FormError::Parameter("too many parameters"));
            }
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let (name, value) = (decode(name)?, decode(value)?);
            let once = match name.as_str() {
                "audience" => {
                    audiences.push(value.to_string());
                    continue;
                }
                "grant_type" => &mut grant,
                "subject_token" => &mut token,
                "subject_token_type" => &mut kind,
                "requested_token_type" => &mut wanted,
                "resource" => return Err(FormError::Target),
                "scope" if !value.is_empty() => return Err(FormError::Scope),
                "actor_token" | "actor_token_type" => {
                    return Err(FormError::Parameter("delegation (`actor_token`) is not done here"));
                }
                _ => continue,
            };
            if once.replace(value).is_some() {
                return Err(FormError::Twice);
            }
        }
        let is = |given: &Option<Zeroizing<String>>, known: &[&str]| {
            given.as_ref().is_some_and(|given| known.contains(&given.as_str()))
        };
        if !is(&grant, &[GRANT]) {
            return Err(FormError::Grant);
        }
        if !is(&kind, &[JWT, ID_TOKEN]) {
            return Err(FormError::Parameter(
                "`subject_token_type` is …:token-type:jwt or …:token-type:id_token",
            ));
        }
        if wanted.is_some() && !is(&wanted, &[JWT]) {
            return Err(FormError::Parameter("`requested_token_type` is …:token-type:jwt, or left out"));
        }
        audiences.retain(|audience| !audience.is_empty());
        if audiences.is_empty() {
            return Err(FormError::Target);
        }
        let subject_token = token.ok_or(FormError::Parameter("`subject_token` is missing"))?;
        Ok(Self { subject_token, audiences })
    }
}

impl std::fmt::Debug for Form {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Form(for {:?})", self.audiences)
    }
}

/// One name or value: `+` is a space, `%XX` a byte; anything that looks like an escape and is none is refused.
fn decode(text: &str) -> Result<Zeroizing<String>, FormError> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(text.len()));
    let mut rest = text.bytes();
    let digit =
        |byte: Option<u8>| byte.and_then(|byte| char::from(byte).to_digit(16)).ok_or(FormError::Encoding);
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => (digit(rest.next())? * 16 + digit(rest.next())?) as u8,
            other => other,
        });
    }
    let text = String::from_utf8(std::mem::take(&mut *bytes)).map_err(|_| FormError::Encoding)?;
    Ok(Zeroizing::new(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> String {
        format!(
            "grant_type={GRANT}&subject_token=a.b.c&subject_token_type={JWT}&audience=https%3A%2F%2Fa%2Bb+c"
        )
    }

    #[test]
    fn a_request_is_read() {
        let form = Form::parse((good() + "&audience=two&audience=&client_id=x&scope=").as_bytes()).unwrap();
        assert_eq!(
            (form.subject_token.as_str(), form.audiences),
            ("a.b.c", vec!["https://a+b c".into(), "two".into()])
        );
    }

    #[test]
    fn what_is_not_clear_is_refused() {
        for (more, error) in [
            ("&subject_token=d", "invalid_request"),
            ("&grant_type=x", "invalid_request"),
            ("&resource=https://a", "invalid_target"),
            ("&scope=a", "invalid_scope"),
            ("&actor_token=x", "invalid_request"),
            ("&requested_token_type=urn:ietf:params:oauth:token-type:saml2", "invalid_request"),
            ("&a=%", "invalid_request"),
            ("&a=%g0", "invalid_request"),
            ("&a=%ff", "invalid_request"),
            ("&a=%+1", "invalid_request"),
        ] {
            assert_eq!(Form::parse((good() + more).as_bytes()).unwrap_err().word(), error, "{more}");
        }
        let many = good() + &"&a".repeat(40);
        assert_eq!(Form::parse(many.as_bytes()).unwrap_err().word(), "invalid_request");
        for (gone, error) in [
            ("grant_type", "unsupported_grant_type"),
            ("subject_token", "invalid_request"),
            ("subject_token_type", "invalid_request"),
            ("audience", "invalid_target"),
        ] {
            let without: Vec<String> =
                good().split('&').filter(|p| p.split('=').next() != Some(gone)).map(str::to_owned).collect();
            assert_eq!(Form::parse(without.join("&").as_bytes()).unwrap_err().word(), error, "{gone}");
        }
        assert_eq!(Form::parse(b"").unwrap_err(), FormError::Grant);
        assert_eq!(Form::parse(b"\xff").unwrap_err(), FormError::Encoding);
    }
}
