//! A worker's buffers: taken for a read, given back once what was read has gone on. An idle connection holds none.
//!
//! Each thread keeps a few of each size, so that a busy worker allocates nothing and its buffers stay in the processor's
//! cache: what one connection has just emptied, the next one fills.

use std::cell::RefCell;
use std::ops::{Deref, DerefMut};

/// How large a buffer is. A reader that fills one takes a larger one next time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Size {
    /// 16 KiB: one TLS record.
    #[default]
    Small,
    /// 64 KiB.
    Medium,
    /// 256 KiB: as much as a read of a busy socket brings.
    Large,
}

impl Size {
    const ALL: [Self; 3] = [Self::Small, Self::Medium, Self::Large];

    /// In bytes.
    pub const fn bytes(self) -> usize {
        match self {
            Self::Small => 16 * 1024,
            Self::Medium => 64 * 1024,
            Self::Large => 256 * 1024,
        }
    }

    /// The size for the next read, after one of this size brought `got` bytes.
    #[must_use]
    pub fn after(self, got: usize) -> Self {
        match self {
            Self::Small if got == self.bytes() => Self::Medium,
            Self::Medium if got == self.bytes() => Self::Large,
            Self::Large if got < Self::Medium.bytes() => Self::Medium,
            Self::Medium if got < Self::Small.bytes() => Self::Small,
            same => same,
        }
    }
}

/// How many of each size a thread keeps while nobody needs them; what is more is freed.
const SPARE: usize = 4;

/// How many of each size a thread lends at a time; who comes then gets a smaller one. Receivers that do not take what is
/// sent to them hold theirs, and however many they are, that is at most 48 MiB beyond 16 KiB for each.
const LENT: [usize; Size::ALL.len()] = [usize::MAX, 512, 64];

thread_local! {
    static SHELF: RefCell<Shelf> = RefCell::default();
}

#[derive(Debug, Default)]
struct Shelf {
    spare: [Vec<Box<[u8]>>; Size::ALL.len()],
    lent: [usize; Size::ALL.len()],
}

impl Shelf {
    fn take(&mut self, wanted: Size) -> (Box<[u8]>, Size) {
        let fits =
            Size::ALL.into_iter().rev().find(|s| *s <= wanted && self.lent[*s as usize] < LENT[*s as usize]);
        let size = fits.unwrap_or_default();
        self.lent[size as usize] += 1;
        let spare = self.spare[size as usize].pop();
        (spare.unwrap_or_else(|| vec![0; size.bytes()].into_boxed_slice()), size)
    }

    fn put(&mut self, bytes: Box<[u8]>, size: Size) {
        // One that was lent by another thread is welcome here, too.
        self.lent[size as usize] = self.lent[size as usize].saturating_sub(1);
        let spare = &mut self.spare[size as usize];
        if spare.len() < SPARE {
            spare.push(bytes);
        }
    }
}

/// A buffer on loan; it goes back where it is dropped. Its contents are whatever was in it last.
#[derive(Debug)]
pub struct Buffer {
    bytes: Box<[u8]>,
    size: Size,
}

impl Buffer {
    /// One of this size, or a smaller one where too many of it are lent.
    pub fn take(wanted: Size) -> Self {
        let (bytes, size) = SHELF.with_borrow_mut(|shelf| shelf.take(wanted));
        Self { bytes, size }
    }

    /// Its size.
    pub fn size(&self) -> Size {
        self.size
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        // A thread that ends has no use for spares any more.
        let _ = SHELF.try_with(|shelf| shelf.borrow_mut().put(bytes, self.size));
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_keeps_a_few_and_frees_the_rest() {
        let spares = || SHELF.with_borrow(|shelf| shelf.spare.each_ref().map(Vec::len));
        let many: Vec<_> = (0..10).map(|_| Buffer::take(Size::Medium)).collect();
        assert!(many.iter().all(|b| b.len() == Size::Medium.bytes()));
        drop(many);
        assert_eq!(spares(), [0, SPARE, 0]);
        let again = Buffer::take(Size::Medium);
        assert_eq!(spares(), [0, SPARE - 1, 0]);
        drop(again);
        assert_eq!(spares(), [0, SPARE, 0]);
    }

    #[test]
    fn those_that_hold_theirs_leave_smaller_ones_for_the_others() {
        let held: Vec<_> = (0..700).map(|_| Buffer::take(Size::Large)).collect();
        let of = |size| held.iter().filter(|b| b.size() == size).count();
        assert_eq!([of(Size::Large), of(Size::Medium), of(Size::Small)], [64, 512, 124]);
        drop(held);
        assert_eq!(Buffer::take(Size::Large).len(), Size::Large.bytes());
    }

    #[test]
    fn full_reads_grow_and_short_ones_shrink() {
        use Size::{Large, Medium, Small};
        let full = |size: Size| size.after(size.bytes());
        assert_eq!([full(Small), full(Medium), full(Large)], [Medium, Large, Large]);
        assert_eq!([Small.after(1), Medium.after(1), Large.after(1)], [Small, Small, Medium]);
        assert_eq!(Large.after(Large.bytes() - 1), Large);
        assert_eq!(Medium.after(Medium.bytes() - 1), Medium);
    }
}
