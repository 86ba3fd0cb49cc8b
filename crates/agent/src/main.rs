//! The agent binary: `launch` makes a VM and becomes its agent; `serve` is the agent alone, for tests on a host.

use instavm_agent::{ServeConfig, launch, serve};
use std::io::Write;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::ExitCode;

const USAGE: &str = "usage: instavm-agent launch
       instavm-agent serve --socket PATH --token-hex HEX [--workdir DIR]
";

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let outcome = match arguments.next().as_deref() {
        Some("launch") => return launch::main(),
        Some("serve") => serve_on_host(arguments),
        _ => Err(USAGE.to_owned()),
    };
    outcome.unwrap_or_else(|message| {
        // Nobody is left to tell when standard error is gone.
        let _ = writeln!(std::io::stderr(), "{message}");
        ExitCode::from(2)
    })
}

/// Serves on a socket of the host, without a VM around it.
fn serve_on_host(mut arguments: impl Iterator<Item = String>) -> Result<ExitCode, String> {
    let (mut socket, mut token, mut workdir) = (None, None, None);
    while let Some(name) = arguments.next() {
        let value = arguments
            .next()
            .ok_or_else(|| format!("{name} needs a value"))?;
        match name.as_str() {
            "--socket" => socket = Some(PathBuf::from(value)),
            "--token-hex" => token = Some(parse_token(&value)?),
            "--workdir" => workdir = Some(PathBuf::from(value)),
            _ => return Err(format!("{name} is unknown\n{USAGE}")),
        }
    }
    let (Some(socket), Some(token)) = (socket, token) else {
        return Err(USAGE.to_owned());
    };
    let listener = UnixListener::bind(&socket)
        .map_err(|error| format!("cannot listen on {}: {error}", socket.display()))?;
    let mut config = ServeConfig::new(token);
    if let Some(workdir) = workdir {
        config.workdir = workdir;
    }
    let mut out = std::io::stdout();
    out.write_all(b"ready\n")
        .and_then(|()| out.flush())
        .map_err(|error| format!("cannot report that it is ready: {error}"))?;
    Ok(serve(listener.into(), config))
}

fn parse_token(hex: &str) -> Result<[u8; 32], String> {
    let wrong = || "--token-hex takes 64 hexadecimal digits".to_owned();
    if hex.len() != 64 || !hex.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(wrong());
    }
    let mut token = [0; 32];
    for (byte, digits) in token.iter_mut().zip(hex.as_bytes().chunks_exact(2)) {
        let digits = std::str::from_utf8(digits).map_err(|_| wrong())?;
        *byte = u8::from_str_radix(digits, 16).map_err(|_| wrong())?;
    }
    Ok(token)
}
