//! References to images, as people write them.

use super::OciError;

/// The registry of references that name none.
const DEFAULT_REGISTRY: &str = "docker.io";
/// What that name stands for on the wire.
const DEFAULT_REGISTRY_HOST: &str = "registry-1.docker.io";
/// The folder of that registry's own images.
const DEFAULT_FOLDER: &str = "library";
const DEFAULT_TAG: &str = "latest";
const LONGEST_NAME: usize = 255;
const LONGEST_TAG: usize = 128;
const LONGEST: usize = 1024;

/// A reference to an image: which registry, which repository there, and which of its images.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// A SHA-256 digest: `sha256:` and 64 hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Digest(String);

impl Digest {
    /// Reads `sha256:<hex>`.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let hex = text.strip_prefix("sha256:")?;
        let valid = hex.len() == 64
            && hex
                .bytes()
                .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        valid.then(|| Self(hex.to_owned()))
    }

    /// The digest of a whole text.
    pub(super) fn of(bytes: &[u8]) -> Self {
        use sha2::Digest as _;
        Self::of_hash(sha2::Sha256::new_with_prefix(bytes))
    }

    /// The digest that a hash has come to.
    pub(super) fn of_hash(hash: sha2::Sha256) -> Self {
        use sha2::Digest as _;
        Self(format!("{:x}", hash.finalize()))
    }

    /// The hexadecimal digits.
    pub(super) fn hex(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for Digest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "sha256:{}", self.0)
    }
}

impl Reference {
    /// The registry as it is written: `host` or `host:port`.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The registry as it is spoken to.
    pub fn host(&self) -> &str {
        match self.registry.as_str() {
            DEFAULT_REGISTRY => DEFAULT_REGISTRY_HOST,
            other => other,
        }
    }

    /// The repository in the registry.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag, where one is written.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, where one is written; it decides, whatever the tag.
    pub(super) fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// What the registry is asked for: the digest, else the tag.
    pub(super) fn wanted(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.clone(),
            (None, None) => DEFAULT_TAG.to_owned(),
        }
    }
}

impl std::fmt::Display for Reference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

impl std::str::FromStr for Reference {
    type Err = OciError;

    fn from_str(text: &str) -> Result<Self, OciError> {
        parse(text).map_err(|reason| OciError::Reference {
            reference: text.chars().take(200).collect(),
            reason,
        })
    }
}

fn parse(text: &str) -> Result<Reference, &'static str> {
    if text.len() > LONGEST {
        return Err("it is too long");
    }
    if text.is_empty() {
        return Err("it is empty");
    }
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => {
            let digest = Digest::parse(digest)
                .ok_or("its digest is not sha256: and 64 hexadecimal digits")?;
            (rest, Some(digest))
        }
        None => (text, None),
    };
    let (registry, rest) = split_registry(rest)?;
    let (name, tag) = match rest.rsplit_once(':') {
        Some((name, tag)) => (name, Some(valid_tag(tag)?)),
        None => (rest, None),
    };
    let tag = match (&tag, &digest) {
        (None, None) => Some(DEFAULT_TAG.to_owned()),
        _ => tag,
    };
    let repository = if registry == DEFAULT_REGISTRY && !name.contains('/') {
        format!("{DEFAULT_FOLDER}/{name}")
    } else {
        name.to_owned()
    };
    if registry.len() + repository.len() >= LONGEST_NAME {
        return Err("its name is longer than 255 characters");
    }
    if !repository.split('/').all(is_path_component) {
        return Err(
            "its name has to be lower-case letters and digits, separated by one of . _ __ - and /",
        );
    }
    Ok(Reference {
        registry,
        repository,
        tag,
        digest,
    })
}

/// The first part names a registry when it cannot be part of a repository: it has a dot or a port, or is `localhost`.
fn split_registry(text: &str) -> Result<(String, &str), &'static str> {
    let Some((first, rest)) = text.split_once('/') else {
        return Ok((DEFAULT_REGISTRY.to_owned(), text));
    };
    let names_registry = first.contains(['.', ':', '[']) || first == "localhost";
    if !names_registry && !first.bytes().any(|b| b.is_ascii_uppercase()) {
        return Ok((DEFAULT_REGISTRY.to_owned(), text));
    }
    if !is_host(first) {
        return Err("its registry is no host name or address with an optional port");
    }
    let registry = match first {
        "index.docker.io" | DEFAULT_REGISTRY_HOST => DEFAULT_REGISTRY,
        other => other,
    };
    Ok((registry.to_owned(), rest))
}

fn is_host(text: &str) -> bool {
    let (host, port) = if text.starts_with('[') {
        match text.split_once(']') {
            Some((address, "")) => (address, None),
            Some((address, port)) => match port.strip_prefix(':') {
                Some(port) => (address, Some(port)),
                None => return false,
            },
            None => return false,
        }
    } else {
        match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        }
    };
    let host_is_valid = match host.strip_prefix('[') {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => !host.is_empty() && host.split('.').all(is_host_label),
    };
    let port_is_valid = port.is_none_or(|port| {
        port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|n| n > 0)
    });
    host_is_valid && port_is_valid
}

fn is_host_label(label: &str) -> bool {
    !label.is_empty()
        && label.len() <= 63
        && label
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'-')
        && !label.starts_with('-')
        && !label.ends_with('-')
}

/// Letters and digits in groups, with a dot, one or two underscores, or any number of hyphens between them.
fn is_path_component(text: &str) -> bool {
    let is_word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = text.as_bytes();
    let ends_are_words =
        bytes.first().copied().is_some_and(is_word) && bytes.last().copied().is_some_and(is_word);
    ends_are_words
        && bytes.split(|b| is_word(*b)).all(|between| match between {
            b"" | b"." | b"_" | b"__" => true,
            other => other.iter().all(|b| *b == b'-'),
        })
}

fn valid_tag(tag: &str) -> Result<String, &'static str> {
    let is_word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let valid = tag.len() <= LONGEST_TAG
        && tag.bytes().next().is_some_and(is_word)
        && tag.bytes().all(|b| is_word(b) || b == b'.' || b == b'-');
    if valid {
        Ok(tag.to_owned())
    } else {
        Err("its tag has to be 1 to 128 letters, digits, dots, hyphens and underscores")
    }
}
