//! The instavmd binary: configuration, start-up order, shutdown, doctor.
#![forbid(unsafe_code)]
