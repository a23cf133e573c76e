//! Where the binaries are: built for tests, beside the running program otherwise.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context as _, Result, bail, ensure};

/// The two programs under test, and this crate's own.
#[derive(Debug, Clone)]
pub struct Binaries {
    dir: PathBuf,
}

impl Binaries {
    /// For tests: `POSTERN_BIN_DIR` if it is set, otherwise freshly built, once a process, with this test's profile.
    pub fn build() -> Result<Self> {
        static BUILT: OnceLock<Result<Binaries, String>> = OnceLock::new();
        let built = BUILT.get_or_init(|| Self::build_now().map_err(|e| format!("{e:#}")));
        built.clone().map_err(anyhow::Error::msg)
    }

    /// For the demo: beside the running program.
    pub fn siblings() -> Result<Self> {
        let own = std::env::current_exe().context("this program does not find itself")?;
        Self::at(own.parent().unwrap_or(Path::new("/")))
    }

    /// For measurements of the control plane alone, which do without the data plane: beside the running program.
    pub fn control_sibling() -> Result<Self> {
        let own = std::env::current_exe().context("this program does not find itself")?;
        let binaries = Self { dir: own.parent().unwrap_or(Path::new("/")).to_owned() };
        require(&binaries.postern())?;
        Ok(binaries)
    }

    /// In a given directory.
    pub fn at(dir: &Path) -> Result<Self> {
        let binaries = Self { dir: dir.to_owned() };
        require(&binaries.postern())?;
        require(&binaries.proxy())?;
        Ok(binaries)
    }

    /// The control plane and the operator's command.
    pub fn postern(&self) -> PathBuf {
        self.dir.join("postern")
    }

    /// The data plane.
    pub fn proxy(&self) -> PathBuf {
        self.dir.join("postern-proxy")
    }

    /// The directory that holds them.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    fn build_now() -> Result<Self> {
        if let Some(dir) = std::env::var_os("POSTERN_BIN_DIR") {
            return Self::at(Path::new(&dir));
        }
        // A test runs as TARGET/PROFILE/deps/NAME-HASH; cargo itself keeps concurrent builds apart by its lock.
        let own = std::env::current_exe()?;
        let profile_dir =
            own.parent().and_then(Path::parent).context("no target directory above the test")?;
        let target = profile_dir.parent().context("no target directory above the test")?;
        let profile = match profile_dir.file_name().and_then(|n| n.to_str()) {
            Some("debug") | None => "dev",
            Some(other) => other,
        };
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let output = Command::new(cargo)
            .args(["build", "--quiet", "--workspace", "--bins", "--profile", profile, "--target-dir"])
            .arg(target)
            .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."))
            .output()
            .context("cargo does not start")?;
        if !output.status.success() {
            bail!("the binaries do not build:\n{}", String::from_utf8_lossy(&output.stderr));
        }
        Self::at(profile_dir)
    }
}

fn require(binary: &Path) -> Result<()> {
    let build = "build it with: cargo build --release --workspace --bins";
    ensure!(binary.is_file(), "{} is missing; {build}", binary.display());
    Ok(())
}
