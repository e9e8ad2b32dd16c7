//! The transport over real sockets, with methods that the tests can hold back.

mod bad_input;
mod harness;
mod limits;
mod over_http;
mod protocol;
mod shutdown;
