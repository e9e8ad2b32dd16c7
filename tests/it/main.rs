//! Tests through the socket on a real PostgreSQL.
