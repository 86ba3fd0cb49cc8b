//! The instavmd binary.

fn main() {}
