//! Inputs of the parsers that read what VMs send, as files, and changes of them. Tests with `fuzz` in their names run on
//! them: as they are in `make test`, changed for minutes in `make soak`.

use proptest::prelude::*;
use std::path::Path;

/// The files for a parser: name and content.
pub(crate) fn files(parser: &str) -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("corpus")
        .join(parser);
    let read = |entry: std::io::Result<std::fs::DirEntry>| {
        let entry = entry.expect("a file");
        let name = entry.file_name().to_string_lossy().into_owned();
        (name, std::fs::read(entry.path()).expect("its content"))
    };
    let mut files: Vec<_> = std::fs::read_dir(folder)
        .expect("the corpus")
        .map(read)
        .collect();
    files.sort();
    assert!(files.len() > 10, "the corpus of {parser} is there");
    files
}

/// One of the files with bytes changed, removed, added, or a part of another one put in.
pub(crate) fn changed(parser: &str) -> impl Strategy<Value = Vec<u8>> + use<> {
    let contents: Vec<Vec<u8>> = files(parser).into_iter().map(|(_, bytes)| bytes).collect();
    let change = (any::<prop::sample::Index>(), any::<u8>(), 0u8..5);
    let changes = prop::collection::vec(change, 0..6);
    let two = (
        prop::sample::select(contents.clone()),
        prop::sample::select(contents),
    );
    (two, changes).prop_map(|((mut bytes, other), changes)| {
        for (place, value, kind) in changes {
            let at = place.index(bytes.len() + 1);
            match kind {
                0 if at < bytes.len() => bytes[at] = value,
                1 if at < bytes.len() => bytes[at] ^= 1 << (value % 8),
                2 if at < bytes.len() => {
                    bytes.remove(at);
                }
                3 => bytes.insert(at, value),
                4 => {
                    let from = usize::from(value).min(other.len());
                    let part = &other[from..other.len().min(from + 64)];
                    bytes.splice(at..at, part.iter().copied());
                }
                _ => {}
            }
        }
        bytes
    })
}
