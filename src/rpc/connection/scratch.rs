//! Where bytes are read to before it is known how many there are: one buffer for each worker thread, not for each connection.

use std::cell::Cell;

const SIZE: usize = 64 * 1024;

thread_local! {
    static SPARE: Cell<Option<Box<[u8]>>> = const { Cell::new(None) };
}

/// A buffer, given back when it is dropped.
pub(super) struct Scratch(Box<[u8]>);

impl Scratch {
    /// This thread's buffer, or a new one while that is in use.
    pub(super) fn take() -> Self {
        Self(SPARE.take().unwrap_or_else(|| vec![0; SIZE].into()))
    }

    /// The buffer; what it holds is of no meaning.
    pub(super) fn bytes(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        SPARE.set(Some(std::mem::take(&mut self.0)));
    }
}
