//! The database: connection, migrations, the transaction helper.
#![forbid(unsafe_code)]
