//! Who this process is among those that share a store: a name that stays in its data directory, and a sign of life.

use std::fs;
use std::io;
use std::path::Path;

use crate::ca::files;
use crate::clock::now_ms;
use crate::store::{Replica, Store, StoreError};

/// The name's file below the data directory.
const FILE: &str = "replica";
/// A replica that has not been heard of for this long counts as gone, milliseconds.
const GONE: i64 = 5_000;

/// The name of the replica that lives in `data`; a new one on the first start.
pub fn name(data: &Path) -> io::Result<String> {
    let path = data.join(FILE);
    match fs::read_to_string(&path) {
        Ok(text) => match ulid::Ulid::from_string(text.trim()) {
            Ok(name) => Ok(name.to_string()),
            Err(_) => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("{}: not the name of a replica", path.display()),
            )),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let name = ulid::Ulid::new().to_string();
            files::write(&path, format!("{name}\n").as_bytes()).map_err(io::Error::other)?;
            Ok(name)
        }
        Err(error) => Err(error),
    }
}

/// Says that `replica` is there.
pub async fn beat(store: &Store, replica: &mut Replica) -> Result<(), StoreError> {
    replica.last_seen = now_ms();
    let mut change = store.change_rows().await?;
    change.put_replica(replica).await?;
    change.commit().await
}

/// Whether a replica counts as there at `now`.
pub fn is_alive(replica: &Replica, now: i64) -> bool {
    now.saturating_sub(replica.last_seen) < GONE
}
