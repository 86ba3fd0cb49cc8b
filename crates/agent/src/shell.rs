//! Bash executions: the process.

use crate::process::{PATH, Program};
use rustix::fs::{MemfdFlags, memfd_create};
use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

/// The kernel takes no argument over 128 KiB; longer scripts come as a file.
const LONGEST_ARGUMENT: usize = 100 * 1024;

/// What every execution finds in its environment, unless the session says otherwise.
const BASE: [(&str, &str); 6] = [
    ("PATH", PATH),
    ("HOME", "/root"),
    ("USER", "root"),
    ("LANG", "C.UTF-8"),
    ("TERM", "dumb"),
    ("PIP_ROOT_USER_ACTION", "ignore"),
];

/// The authorities that the VM trusts, on Debian and its kin.
const TRUSTED: &str = "/etc/ssl/certs/ca-certificates.crt";

/// Where programs that bring authorities of their own look for the VM's: OpenSSL, Python's requests, pip, Node. The host
/// may have added some that nobody else knows.
const TRUST_VARIABLES: [&str; 4] = [
    "SSL_CERT_FILE",
    "REQUESTS_CA_BUNDLE",
    "PIP_CERT",
    "NODE_EXTRA_CA_CERTS",
];

/// The environment of an execution; later layers win.
pub(crate) fn environment<'a>(
    layers: &[&'a BTreeMap<String, String>],
) -> BTreeMap<&'a str, &'a str> {
    let mut all = BTreeMap::from(BASE);
    if Path::new(TRUSTED).exists() {
        all.extend(TRUST_VARIABLES.map(|name| (name, TRUSTED)));
    }
    for layer in layers {
        all.extend(
            layer
                .iter()
                .map(|(name, value)| (name.as_str(), value.as_str())),
        );
    }
    all
}

/// The script of a text that begins with `%%bash`.
pub(crate) fn cell(code: &str) -> Option<&str> {
    let (first, rest) = code.trim_start().split_once('\n')?;
    matches!(first.trim_end(), "%%bash" | "%%sh").then_some(rest)
}

/// A bash that runs a script. `descriptors` are its standard input, output and error.
pub(crate) fn program(
    code: &str,
    workdir: &Path,
    mut descriptors: Vec<OwnedFd>,
    environment: &BTreeMap<&str, &str>,
) -> io::Result<Program> {
    let program = if code.len() > LONGEST_ARGUMENT {
        let script = memfd_create("script", MemfdFlags::CLOEXEC)?;
        // The descriptor is closed on the script's own first line: its children must not inherit it.
        write_all(&script, b"exec 3<&-; ")?;
        write_all(&script, code.as_bytes())?;
        descriptors.push(script);
        Program::new("bash", &["/proc/self/fd/3"], workdir, descriptors)?
    } else {
        Program::new("bash", &["-c", "--", code], workdir, descriptors)?
    };
    // A small image has a plain shell only.
    let program = program.or("sh")?;
    Ok(program.environment(environment.iter().map(|(name, value)| (*name, *value))))
}

/// Writes everything into a file in memory.
pub(crate) fn write_all(file: &OwnedFd, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let written = rustix::io::write(file, bytes)?;
        bytes = &bytes[written..];
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_first_line_makes_a_cell() {
        assert_eq!(cell("%%bash\necho 1\n"), Some("echo 1\n"));
        assert_eq!(cell("\n%%sh \nls"), Some("ls"));
        assert_eq!(cell("x = '''\n%%bash\n'''"), None);
        assert_eq!(cell("%%bashful\nls"), None);
    }

    #[test]
    fn the_latest_layer_wins() {
        let session = BTreeMap::from([
            ("LANG".to_owned(), "a".to_owned()),
            ("X".to_owned(), "1".to_owned()),
        ]);
        let call = BTreeMap::from([("X".to_owned(), "2".to_owned())]);
        let all = environment(&[&session, &call]);
        assert_eq!((all["LANG"], all["X"], all["HOME"]), ("a", "2", "/root"));
    }
}
