//! Commands and answers as a TPM has them (TPM Library, parts 1 and 3), over the kernel's device or an emulator's socket.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::FileTypeExt as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use postern_config::tpm::{Reader, TpmError};

use super::Fault;

/// No command or answer of a TPM is longer, bytes.
const MAX: usize = 4096;
/// Tag, length, code.
const HEADER: usize = 10;
/// An emulator that says nothing for so long will not answer; the kernel watches over real ones.
const PATIENCE: Duration = Duration::from_secs(60);

const NO_SESSIONS: u16 = 0x8001;
const SESSIONS: u16 = 0x8002;
/// TPM_RS_PW.
const PASSWORD: u32 = 0x4000_0009;

/// A command's code, its name, and how many handles its answer begins with.
#[derive(Clone, Copy)]
pub(super) struct Code(u32, &'static str, usize);

impl Code {
    pub(super) const CREATE_PRIMARY: Self = Self(0x131, "TPM2_CreatePrimary", 1);
    pub(super) const ACTIVATE_CREDENTIAL: Self = Self(0x147, "TPM2_ActivateCredential", 0);
    pub(super) const NV_READ: Self = Self(0x14e, "TPM2_NV_Read", 0);
    pub(super) const POLICY_SECRET: Self = Self(0x151, "TPM2_PolicySecret", 0);
    pub(super) const QUOTE: Self = Self(0x158, "TPM2_Quote", 0);
    const FLUSH_CONTEXT: Self = Self(0x165, "TPM2_FlushContext", 0);
    pub(super) const NV_READ_PUBLIC: Self = Self(0x169, "TPM2_NV_ReadPublic", 0);
    pub(super) const READ_PUBLIC: Self = Self(0x173, "TPM2_ReadPublic", 0);
    pub(super) const START_AUTH_SESSION: Self = Self(0x176, "TPM2_StartAuthSession", 1);
}

/// Who authorizes the use of a handle: a session, without a word of its own.
#[derive(Clone, Copy)]
pub(super) struct Auth(pub(super) u32);

impl Auth {
    /// The empty password, which hierarchies and keys have unless somebody sets another.
    pub(super) const EMPTY: Self = Self(PASSWORD);
}

/// A TPM that is open, and what was loaded into it.
pub(super) struct Device {
    channel: Box<dyn Channel>,
    name: String,
    loaded: Vec<u32>,
}

trait Channel: Read + Write + Send {}
impl<T: Read + Write + Send> Channel for T {}

impl Device {
    pub(super) fn open(path: &Path) -> Result<Self, Fault> {
        let name = path.display().to_string();
        match channel(path) {
            Ok(channel) => Ok(Self { channel, name, loaded: Vec::new() }),
            Err(why) => Err(Fault::Device(name, why)),
        }
    }

    /// One command with its answer. Whatever it loads is flushed in the end.
    pub(super) fn call(
        &mut self,
        code: Code,
        handles: &[u32],
        auths: &[Auth],
        parameters: &[u8],
    ) -> Result<Answer, Fault> {
        let command = command(code, handles, auths, parameters);
        let bytes = self.exchange(&command).map_err(|why| Fault::Device(self.name.clone(), why))?;
        let answer = Answer::parse(code, bytes)?;
        self.loaded.extend(answer.handle);
        Ok(answer)
    }

    fn exchange(&mut self, command: &[u8]) -> std::io::Result<Vec<u8>> {
        // One write and one read each: the kernel's device knows no other way.
        self.channel.write_all(command)?;
        let mut answer = vec![0; MAX];
        let mut filled = 0;
        loop {
            match self.channel.read(&mut answer[filled..])? {
                0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
                more => filled += more,
            }
            let wanted = answer.get(2..6).and_then(|length| length.try_into().ok()).map(u32::from_be_bytes);
            let wanted = wanted.filter(|_| filled >= HEADER).map(|length| length as usize);
            match wanted {
                Some(wanted) if !(HEADER..=MAX).contains(&wanted) || filled > wanted => {
                    return Err(std::io::ErrorKind::InvalidData.into());
                }
                Some(wanted) if filled == wanted => {
                    answer.truncate(filled);
                    return Ok(answer);
                }
                _ => {}
            }
        }
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        for handle in std::mem::take(&mut self.loaded) {
            // A session may have ended by its use; what is left the resource manager takes away.
            let _ = self.exchange(&command(Code::FLUSH_CONTEXT, &[handle], &[], &[]));
        }
    }
}

fn channel(path: &Path) -> std::io::Result<Box<dyn Channel>> {
    if !std::fs::metadata(path)?.file_type().is_socket() {
        return Ok(Box::new(File::options().read(true).write(true).open(path)?));
    }
    let stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(Box::new(stream))
}

pub(super) fn command(code: Code, handles: &[u32], auths: &[Auth], parameters: &[u8]) -> Vec<u8> {
    let tag = if auths.is_empty() { NO_SESSIONS } else { SESSIONS };
    let mut out = [tag.to_be_bytes().as_slice(), &[0; 4], &code.0.to_be_bytes()].concat();
    handles.iter().for_each(|handle| out.extend_from_slice(&handle.to_be_bytes()));
    if !auths.is_empty() {
        out.extend_from_slice(&(9 * auths.len() as u32).to_be_bytes());
        for Auth(session) in auths {
            out.extend_from_slice(&session.to_be_bytes());
            out.extend_from_slice(&[0; 2 + 1 + 2]); // no nonce, the session ends with this, no HMAC
        }
    }
    out.extend_from_slice(parameters);
    let length = out.len() as u32;
    out[2..6].copy_from_slice(&length.to_be_bytes());
    out
}

/// The answer to a command that was carried out.
pub(super) struct Answer {
    handle: Option<u32>,
    parameters: Vec<u8>,
}

impl Answer {
    pub(super) fn parse(Code(_, name, handles): Code, bytes: Vec<u8>) -> Result<Self, Fault> {
        let mut reader = Reader::new(&bytes, "the TPM's answer");
        let (tag, length, result) = (reader.u16()?, reader.u32()?, reader.u32()?);
        if length as usize != bytes.len() {
            return Err(TpmError::Malformed("the TPM's answer").into());
        }
        if result != 0 {
            return Err(Fault::Refused(name, result));
        }
        let handle = if handles == 0 { None } else { Some(reader.u32()?) };
        let parameters = match tag {
            SESSIONS => {
                let length = reader.u32()?;
                reader.bytes(length as usize)?
            }
            NO_SESSIONS => reader.rest(),
            _ => return Err(TpmError::Malformed("the TPM's answer").into()),
        };
        Ok(Self { handle, parameters: parameters.to_vec() })
    }

    pub(super) fn handle(&self) -> Result<u32, Fault> {
        self.handle.ok_or_else(|| TpmError::Malformed("the TPM's answer").into())
    }

    pub(super) fn parameters(&self, what: &'static str) -> Result<Reader<'_>, Fault> {
        Ok(Reader::new(&self.parameters, what))
    }
}
