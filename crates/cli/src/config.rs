//! The configuration file: `~/.instavm/config.json`.

use crate::failure::Failure;
use crate::json::{Json, Object};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

const DEFAULT: &str = "default";

/// The file's content, in order: a `default` profile is always there, and the active one exists.
#[derive(Debug)]
pub(crate) struct Config {
    path: PathBuf,
    schema_version: Json,
    active: String,
    profiles: Object,
}

/// Where the file is.
fn location() -> Result<PathBuf, Failure> {
    let home = std::env::home_dir().filter(|home| !home.as_os_str().is_empty());
    let home = home.ok_or_else(|| Failure::said("no home directory is known; set HOME"))?;
    Ok(home.join(".instavm").join("config.json"))
}

/// Trimmed text; `None` for null and blank.
fn text(value: Option<&Json>) -> Option<String> {
    let text = value.and_then(Json::display)?;
    let text = text.trim();
    (!text.is_empty()).then(|| text.to_owned())
}

fn normalised(profile: Object) -> Object {
    let auth = match profile.get("auth") {
        Some(Json::Object(auth)) => auth.clone(),
        _ => Object::default(),
    };
    let kind = text(auth.get("type")).unwrap_or_else(|| "api_key".to_owned());
    let key = text(auth.get("api_key"));
    let auth = auth.with("type", kind).with("api_key", key);
    let mut profile = profile.with("auth", auth);
    for field in ["base_url", "ssh_host"] {
        match text(profile.get(field)) {
            Some(value) => profile.set(field, value),
            None => profile.remove(field),
        }
    }
    profile
}

impl Config {
    /// Reads the file; what is missing in it, or the whole of it, is as at first.
    pub(crate) fn load() -> Result<Config, Failure> {
        let path = location()?;
        let content = match std::fs::read(&path) {
            Ok(bytes) => Json::parse(&bytes).map_err(|_| {
                Failure::said(format!(
                    "invalid JSON in the configuration {}",
                    path.display()
                ))
            })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Json::Null,
            Err(error) => {
                let message = format!(
                    "unable to read the configuration {}: {error}",
                    path.display()
                );
                return Err(Failure::Said(message));
            }
        };
        Ok(Config::from_content(path, &content))
    }

    fn from_content(path: PathBuf, content: &Json) -> Config {
        let mut profiles = Object::default();
        if let Some(Json::Object(stored)) = content.get("profiles") {
            for (name, profile) in stored.clone().into_entries() {
                if let Json::Object(profile) = profile {
                    profiles.set(name, normalised(profile));
                }
            }
        }
        if profiles.get(DEFAULT).is_none() {
            profiles.set(DEFAULT, normalised(Object::default()));
        }
        let active = content.get("active_profile").and_then(Json::as_text);
        let active = active.filter(|name| profiles.get(name).is_some());
        let schema_version = match content.get("schema_version") {
            Some(Json::Number(number)) if number.parse::<i64>().is_ok() => {
                Json::Number(number.clone())
            }
            _ => Json::from(1),
        };
        Config {
            path,
            schema_version,
            active: active.unwrap_or(DEFAULT).to_owned(),
            profiles,
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn active(&self) -> &str {
        &self.active
    }

    fn profile(&self) -> Object {
        match self.profiles.get(&self.active) {
            Some(Json::Object(profile)) => profile.clone(),
            _ => normalised(Object::default()),
        }
    }

    /// The key of the active profile.
    pub(crate) fn api_key(&self) -> Option<String> {
        text(
            self.profile()
                .get("auth")
                .and_then(|auth| auth.get("api_key")),
        )
    }

    /// `base_url` or `ssh_host` of the active profile.
    pub(crate) fn setting(&self, name: &str) -> Option<String> {
        text(self.profile().get(name))
    }

    /// Sets the key of the active profile, or clears it.
    pub(crate) fn set_api_key(&mut self, key: Option<&str>) {
        let mut profile = self.profile();
        let auth = match profile.get("auth") {
            Some(Json::Object(auth)) => auth.clone(),
            _ => Object::default(),
        };
        profile.set("auth", auth.with("api_key", key));
        self.profiles.set(self.active.clone(), normalised(profile));
    }

    /// Sets `base_url` or `ssh_host` of the active profile; blank removes it.
    pub(crate) fn set_setting(&mut self, name: &str, value: &str) {
        let profile = self.profile().with(name, value);
        self.profiles.set(self.active.clone(), normalised(profile));
    }

    /// Writes the file: whole or not at all, and only for its owner.
    pub(crate) fn save(&self) -> Result<(), Failure> {
        let content = Object::default()
            .with("schema_version", self.schema_version.clone())
            .with("active_profile", self.active.as_str())
            .with("profiles", self.profiles.clone());
        self.write(&Json::from(content).pretty()).map_err(|error| {
            let path = self.path.display();
            Failure::said(format!("unable to write config to {path}: {error}"))
        })
    }

    fn write(&self, content: &str) -> io::Result<()> {
        let directory = self
            .path
            .parent()
            .ok_or_else(|| io::Error::other("it has no directory"))?;
        std::fs::create_dir_all(directory)?;
        restrict(directory, 0o700)?;
        let mut file = tempfile::Builder::new()
            .prefix(".config.json.")
            .tempfile_in(directory)?;
        file.write_all(content.as_bytes())?;
        restrict(file.path(), 0o600)?;
        file.as_file().sync_all()?;
        file.persist(&self.path).map_err(|error| error.error)?;
        Ok(())
    }
}

#[cfg(unix)]
fn restrict(path: &Path, mode: u32) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
}

#[cfg(not(unix))]
fn restrict(_: &Path, _: u32) -> io::Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Config {
        Config::from_content(PathBuf::new(), &Json::parse(text.as_bytes()).unwrap())
    }

    #[test]
    fn nonsense_is_as_nothing() {
        for text in [
            "[]",
            "7",
            "{}",
            r#"{"profiles":[1],"active_profile":3,"schema_version":"x"}"#,
        ] {
            let config = read(text);
            assert_eq!(
                (config.active(), config.api_key()),
                (DEFAULT, None),
                "{text}"
            );
            assert_eq!(config.schema_version, Json::from(1));
        }
    }

    #[test]
    fn only_an_existing_profile_is_active() {
        let text = r#"{"active_profile":"work","profiles":{"work":{"auth":{"api_key":" k "},"base_url":" "},"x":1}}"#;
        let config = read(text);
        assert_eq!(config.active(), "work");
        assert_eq!(config.api_key().as_deref(), Some("k"));
        assert_eq!(config.setting("base_url"), None);
        assert_eq!(read(r#"{"active_profile":"none"}"#).active(), DEFAULT);
    }

    #[test]
    fn unknown_keys_of_a_profile_stay() {
        let text = r#"{"more":1,"profiles":{"default":{"colour":"red","auth":{"since":7,"api_key":"k"}}}}"#;
        let mut config = read(text);
        config.set_api_key(None);
        let expected = r#"{"default": {"colour": "red", "auth": {"since": 7, "api_key": null, "type": "api_key"}}}"#;
        assert_eq!(Json::from(config.profiles).to_string(), expected);
    }
}
