//! Secrets that come by the environment. They have no `Debug` and are never part of a message.

use std::fmt;

/// What `serve --help` says of them.
pub(super) const HELP: &str = "
  INSTAVM_BOOTSTRAP_API_KEY
      The first account's API key, used when the store is empty; else a random one is made. `instavm_sk_` and 16 to
      128 letters, digits, '-' and '_'.";

const KEY_PREFIX: &str = "instavm_sk_";

/// The API key that the first account gets.
#[derive(Clone)]
pub struct BootstrapKey(String);

impl BootstrapKey {
    /// The text of the key.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for BootstrapKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BootstrapKey(…)")
    }
}

/// All secrets of the environment.
#[derive(Clone, Debug, Default)]
pub struct Secrets {
    /// The first account's key, if one is wanted.
    pub bootstrap_api_key: Option<BootstrapKey>,
}

impl Secrets {
    /// Takes a variable if it is one of the secrets.
    pub(super) fn take(&mut self, name: &str, value: &str) -> Option<Result<(), &'static str>> {
        match name {
            "INSTAVM_BOOTSTRAP_API_KEY" => Some(self.take_bootstrap_key(value)),
            _ => None,
        }
    }

    fn take_bootstrap_key(&mut self, value: &str) -> Result<(), &'static str> {
        let fits = value.strip_prefix(KEY_PREFIX).is_some_and(|rest| {
            (16..=128).contains(&rest.len())
                && rest
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
        });
        if !fits {
            return Err(
                "must be `instavm_sk_` and 16 to 128 letters, digits, '-' and '_' (the value is not shown)",
            );
        }
        self.bootstrap_api_key = Some(BootstrapKey(value.to_owned()));
        Ok(())
    }
}
