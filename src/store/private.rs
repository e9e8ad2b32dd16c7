//! A private PostgreSQL for `sidekeep dev` and the tests.
