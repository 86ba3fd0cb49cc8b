//! Which package sources and proxies this host's own apt uses, so that mirrors near it are used for images too.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The host's own sources of `release` as lines for `sources.list`; `None` when the host is another release or names
/// no complete set of its own.
pub(super) fn of_host(root: &Path, release: &str) -> Option<String> {
    let os_release = std::fs::read_to_string(root.join("etc/os-release")).ok()?;
    let field = |key: &str| {
        os_release
            .lines()
            .find_map(|line| line.strip_prefix(key)?.strip_prefix('='))
            .map(|value| value.trim_matches('"'))
    };
    if field("ID") != Some("debian") || field("VERSION_CODENAME") != Some(release) {
        return None;
    }
    let mut sources: Vec<Entry> = Vec::new();
    for file in source_files(root) {
        let Ok(text) = std::fs::read_to_string(&file) else {
            continue;
        };
        let entries = match file.extension().and_then(|e| e.to_str()) {
            Some("sources") => text.split("\n\n").flat_map(stanza_entries).collect(),
            _ => text.lines().filter_map(line_entry).collect::<Vec<_>>(),
        };
        for entry in entries {
            if entry.is_of(release) && !sources.contains(&entry) {
                sources.push(entry);
            }
        }
    }
    sources.iter().any(|entry| entry.suite == release).then(|| {
        sources
            .iter()
            .map(|entry| format!("deb {} {} main\n", entry.uri, entry.suite))
            .collect()
    })
}

/// The host's proxies for apt, as options for another apt.
pub(super) fn proxy_options() -> Vec<String> {
    let Ok(output) = Command::new("apt-config").arg("dump").output() else {
        return Vec::new();
    };
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter(|line| line.starts_with("Acquire::http") && line.contains("::Proxy"))
        .map(|line| line.trim_end_matches(';').to_owned())
        .collect()
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    uri: String,
    suite: String,
    main: bool,
    debian_key: bool,
}

impl Entry {
    /// Is it a part of the release as its makers publish it, and fit to be shown to VMs (no passwords, no local files)?
    fn is_of(&self, release: &str) -> bool {
        let part = self.suite.strip_prefix(release);
        let web = self.uri.starts_with("http://") || self.uri.starts_with("https://");
        self.main
            && self.debian_key
            && web
            && !self.uri.contains('@')
            && matches!(part, Some("" | "-updates" | "-security"))
    }
}

fn source_files(root: &Path) -> Vec<PathBuf> {
    let mut files = vec![root.join("etc/apt/sources.list")];
    let mut parts: Vec<PathBuf> = std::fs::read_dir(root.join("etc/apt/sources.list.d"))
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            let extension = path.extension().and_then(|e| e.to_str());
            matches!(extension, Some("list" | "sources"))
        })
        .collect();
    parts.sort();
    files.append(&mut parts);
    files
}

/// An entry of the one-line form: `deb [options] URI SUITE COMPONENT...`.
fn line_entry(line: &str) -> Option<Entry> {
    let rest = line.trim().strip_prefix("deb ")?.trim_start();
    let (options, rest) = match rest.strip_prefix('[') {
        Some(rest) => rest.split_once(']')?,
        None => ("", rest),
    };
    let mut words = rest.split_whitespace();
    Some(Entry {
        uri: words.next()?.to_owned(),
        suite: words.next()?.to_owned(),
        main: words.any(|component| component == "main"),
        debian_key: is_debian_key(options.split_once("signed-by=").map(|(_, key)| key)),
    })
}

/// The entries of a stanza of the `Types: … URIs: … Suites: …` form.
fn stanza_entries(stanza: &str) -> Vec<Entry> {
    let field = |key: &str| {
        stanza.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case(key).then_some(value.trim())
        })
    };
    let words = |key: &str| field(key).unwrap_or_default().split_whitespace();
    let off = field("Enabled").is_some_and(|value| value.eq_ignore_ascii_case("no"));
    if off || !words("Types").any(|kind| kind == "deb") {
        return Vec::new();
    }
    let mut entries = Vec::new();
    for uri in words("URIs") {
        for suite in words("Suites") {
            entries.push(Entry {
                uri: uri.to_owned(),
                suite: suite.to_owned(),
                main: words("Components").any(|component| component == "main"),
                debian_key: is_debian_key(field("Signed-By")),
            });
        }
    }
    entries
}

/// Sources signed by anyone else are of third parties.
fn is_debian_key(signed_by: Option<&str>) -> bool {
    signed_by.is_none_or(|key| key.contains("debian-archive"))
}
