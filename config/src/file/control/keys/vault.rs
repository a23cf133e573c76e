//! One key or mount of a Vault (or OpenBao) server, and how this control plane shows it who it is.

use std::fmt;
use std::path::PathBuf;

use super::{base_url, encoded, file, pairs, utf8};

/// Where Kubernetes puts the token of a pod's service account.
const SERVICE_ACCOUNT_TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";

/// Which of Vault's engines is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum VaultEngine {
    /// Signs digests; the place names a key.
    Transit,
    /// Signs certificates; the place names a mount.
    Pki,
}

/// A key of the transit engine, or a mount of the PKI engine.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct VaultPlace {
    /// `https://host:port`; `http` for loopback addresses alone.
    pub server: String,
    /// The engine's mount, such as `transit`.
    pub mount: String,
    /// The transit key's name, or the PKI issuer's (`default` for the mount's own choice).
    pub name: String,
    /// Which engine it is.
    pub engine: VaultEngine,
    /// How to log in.
    pub auth: VaultAuth,
    /// PEM file of the CAs that may vouch for the server; without one, the system's.
    pub ca_file: Option<PathBuf>,
    /// `X-Vault-Namespace`.
    pub namespace: Option<String>,
}

/// How this control plane shows who it is. All secrets come from files, which are read anew for every login.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum VaultAuth {
    /// A token that somebody else keeps in a file.
    Token {
        /// The file.
        file: PathBuf,
    },
    /// Role id and secret id.
    AppRole {
        /// Mount of the auth method.
        mount: String,
        /// The file of the role id.
        role_id: PathBuf,
        /// The file of the secret id.
        secret_id: PathBuf,
    },
    /// The pod's service account token.
    Kubernetes {
        /// Mount of the auth method.
        mount: String,
        /// Vault's role.
        role: String,
        /// The file of the service account's token.
        token: PathBuf,
    },
}

impl VaultPlace {
    /// Reads what follows `vault:` or `vault-pki:`.
    pub(super) fn parse(text: &str, engine: VaultEngine) -> Result<Self, String> {
        let (url, query) = text.split_once('?').unwrap_or((text, ""));
        let (server, path) = base_url(url)?;
        let given = Query::read(query, engine)?;
        let (mount, name) = match engine {
            VaultEngine::Transit => {
                let place = path
                    .rsplit_once("/keys/")
                    .filter(|(mount, name)| !mount.is_empty() && !name.contains('/'));
                let (mount, name) = place.ok_or("write the key as https://host:port/transit/keys/NAME")?;
                (mount.to_owned(), name.to_owned())
            }
            VaultEngine::Pki if path.is_empty() => {
                return Err("write the mount as https://host:port/pki".to_owned());
            }
            VaultEngine::Pki => (path, given.issuer.clone().unwrap_or_else(|| "default".to_owned())),
        };
        let (ca_file, namespace) = (given.ca_file.clone(), given.namespace.clone());
        Ok(Self { server, mount, name, engine, auth: given.auth()?, ca_file, namespace })
    }
}

/// What may stand behind the question mark.
#[derive(Debug, Default)]
struct Query {
    token: Option<PathBuf>,
    role_id: Option<PathBuf>,
    secret_id: Option<PathBuf>,
    kubernetes_role: Option<String>,
    kubernetes_token: Option<PathBuf>,
    auth_mount: Option<String>,
    ca_file: Option<PathBuf>,
    namespace: Option<String>,
    issuer: Option<String>,
}

impl Query {
    fn read(text: &str, engine: VaultEngine) -> Result<Self, String> {
        let mut query = Self::default();
        for (name, value) in pairs(text, '&')? {
            match name {
                "token-file" => query.token = Some(file(name, value)?),
                "role-id-file" => query.role_id = Some(file(name, value)?),
                "secret-id-file" => query.secret_id = Some(file(name, value)?),
                "kubernetes-role" => query.kubernetes_role = Some(utf8(name, value)?),
                "kubernetes-token-file" => query.kubernetes_token = Some(file(name, value)?),
                "auth-mount" => query.auth_mount = Some(segment(name, value)?),
                "ca-file" => query.ca_file = Some(file(name, value)?),
                "namespace" => query.namespace = Some(utf8(name, value)?),
                "issuer" if engine == VaultEngine::Pki => query.issuer = Some(segment(name, value)?),
                "token" | "secret-id" | "role-id" => {
                    return Err(format!(
                        "a secret has no place in a configuration; write it to a file and name that with {name}-file"
                    ));
                }
                _ => {
                    return Err(format!(
                        "{name:?} is not read here; known are token-file, role-id-file, secret-id-file, kubernetes-role, kubernetes-token-file, auth-mount, ca-file, namespace"
                    ));
                }
            }
        }
        Ok(query)
    }

    fn auth(self) -> Result<VaultAuth, String> {
        let mount = |default: &str| self.auth_mount.clone().unwrap_or_else(|| default.to_owned());
        match (self.token, self.role_id, self.secret_id, self.kubernetes_role) {
            (Some(file), None, None, None) => Ok(VaultAuth::Token { file }),
            (None, Some(role_id), Some(secret_id), None) => {
                Ok(VaultAuth::AppRole { mount: mount("approle"), role_id, secret_id })
            }
            (None, None, None, Some(role)) => {
                let token = self.kubernetes_token.clone().unwrap_or_else(|| SERVICE_ACCOUNT_TOKEN.into());
                Ok(VaultAuth::Kubernetes { mount: mount("kubernetes"), role, token })
            }
            _ => Err("say how to log in, in one way: ?token-file=/…, ?role-id-file=/…&secret-id-file=/… or ?kubernetes-role=…".to_owned()),
        }
    }
}

/// A part of a URL's path.
fn segment(name: &str, value: Vec<u8>) -> Result<String, String> {
    let text = utf8(name, value)?;
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'/');
    match text.bytes().all(plain) && text.split('/').all(|s| !matches!(s, "" | "." | "..")) {
        true => Ok(text),
        false => {
            Err(format!("{name}: {text:?} may hold letters, digits, '-', '_' and '.' between single slashes"))
        }
    }
}

impl fmt::Display for VaultPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.engine {
            VaultEngine::Transit => write!(f, "{}/{}/keys/{}", self.server, self.mount, self.name)?,
            VaultEngine::Pki => write!(f, "{}/{}", self.server, self.mount)?,
        }
        let path = |path: &PathBuf| encoded(path.as_os_str().as_encoded_bytes());
        match &self.auth {
            VaultAuth::Token { file } => write!(f, "?token-file={}", path(file))?,
            VaultAuth::AppRole { mount, role_id, secret_id } => {
                let (role, secret) = (path(role_id), path(secret_id));
                write!(f, "?role-id-file={role}&secret-id-file={secret}&auth-mount={mount}")?;
            }
            VaultAuth::Kubernetes { mount, role, token } => {
                let (role, token) = (encoded(role.as_bytes()), path(token));
                write!(f, "?kubernetes-role={role}&kubernetes-token-file={token}&auth-mount={mount}")?;
            }
        }
        if let Some(file) = &self.ca_file {
            write!(f, "&ca-file={}", path(file))?;
        }
        if let Some(namespace) = &self.namespace {
            write!(f, "&namespace={}", encoded(namespace.as_bytes()))?;
        }
        if self.engine == VaultEngine::Pki && self.name != "default" {
            write!(f, "&issuer={}", self.name)?;
        }
        Ok(())
    }
}
