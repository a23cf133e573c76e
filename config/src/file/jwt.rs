//! Whose JWTs are believed: issuers, where their keys come from, and where in a request a token stands.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Span;
use super::proxy::ConfigError;
use super::url::WebUrl;

#[cfg(test)]
mod tests;

/// Somebody who issues JWTs, and what must hold for one of them to be believed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct JwtProvider {
    /// Its name in rules, metrics and logs.
    pub name: String,
    /// The token's `iss`, exactly.
    pub issuer: String,
    /// The token's `aud` must hold one of these.
    pub audiences: Vec<String>,
    /// The issuer's public keys.
    pub jwks: Jwks,
    /// Where in a request its tokens stand; left out, `Authorization: Bearer …`.
    #[serde(default = "bearer")]
    pub from: Vec<TokenPlace>,
    /// Whether the app gets the token too. Otherwise it is removed once it has been verified.
    #[serde(default)]
    pub forward: bool,
}

/// A set of public keys (RFC 7517): a `url` or a `file`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Jwks {
    /// Where it is fetched from, `https://…`. Redirects are not followed.
    pub url: Option<WebUrl>,
    /// A PEM file with the CAs that the server's certificate may lead to; left out, the host's own store of CAs.
    pub ca: Option<PathBuf>,
    /// A file that holds it.
    pub file: Option<PathBuf>,
    /// How often it is read again. A token with an unknown key makes it be read at once, every 10 s at most.
    pub refresh: Span,
    /// How long the last good keys are used while they cannot be read again. Then tokens of this issuer get 503.
    pub max_age: Span,
    /// Lets the URL lead to a loopback address. Link-local addresses, where clouds keep their secrets, stay forbidden.
    pub allow_loopback: bool,
}

impl Default for Jwks {
    fn default() -> Self {
        Self {
            url: None,
            ca: None,
            file: None,
            refresh: Span::from_secs(300),
            max_age: Span::from_secs(24 * 3600),
            allow_loopback: false,
        }
    }
}

/// Where a token stands: a `header`, a `cookie` or a `query` parameter.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TokenPlace {
    /// A header's name.
    pub header: Option<String>,
    /// The scheme before the token in that header, such as `Bearer`, in any case of letters. A header with another scheme
    /// holds no token.
    pub prefix: Option<String>,
    /// A cookie's name.
    pub cookie: Option<String>,
    /// A parameter's name in the query.
    pub query: Option<String>,
}

fn bearer() -> Vec<TokenPlace> {
    let header = Some("authorization".to_owned());
    vec![TokenPlace { header, prefix: Some("Bearer".to_owned()), ..TokenPlace::default() }]
}

/// Which tokens are taken at one place. One that is present must be good, whatever the policy says; a request without one
/// goes on without a request principal.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct JwtRule {
    /// Names of providers.
    pub providers: Vec<String>,
    /// Refuses requests without a token (401).
    pub required: bool,
}

/// Checks what the types alone do not say. `at` is where the list stands.
pub fn check(at: &str, providers: &[JwtProvider]) -> Result<(), ConfigError> {
    for (i, provider) in providers.iter().enumerate() {
        let fail = |why: String| Err(ConfigError { at: format!("{at}[{i}]"), why });
        if provider.name.is_empty() || provider.name.len() > 63 {
            return fail("`name` must have 1 to 63 characters".to_owned());
        }
        if providers[..i].iter().any(|earlier| earlier.name == provider.name) {
            return fail(format!("the name {:?} is taken by an earlier provider", provider.name));
        }
        if provider.issuer.is_empty() {
            return fail("`issuer` is empty; give the token's `iss`, exactly".to_owned());
        }
        if provider.audiences.is_empty() || provider.audiences.iter().any(String::is_empty) {
            return fail(
                "give in `audiences` whom its tokens are for: without, a token for any other service would be taken"
                    .to_owned(),
            );
        }
        if provider.from.is_empty() {
            return fail("`from` is empty; leave it out for `Authorization: Bearer`".to_owned());
        }
        if let Some(why) =
            provider.from.iter().find_map(|p| p.check().err()).or_else(|| provider.jwks.check().err())
        {
            return fail(why.to_owned());
        }
    }
    Ok(())
}

impl Jwks {
    fn check(&self) -> Result<(), &'static str> {
        match (&self.url, &self.file) {
            (Some(_), None) => {}
            (None, Some(_)) if self.ca.is_none() && !self.allow_loopback => {}
            (None, Some(_)) => return Err("`jwks.ca` and `jwks.allow_loopback` go with `jwks.url`"),
            _ => return Err("give either `jwks.url` or `jwks.file`"),
        }
        if self.refresh < Span::from_secs(10) || self.max_age < self.refresh {
            return Err("`jwks.refresh` must be at least 10s and no longer than `jwks.max_age`");
        }
        Ok(())
    }
}

impl TokenPlace {
    fn check(&self) -> Result<(), &'static str> {
        let plain = |name: &str| {
            !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
        };
        match (&self.header, &self.cookie, &self.query) {
            (Some(header), None, None) => {
                if http::HeaderName::try_from(header).is_err() {
                    return Err("`from.header` is not the name of a header");
                }
                if self.prefix.as_deref().is_some_and(|prefix| !plain(prefix)) {
                    return Err("`from.prefix` is one word such as `Bearer`");
                }
                if header.eq_ignore_ascii_case("cookie") || header.eq_ignore_ascii_case("host") {
                    return Err("`from.header` cannot be Host or Cookie; for a cookie, write `cookie: NAME`");
                }
                Ok(())
            }
            (None, Some(name), None) | (None, None, Some(name)) if self.prefix.is_none() => match plain(name)
            {
                true => Ok(()),
                false => Err("in `from`, name a cookie or parameter with letters, digits, `-`, `_` and `.`"),
            },
            (None, ..) if self.prefix.is_some() => Err("`from.prefix` goes with `from.header`"),
            _ => Err("give in `from` one of `header`, `cookie` and `query` each"),
        }
    }
}

impl JwtRule {
    /// Whether it says nothing.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// Checks the names against the providers that there are.
    pub fn check(&self, at: &str, providers: &[JwtProvider]) -> Result<(), ConfigError> {
        let fail = |why: String| Err(ConfigError { at: at.to_owned(), why });
        let mut issuers: Vec<&str> = Vec::new();
        for name in &self.providers {
            let Some(provider) = providers.iter().find(|p| p.name == *name) else {
                return fail(format!("no provider is called {name:?}; see `jwt.providers`"));
            };
            if issuers.contains(&provider.issuer.as_str()) {
                return fail(format!(
                    "two of the providers have the issuer {:?}: which is meant?",
                    provider.issuer
                ));
            }
            issuers.push(&provider.issuer);
        }
        match self.required && self.providers.is_empty() {
            true => fail("`required` without `providers` would refuse every request".to_owned()),
            false => Ok(()),
        }
    }
}
