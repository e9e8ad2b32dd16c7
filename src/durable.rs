//! Files that survive power loss: written under a temporary name, synced, renamed, and the directory synced.
