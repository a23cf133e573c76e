//! The binary's allocator: jemalloc, which gives back what a burst of connections has left between its neighbours.
//!
//! As it comes: a thread of its own would run before the environment is read, which must happen while there is one thread.

use tikv_jemallocator::Jemalloc;

#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;
