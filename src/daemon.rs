//! The daemon's life: build the App, serve, drain on the first signal, abort on the second.
