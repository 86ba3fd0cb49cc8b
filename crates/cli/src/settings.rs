//! What is in force: flag, environment, configuration file, default, in this order.

use crate::arguments::Endpoint;
use crate::config::Config;
use crate::failure::Failure;

/// A value and where it comes from.
#[derive(Debug)]
pub(crate) struct Setting {
    pub(crate) value: String,
    pub(crate) source: &'static str,
}

/// What is in force.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) config: Config,
    /// The key, if there is one.
    pub(crate) api_key: Option<String>,
    pub(crate) api_key_source: &'static str,
    pub(crate) base_url: Setting,
    pub(crate) ssh_host: Setting,
}

fn given(flag: Option<&str>, variable: &str, stored: Option<String>) -> Option<Setting> {
    let setting = |value: &str, source| Setting {
        value: value.trim().to_owned(),
        source,
    };
    if let Some(value) = flag.filter(|value| !value.is_empty()) {
        return Some(setting(value, "flag"));
    }
    if let Some(value) = std::env::var(variable)
        .ok()
        .filter(|value| !value.is_empty())
    {
        return Some(setting(&value, "env"));
    }
    stored.map(|value| setting(&value, "config"))
}

impl Settings {
    /// Finds out what is in force.
    pub(crate) fn resolve(
        endpoint: &Endpoint,
        ssh_host: Option<&str>,
    ) -> Result<Settings, Failure> {
        let config = Config::load()?;
        let key = given(
            endpoint.api_key.as_deref(),
            "INSTAVM_API_KEY",
            config.api_key(),
        );
        let base_url = given(
            endpoint.base_url.as_deref(),
            "INSTAVM_BASE_URL",
            config.setting("base_url"),
        )
        .unwrap_or_else(|| Setting {
            value: instavm::DEFAULT_BASE_URL.to_owned(),
            source: "default",
        });
        let ssh_host = given(ssh_host, "INSTAVM_SSH_HOST", config.setting("ssh_host"))
            .unwrap_or_else(|| Setting {
                value: gateway(&base_url.value),
                source: "derived",
            });
        Ok(Settings {
            config,
            api_key_source: key.as_ref().map_or("missing", |key| key.source),
            api_key: key.map(|key| key.value).filter(|key| !key.is_empty()),
            base_url,
            ssh_host,
        })
    }
}

/// The SSH gateway that belongs to a platform.
fn gateway(base_url: &str) -> String {
    let host = host(base_url);
    match host.as_str() {
        "" => "instavm.dev".to_owned(),
        "localhost" | "127.0.0.1" => host,
        _ if host.contains("instavm") && host.contains("staging") => {
            "staging.instavm.dev".to_owned()
        }
        _ if host.contains("instavm") => "instavm.dev".to_owned(),
        _ => host,
    }
}

/// The host of a URL in small letters; empty when there is none.
fn host(url: &str) -> String {
    let Some((_, rest)) = url.split_once("//") else {
        return String::new();
    };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let place = authority.rsplit('@').next().unwrap_or_default();
    let host = match place.strip_prefix('[') {
        Some(address) => address.split(']').next().unwrap_or_default(),
        None => place.split(':').next().unwrap_or_default(),
    };
    host.to_lowercase()
}

/// A key that may be shown: its beginning and its end.
pub(crate) fn redacted(key: &str) -> String {
    let characters: Vec<char> = key.trim().chars().collect();
    if characters.len() <= 8 {
        return "*".repeat(characters.len());
    }
    let text = |part: &[char]| part.iter().collect::<String>();
    let end = characters.len() - 4;
    format!("{}...{}", text(&characters[..8]), text(&characters[end..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gateway_follows_the_platform() {
        for (url, expected) in [
            ("", "instavm.dev"),
            ("localhost:80", "instavm.dev"),
            ("http://LOCALHOST:8080/x", "localhost"),
            ("http://127.0.0.1:8080", "127.0.0.1"),
            ("https://api.instavm.io", "instavm.dev"),
            ("https://staging.api.instavm.io", "staging.instavm.dev"),
            ("https://me:pw@vm.example.com:1/a?b", "vm.example.com"),
            ("http://[::1]:8080", "::1"),
        ] {
            assert_eq!(gateway(url), expected, "{url}");
        }
    }

    #[test]
    fn short_keys_show_nothing() {
        assert_eq!(redacted("12345678"), "********");
        assert_eq!(redacted("123456789"), "12345678...6789");
    }
}
