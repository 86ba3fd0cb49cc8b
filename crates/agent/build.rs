//! Compiles the interpreter's programs for the Pythons of the machine that builds: a VM whose Python is of the same
//! version need not do it at each start. Every other one compiles them itself.

use std::path::Path;
use std::process::{Command, Stdio};

/// Pythons to ask; those that are not there, or fail, are left out.
const PYTHONS: [&str; 2] = ["/usr/bin/python3", "python3"];

/// Prints the version's mark, the length and the code of the files that it is given.
const COMPILE: &str = "\
import marshal, sys
from importlib.util import MAGIC_NUMBER
codes = [compile(open(p, encoding='utf-8').read(), '<instavm>', 'exec', dont_inherit=True) for p in sys.argv[1:]]
data = marshal.dumps(codes)
sys.stdout.buffer.write(MAGIC_NUMBER + len(data).to_bytes(4, 'little') + data)
";

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let programs = ["src/language.py", "src/interpreter.py"];
    for program in programs {
        println!("cargo::rerun-if-changed={program}");
    }
    let mut compiled: Vec<Vec<u8>> = Vec::new();
    for python in PYTHONS {
        let Some(code) = compile(python, &programs) else {
            continue;
        };
        if compiled.iter().all(|other| other[..4] != code[..4]) {
            compiled.push(code);
        }
    }
    let folder = std::env::var("OUT_DIR")?;
    std::fs::write(Path::new(&folder).join("compiled"), compiled.concat())?;
    Ok(())
}

fn compile(python: &str, programs: &[&str]) -> Option<Vec<u8>> {
    let done = Command::new(python)
        .args(["-I", "-S", "-c", COMPILE])
        .args(programs)
        .stderr(Stdio::null())
        .output()
        .ok()?;
    (done.status.success() && done.stdout.len() > 8).then_some(done.stdout)
}
