//! The program inside every VM.
