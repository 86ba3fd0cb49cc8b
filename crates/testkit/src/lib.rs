//! A hermetic platform for tests: a simulated node and a served control plane.
#![forbid(unsafe_code)]
