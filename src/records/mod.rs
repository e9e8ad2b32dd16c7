//! The records that applications keep: every personal datum sealed with its person's key.
