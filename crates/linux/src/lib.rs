//! The system calls that the other rooms need, safe from outside.
