//! The sources of configuration: file, environment, flags.

use crate::config::keys::{KEYS, KeySpec, environment_name};
use crate::config::secrets::Secrets;
use crate::config::value::{KeyValue, Raw};
use crate::config::{DEFAULT_FILE, Fault};
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::Path;

/// Where a value stands.
#[derive(Clone, Debug)]
pub(super) enum Origin {
    Default,
    File(String),
    Environment(String),
    Flag(&'static str),
}

impl Origin {
    /// How a fault names the place of a key.
    pub(super) fn place(&self, key: &str) -> String {
        match self {
            Origin::Default => format!("default of {key}"),
            Origin::File(path) => format!("{path}: {key}"),
            Origin::Environment(name) => name.clone(),
            Origin::Flag(name) => (*name).to_owned(),
        }
    }
}

/// All values that the sources give, by key, the strongest source last.
#[derive(Debug, Default)]
pub(super) struct Given(BTreeMap<&'static str, Vec<(Origin, Raw)>>);

impl Given {
    fn add(&mut self, key: &'static str, origin: Origin, raw: Raw) {
        self.0.entry(key).or_default().push((origin, raw));
    }

    /// Adds a value of the command line.
    pub(super) fn flag(
        &mut self,
        key: &'static str,
        name: &'static str,
        value: &OsStr,
        faults: &mut Vec<Fault>,
    ) {
        match value.to_str() {
            Some(text) => self.add(key, Origin::Flag(name), Raw::Text(text.to_owned())),
            None => faults.push(Fault::new(name, "is not UTF-8")),
        }
    }

    /// The value of a key: the strongest source's. Faults of the weaker ones are noted too.
    pub(super) fn resolve<T: KeyValue>(
        &self,
        spec: &KeySpec,
        faults: &mut Vec<Fault>,
    ) -> Option<T> {
        let given = self.0.get(spec.path).map_or(&[][..], Vec::as_slice);
        if given.is_empty() {
            return match spec.default {
                Some(text) => read(&Origin::Default, &Raw::Text(text.to_owned()), spec, faults),
                None => T::unset(),
            };
        }
        let mut value = None;
        for (origin, raw) in given {
            value = read(origin, raw, spec, faults);
        }
        value
    }
}

fn read<T: KeyValue>(
    origin: &Origin,
    raw: &Raw,
    spec: &KeySpec,
    faults: &mut Vec<Fault>,
) -> Option<T> {
    let value = match T::read(raw) {
        Ok(value) => value,
        Err(message) => {
            faults.push(Fault::at(origin, spec.path, message));
            return None;
        }
    };
    if let (Some((least, greatest)), Some(number)) = (spec.range, value.number())
        && !(least..=greatest).contains(&number)
    {
        faults.push(Fault::at(
            origin,
            spec.path,
            format!("must be {least} to {greatest}, not {number}"),
        ));
        return None;
    }
    Some(value)
}

/// Reads the TOML file: the named one, which must be there, or the default one if it is.
pub(super) fn read_file(named: Option<&Path>, given: &mut Given, faults: &mut Vec<Fault>) {
    let path = named.unwrap_or(Path::new(DEFAULT_FILE));
    let place = path.display().to_string();
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if named.is_none() && error.kind() == std::io::ErrorKind::NotFound => return,
        Err(error) => {
            faults.push(Fault::new(place, format!("cannot be read: {error}")));
            return;
        }
    };
    match text.parse::<toml::Table>() {
        Ok(table) => flatten("", table, &place, given, faults),
        Err(error) => {
            // Without the line itself, which may hold a password.
            let at = error.span().map_or(0, |span| span.start);
            let before = text.get(..at).unwrap_or(&text);
            let line = before.matches('\n').count() + 1;
            faults.push(Fault::new(
                place,
                format!("line {line}: {}", error.message()),
            ));
        }
    }
}

fn flatten(
    prefix: &str,
    table: toml::Table,
    place: &str,
    given: &mut Given,
    faults: &mut Vec<Fault>,
) {
    for (name, value) in table {
        let path = if prefix.is_empty() {
            name
        } else {
            format!("{prefix}.{name}")
        };
        if let Some(key) = KEYS.iter().find(|key| key.path == path) {
            given.add(key.path, Origin::File(place.to_owned()), Raw::Toml(value));
            continue;
        }
        match value {
            toml::Value::Table(inner) if is_section(&path) => {
                flatten(&path, inner, place, given, faults);
            }
            _ => faults.push(Fault::new(format!("{place}: {path}"), UNKNOWN)),
        }
    }
}

fn is_section(path: &str) -> bool {
    KEYS.iter().any(|key| {
        key.path
            .strip_prefix(path)
            .is_some_and(|rest| rest.starts_with('.'))
    })
}

const UNKNOWN: &str = "no such key; `instavmd serve --help` lists all";

/// Names that start like ours and are read by others: the clients, the build, the tests.
const OTHERS: &[&str] = &[
    "INSTAVM_API_KEY",
    "INSTAVM_BASE_URL",
    "INSTAVM_SSH_HOST",
    "INSTAVM_AGENT_BINARY",
    "INSTAVM_MASTER_KEY",
];
const OTHERS_PREFIXES: &[&str] = &["INSTAVM_UPDATE_", "INSTAVM_TEST_", "INSTAVM_SOAK_"];

/// Reads the environment.
pub(super) fn read_environment(
    environment: impl Iterator<Item = (OsString, OsString)>,
    given: &mut Given,
    secrets: &mut Secrets,
    faults: &mut Vec<Fault>,
) {
    let mut ours: Vec<(String, OsString)> = environment
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value)))
        .filter(|(name, _)| name.starts_with("INSTAVM_"))
        .collect();
    ours.sort();
    for (name, value) in ours {
        let others = OTHERS_PREFIXES
            .iter()
            .any(|prefix| name.starts_with(prefix));
        if others || OTHERS.contains(&name.as_str()) {
            continue;
        }
        let Ok(text) = value.into_string() else {
            faults.push(Fault::new(name, "is not UTF-8"));
            continue;
        };
        if let Some(outcome) = secrets.take(&name, &text) {
            if let Err(message) = outcome {
                faults.push(Fault::new(name, message));
            }
            continue;
        }
        match KEYS.iter().find(|key| environment_name(key.path) == name) {
            Some(key) => given.add(key.path, Origin::Environment(name), Raw::Text(text)),
            None => faults.push(Fault::new(name, UNKNOWN)),
        }
    }
}
