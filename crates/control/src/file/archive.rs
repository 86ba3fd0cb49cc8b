//! Archives: told by what is in them, unpacked in the VM.
//!
//! A file counts as an archive by its content alone. A compressed file whose content is no tar file is a file like any
//! other. An archive without members is an empty directory. One that cannot be unpacked changes nothing: it is unpacked
//! beside its target, which gets the result only when all of it is there.

use crate::Platform;
use crate::error::Problem;
use crate::vm::service::random_id;
use flate2::read::MultiGzDecoder;
use instavm_node_api::{ExecuteRequest, Language, VmId};
use std::io::Read;
use std::time::Duration;

/// As much of a file as tells what it is; what is shorter is known to its end.
pub(crate) const HEAD: usize = 16 << 10;
/// A block of a tar file.
const BLOCK: usize = 512;
/// How long tar files without members are, by the programs that write them. They hold nothing but zeros.
const EMPTY_TARS: [usize; 2] = [1_024, 10_240];
/// How long an archive may take to be unpacked.
const UNPACK_TIME: Duration = Duration::from_secs(280);
/// Characters of what was wrong with an archive.
const SAID: usize = 300;

/// Kinds of archives that are unpacked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Archive {
    Tar,
    Gzip,
    Zip,
    /// Without members.
    Empty,
}

impl Archive {
    /// What a file is that begins so. A head of less than [`HEAD`] bytes is the whole file.
    pub(crate) fn recognise(head: &[u8]) -> Option<Archive> {
        let is_whole = head.len() < HEAD;
        if head.starts_with(b"PK\x03\x04") {
            Some(Archive::Zip)
        } else if head.starts_with(b"PK\x05\x06") {
            Some(Archive::Empty)
        } else if head.starts_with(&[0x1f, 0x8b]) {
            let (content, ended) = inflated(head);
            of_tar(&content, is_whole && ended, Archive::Gzip)
        } else {
            of_tar(head, is_whole, Archive::Tar)
        }
    }

    /// The command that unpacks `$file` into `$stage`.
    fn command(self) -> &'static str {
        match self {
            Archive::Tar => r#"timeout 270 tar -xf "$file" --no-same-owner -C "$stage""#,
            Archive::Gzip => r#"timeout 270 tar -xzf "$file" --no-same-owner -C "$stage""#,
            Archive::Zip => {
                r#"if command -v unzip >/dev/null; then timeout 270 unzip -q "$file" -d "$stage"
else timeout 270 python3 -m zipfile -e "$file" "$stage"; fi"#
            }
            Archive::Empty => ":",
        }
    }
}

/// The beginning of what is compressed, longer than any tar file without members, and whether that is all of it.
fn inflated(head: &[u8]) -> (Vec<u8>, bool) {
    let limit = EMPTY_TARS[1] + 1;
    let mut content = Vec::new();
    let read = MultiGzDecoder::new(head)
        .take(limit as u64)
        .read_to_end(&mut content);
    let ended = read.is_ok() && content.len() < limit;
    (content, ended)
}

fn of_tar(content: &[u8], is_whole: bool, kind: Archive) -> Option<Archive> {
    if is_whole && EMPTY_TARS.contains(&content.len()) && content.iter().all(|byte| *byte == 0) {
        return Some(Archive::Empty);
    }
    content
        .first_chunk()
        .is_some_and(is_tar_header)
        .then_some(kind)
}

/// Whether a tar file begins with this: it has the mark, or like the oldest ones only the right checksum.
fn is_tar_header(block: &[u8; BLOCK]) -> bool {
    if &block[257..262] == b"ustar" {
        return true;
    }
    let stated = std::str::from_utf8(&block[148..156])
        .map(|text| text.trim_matches([' ', '\0']))
        .ok()
        .and_then(|text| u32::from_str_radix(text, 8).ok());
    // The checksum is made with spaces in its own place.
    let byte = |(index, byte): (usize, &u8)| match index {
        148..156 => u32::from(b' '),
        _ => u32::from(*byte),
    };
    stated == Some(block.iter().enumerate().map(byte).sum())
}

/// What surrounds [`Archive::command`]. `$file`, `$target`, `$parent` and `$stem` are set before.
///
/// The stage is in the directory of the target, or the nearest one above that is there, so that its content need only
/// be renamed or linked.
const BEGIN: &str = r#"set -eu
stage=
trap 'rm -rf -- "$file" "$stage"' EXIT
refuse() { printf '%s\n' "$1" >&2; false; }
if [ -L "$target" ] || [ -e "$target" ]; then
  [ -d "$target" ] || refuse "$target is there and is no directory"
fi
near=$parent
while [ ! -d "$near" ]; do near=${near%/*}; near=${near:-/}; done
stage=${near%/}/$stem
mkdir -- "$stage"
"#;
const END: &str = r#"
if [ ! -d "$target" ]; then
  mkdir -p -- "$parent"
  mv -T -- "$stage" "$target"
  stage=
else
  find "$stage" -mindepth 1 '(' -type d -printf 'd%P\0' -o -printf 'f%P\0' ')' > "$file"
  while IFS= read -r -d '' entry; do
    there=${target%/}/${entry:1}
    if [ "${entry:0:1}" = d ]; then
      if [ -L "$there" ] || { [ -e "$there" ] && [ ! -d "$there" ]; }; then
        refuse "$there is there and is no directory"
      fi
    elif [ -d "$there" ] && [ ! -L "$there" ]; then
      refuse "$there is there and is a directory"
    fi
  done < "$file"
  merge() {
    find "$stage" -mindepth 1 -maxdepth 1 -print0 |
      xargs -0 -r cp -a "$@" --remove-destination -t "$target" --
  }
  merge -l 2>/dev/null || merge
fi
"#;

/// A script that unpacks a file to an absolute path and removes the file.
fn script(archive: Archive, file: &str, target: &str, stem: &str) -> String {
    let target = match target.trim_end_matches('/') {
        "" => "/",
        target => target,
    };
    let parent = match target.rsplit_once('/') {
        Some(("", _)) | None => "/",
        Some((parent, _)) => parent,
    };
    let mut script = String::new();
    for (name, value) in [
        ("file", file),
        ("target", target),
        ("parent", parent),
        ("stem", stem),
    ] {
        script.push_str(&format!("{name}={}\n", quoted(value)));
    }
    script + BEGIN + archive.command() + END
}

/// Unpacks a file that is in the VM, and removes it.
pub(crate) async fn unpack(
    platform: &Platform,
    vm: &VmId,
    archive: Archive,
    file: &str,
    target: &str,
) -> Result<(), Problem> {
    let target = if target.starts_with('/') {
        target.to_owned()
    } else {
        format!("/app/{target}")
    };
    let stem = format!(".unpack-{}", random_id(20));
    let request = ExecuteRequest {
        code: script(archive, file, &target, &stem),
        language: Some(Language::Bash),
        timeout: UNPACK_TIME,
    };
    let run = platform.node.execute(vm, request).await?;
    if run.exit_code == 0 {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&run.stderr);
    let said: String = said.trim().chars().take(SAID).collect();
    Err(Problem::invalid(
        "file",
        format!("the archive could not be unpacked, and nothing was changed: {said}"),
    ))
}

/// A text as one word of a shell.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::Compression;
    use flate2::write::GzEncoder;
    use std::fs;
    use std::io::Write;
    use std::path::Path;
    use std::process::{Command, Output};

    fn tar(members: &[(&str, &[u8])]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, content) in members {
            let mut header = tar::Header::new_gnu();
            // Not by `set_path`, which takes no `..`.
            header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
            header.set_size(content.len() as u64);
            header.set_mode(0o644);
            if name.ends_with('/') {
                header.set_entry_type(tar::EntryType::Directory);
                header.set_mode(0o755);
            }
            header.set_cksum();
            builder.append(&header, *content).unwrap();
        }
        builder.into_inner().unwrap()
    }

    fn gzip(content: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(content).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn compressed_files_that_are_no_archives_are_files() {
        for size in [0, 1, 511, 512, 1_024, 10_240, 100_000] {
            let text = vec![b'x'; size];
            assert_eq!(Archive::recognise(&gzip(&text)), None, "{size}");
            assert_eq!(Archive::recognise(&text), None, "{size}");
        }
        // A disk image may begin with zeros.
        for size in [1, 512, 1_023, 1_025, 10_239, 10_241, 1 << 20] {
            let zeros = vec![0; size];
            assert_eq!(Archive::recognise(&gzip(&zeros)), None, "{size}");
            assert_eq!(Archive::recognise(&zeros), None, "{size}");
        }
        assert_eq!(Archive::recognise(b"\x1f\x8b"), None);
        assert_eq!(Archive::recognise(b"PK"), None);
    }

    #[test]
    fn archives_are_told_by_their_content() {
        let whole = tar(&[("a", b"hello")]);
        assert_eq!(Archive::recognise(&whole), Some(Archive::Tar));
        assert_eq!(Archive::recognise(&gzip(&whole)), Some(Archive::Gzip));
        let big = tar(&[("a", &vec![7; 1 << 20])]);
        assert_eq!(Archive::recognise(&gzip(&big)), Some(Archive::Gzip));
        // As the oldest programs wrote it: without the mark.
        let mut old = whole.clone();
        let mut header = tar::Header::new_old();
        header.as_mut_bytes().copy_from_slice(&old[..512]);
        header.as_mut_bytes()[257..265].fill(0);
        header.set_cksum();
        old[..512].copy_from_slice(header.as_bytes());
        assert_eq!(Archive::recognise(&old), Some(Archive::Tar));
        old[0] = b'b';
        assert_eq!(Archive::recognise(&old), None);
        assert_eq!(Archive::recognise(b"PK\x03\x04.."), Some(Archive::Zip));
        for empty in [&b"PK\x05\x06"[..], &[0; 1_024], &gzip(&[0; 10_240])] {
            assert_eq!(Archive::recognise(empty), Some(Archive::Empty));
        }
    }

    #[test]
    fn quoting_leaves_no_way_out() {
        assert_eq!(quoted("a'b; $(c)"), r"'a'\''b; $(c)'");
    }

    /// Unpacks as a VM does.
    fn run(folder: &Path, content: &[u8], target: &str) -> Output {
        let file = folder.join("parked");
        fs::write(&file, content).unwrap();
        let target = folder.join(target);
        let archive = Archive::recognise(content).unwrap();
        let code = script(
            archive,
            file.to_str().unwrap(),
            target.to_str().unwrap(),
            ".unpack-x",
        );
        let run = Command::new("bash").arg("-c").arg(code).output().unwrap();
        assert!(!file.exists(), "the file is still there: {run:?}");
        run
    }

    /// Everything below a folder: paths, and the content of files.
    fn listing(folder: &Path) -> Vec<(String, String)> {
        let mut found = Vec::new();
        let mut folders = vec![folder.to_owned()];
        while let Some(next) = folders.pop() {
            for entry in fs::read_dir(next).unwrap() {
                let path = entry.unwrap().path();
                let name = path.strip_prefix(folder).unwrap().display().to_string();
                if path.is_dir() {
                    found.push((name, "/".to_owned()));
                    folders.push(path);
                } else {
                    found.push((name, fs::read_to_string(path).unwrap()));
                }
            }
        }
        found.sort();
        found
    }

    fn entries(expected: &[(&str, &str)]) -> Vec<(String, String)> {
        let owned = |(name, content): &(&str, &str)| ((*name).to_owned(), (*content).to_owned());
        expected.iter().map(owned).collect()
    }

    #[test]
    fn an_archive_makes_its_directory_and_those_above() {
        let folder = tempfile::tempdir().unwrap();
        let content = gzip(&tar(&[("d/", b""), ("d/f", b"new")]));
        let run = run(folder.path(), &content, "a b/it's/");
        assert!(run.status.success(), "{run:?}");
        let wanted = [
            ("a b", "/"),
            ("a b/it's", "/"),
            ("a b/it's/d", "/"),
            ("a b/it's/d/f", "new"),
        ];
        assert_eq!(listing(folder.path()), entries(&wanted));
    }

    #[test]
    fn an_archive_is_merged_into_its_directory() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("t");
        fs::create_dir_all(target.join("d")).unwrap();
        fs::write(target.join("d/f"), "old").unwrap();
        fs::write(target.join("kept"), "kept").unwrap();
        let content = tar(&[("d/f", b"new"), ("e/g", b"more"), (".hidden", b"too")]);
        let run = run(folder.path(), &content, "t");
        assert!(run.status.success(), "{run:?}");
        let wanted = [
            (".hidden", "too"),
            ("d", "/"),
            ("d/f", "new"),
            ("e", "/"),
            ("e/g", "more"),
            ("kept", "kept"),
        ];
        assert_eq!(listing(&target), entries(&wanted));
        assert_eq!(listing(folder.path()).len(), 7, "something stayed behind");
    }

    #[test]
    fn an_archive_without_members_is_an_empty_directory() {
        for content in [vec![0; 1_024], gzip(&[0; 10_240])] {
            let folder = tempfile::tempdir().unwrap();
            let run = run(folder.path(), &content, "t");
            assert!(run.status.success(), "{run:?}");
            assert_eq!(listing(folder.path()), entries(&[("t", "/")]));
        }
    }

    #[test]
    fn an_archive_that_cannot_be_unpacked_changes_nothing() {
        let big = vec![b'x'; 100_000];
        let whole = tar(&[("d/f", b"new"), ("big", &big)]);
        let compressed = gzip(&whole);
        let cases = [
            tar(&[("d/f", b"new"), ("../out", b"out")]),
            whole[..50_000].to_vec(),
            compressed[..compressed.len() - 20].to_vec(),
            // A file where the target has a directory, and the other way round.
            tar(&[("a", b"new"), ("d", b"file")]),
            tar(&[("a", b"new"), ("kept/", b""), ("kept/x", b"x")]),
        ];
        for (number, content) in cases.iter().enumerate() {
            let folder = tempfile::tempdir().unwrap();
            let target = folder.path().join("t");
            fs::create_dir_all(target.join("d")).unwrap();
            fs::write(target.join("d/f"), "old").unwrap();
            fs::write(target.join("kept"), "kept").unwrap();
            let before = listing(folder.path());
            let refused = run(folder.path(), content, "t");
            assert!(!refused.status.success(), "{number}: {refused:?}");
            assert!(!refused.stderr.is_empty(), "{number}");
            assert_eq!(listing(folder.path()), before, "{number}");
            // What is no directory stays what it is.
            let refused = run(folder.path(), content, "t/kept");
            assert!(!refused.status.success(), "{number}: {refused:?}");
            assert_eq!(listing(folder.path()), before, "{number}");
        }
    }
}
