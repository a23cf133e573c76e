//! The binary's allocator: jemalloc, which gives back what a burst of connections has left between its neighbours.

use tikv_jemallocator::Jemalloc;

#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

/// Lets pages that nobody needs any more go back to the system while nothing else happens, on a thread of the allocator's. Not
/// before the environment has been read: that must happen while there is one thread.
pub(crate) fn give_back_when_idle() {
    if let Err(error) = tikv_jemalloc_ctl::background_thread::write(true) {
        tracing::debug!(%error, "the allocator gives memory back as it is used, and not while nothing happens");
    }
}
