//! The plain copy that hops are measured against: one thread, 256 KiB at a time each way, no TLS and no reading of anything.

use std::net::SocketAddr;
use std::process::Command;

use anyhow::{Context as _, Result};
use clap::Args;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::LocalSet;

use super::{Side, Stand};

/// What PERFORMANCE calls a plain copy.
const BUFFER: usize = 256 * 1024;

/// Copy bytes between a port and an address, without TLS.
#[derive(Debug, Args)]
pub struct Copy {
    /// Where to listen
    listen: SocketAddr,
    /// Where to connect
    to: SocketAddr,
}

impl Copy {
    /// Until it is killed.
    pub fn run(&self) -> Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        LocalSet::new().block_on(&runtime, async {
            let listener = TcpListener::bind(self.listen).await.with_context(|| self.listen.to_string())?;
            let to = self.to;
            loop {
                let Ok((near, _)) = listener.accept().await else {
                    tokio::time::sleep(std::time::Duration::from_millis(5)).await;
                    continue;
                };
                tokio::task::spawn_local(async move { drop(carry(near, to).await) });
            }
        })
    }
}

async fn carry(mut near: TcpStream, to: SocketAddr) -> std::io::Result<()> {
    let mut far = TcpStream::connect(to).await?;
    near.set_nodelay(true)?;
    far.set_nodelay(true)?;
    tokio::io::copy_bidirectional_with_sizes(&mut near, &mut far, BUFFER, BUFFER).await.map(drop)
}

pub(super) fn command(stand: &Stand<'_>) -> Result<Command> {
    let to = match stand.side {
        Side::Server => stand.setting.app,
        Side::Client { to } => to,
    };
    let mut command = Command::new(super::rig_program()?);
    command.arg("copy").args([stand.listen.to_string(), to.to_string()]);
    Ok(command)
}
