//! The archive of the audit log: months of it as objects that prove themselves, without any database.
