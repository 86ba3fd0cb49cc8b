//! The wire types of the public API.
#![forbid(unsafe_code)]
