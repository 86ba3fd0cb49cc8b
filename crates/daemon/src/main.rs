//! The instavmd binary.
#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    instavm_daemon::run(std::env::args_os())
}
