//! Identity and keys: the only module that sees key bytes.
