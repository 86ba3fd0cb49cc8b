//! The domain of the platform: one folder a noun.
#![forbid(unsafe_code)]
