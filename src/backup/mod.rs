//! Copies of the whole database outside of it, and the way back: dumps, the keyring's own backup, and what proves them.
