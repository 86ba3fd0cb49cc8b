//! One node: VM actors and their records behind the trait Node.
#![forbid(unsafe_code)]
