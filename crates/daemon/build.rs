//! Finds the agent's binary, which the daemon carries inside itself.
//!
//! `INSTAVM_AGENT_BINARY` names it; else it is looked for where `make build` puts it, `<target>/<triple>/agent/`.
//! Without one the daemon is built all the same (checks and unit tests need none) and says so when it is to serve.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

fn main() -> ExitCode {
    match find_agent() {
        Ok(path) => {
            tell(&format!("rustc-env=EMBEDDED_AGENT_FILE={}", path.display()));
            ExitCode::SUCCESS
        }
        Err(message) => {
            tell(&format!("error={message}"));
            ExitCode::FAILURE
        }
    }
}

fn find_agent() -> Result<PathBuf, String> {
    tell("rerun-if-env-changed=INSTAVM_AGENT_BINARY");
    tell("rerun-if-changed=build.rs");
    if let Some(named) = std::env::var_os("INSTAVM_AGENT_BINARY").filter(|name| !name.is_empty()) {
        let path = std::path::absolute(named).map_err(|error| error.to_string())?;
        tell(&format!("rerun-if-changed={}", path.display()));
        if !path.is_file() {
            return Err(format!(
                "INSTAVM_AGENT_BINARY names {}, which is no file",
                path.display()
            ));
        }
        return Ok(path);
    }
    let out = PathBuf::from(variable("OUT_DIR")?);
    let triple = variable("TARGET")?;
    let built = target_directory(&out)
        .join(triple)
        .join("agent")
        .join("instavm-agent");
    tell(&format!("rerun-if-changed={}", built.display()));
    if built.is_file() {
        return Ok(built);
    }
    let marker = out.join("no-agent");
    std::fs::write(&marker, []).map_err(|error| error.to_string())?;
    Ok(marker)
}

/// The folder that cargo marks as its own; every output lies in it.
fn target_directory(out: &Path) -> PathBuf {
    out.ancestors()
        .filter(|folder| folder.join("CACHEDIR.TAG").is_file())
        .last()
        .unwrap_or(out)
        .to_owned()
}

fn variable(name: &str) -> Result<String, String> {
    std::env::var(name).map_err(|error| format!("{name}: {error}"))
}

#[allow(
    clippy::print_stdout,
    reason = "a build script speaks to cargo by its standard output"
)]
fn tell(text: &str) {
    println!("cargo::{text}");
}
