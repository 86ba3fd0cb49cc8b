//! The rules of SSH keys: what a key line is, and its fingerprint.

use super::rows;
use crate::Platform;
use crate::clock::Moment;
use crate::error::{Kind, Problem};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use sha2::{Digest, Sha256};

/// Bytes of a key line.
const LINE_LIMIT: usize = 16 << 10;
/// Kinds of keys, and the parts of their blobs after the kind.
const KINDS: [(&str, usize); 7] = [
    ("ssh-ed25519", 1),
    ("ssh-rsa", 2),
    ("ecdsa-sha2-nistp256", 2),
    ("ecdsa-sha2-nistp384", 2),
    ("ecdsa-sha2-nistp521", 2),
    ("sk-ssh-ed25519@openssh.com", 2),
    ("sk-ecdsa-sha2-nistp256@openssh.com", 3),
];

/// A key of an account.
#[derive(Clone, Debug)]
pub(crate) struct SshKey {
    pub id: i64,
    pub line: Line,
    pub created_at: Moment,
}

/// A checked key line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Line {
    pub kind: String,
    pub text: String,
    pub fingerprint: String,
    pub comment: String,
}

impl Line {
    /// Reads one line of an OpenSSH public key file.
    pub(crate) fn parse(text: &str) -> Result<Line, Problem> {
        let text = text.trim();
        let wrong = |why: &str| Problem::invalid("public_key", why);
        if text.len() > LINE_LIMIT {
            return Err(wrong(&format!("has more than {LINE_LIMIT} bytes")));
        }
        if text.contains("PRIVATE KEY") {
            return Err(wrong(
                "this is a private key; send the line in the file that ends in .pub",
            ));
        }
        if text.contains(['\n', '\r', '\0']) {
            return Err(wrong("must be a single line"));
        }
        let mut words = text.splitn(3, char::is_whitespace);
        let kind = words.next().unwrap_or_default();
        let Some((_, parts)) = KINDS.iter().find(|(known, _)| *known == kind) else {
            let known: Vec<_> = KINDS.iter().map(|(known, _)| *known).collect();
            return Err(wrong(&format!(
                "must begin with one of {}",
                known.join(", ")
            )));
        };
        let blob = STANDARD
            .decode(words.next().unwrap_or_default().trim())
            .map_err(|_| wrong("its second word must be base64"))?;
        if !is_key(&blob, kind, *parts) {
            return Err(wrong(
                "its second word is no key of the kind that the first names",
            ));
        }
        Ok(Line {
            kind: kind.to_owned(),
            text: text.to_owned(),
            fingerprint: format!("SHA256:{}", STANDARD_NO_PAD.encode(Sha256::digest(&blob))),
            comment: words.next().unwrap_or_default().trim().to_owned(),
        })
    }
}

/// Whether the blob is the kind's name and so many parts, each after its length, and nothing more.
fn is_key(blob: &[u8], kind: &str, parts: usize) -> bool {
    let Some((name, mut rest)) = part(blob) else {
        return false;
    };
    for _ in 0..parts {
        match part(rest) {
            Some((content, after)) if !content.is_empty() => rest = after,
            // Only the application of a hardware key may be empty, and it never is in practice.
            _ => return false,
        }
    }
    let right_length = kind != "ssh-ed25519" || blob.len() == 4 + kind.len() + 4 + 32;
    name == kind.as_bytes() && rest.is_empty() && right_length
}

fn part(blob: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = blob.split_first_chunk::<4>()?;
    rest.split_at_checked(usize::try_from(u32::from_be_bytes(*length)).ok()?)
}

/// Adds a key. One that the account has already is returned as it is.
pub(crate) async fn add(
    platform: &Platform,
    account_id: i64,
    text: &str,
) -> Result<SshKey, Problem> {
    let line = Line::parse(text)?;
    Ok(rows::insert_or_find(&platform.database, account_id, line).await?)
}

/// The account's keys, oldest first.
pub(crate) async fn list(platform: &Platform, account_id: i64) -> Result<Vec<SshKey>, Problem> {
    Ok(rows::all(&platform.database, account_id).await?)
}

/// Deletes a key.
pub(crate) async fn delete(platform: &Platform, account_id: i64, id: i64) -> Result<(), Problem> {
    if rows::delete(&platform.database, account_id, id).await? {
        Ok(())
    } else {
        Err(Problem::new(
            Kind::NotFound,
            "SSH key not found: it does not exist, or belongs to another account",
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f me@here and there";

    #[test]
    fn a_line_gives_fingerprint_and_comment() {
        let line = Line::parse(&format!("  {KEY}\n")).unwrap();
        assert_eq!(line.kind, "ssh-ed25519");
        assert_eq!(line.comment, "me@here and there");
        assert!(line.fingerprint.starts_with("SHA256:") && !line.fingerprint.ends_with('='));
    }

    #[test]
    fn what_is_no_key_is_refused() {
        let cut = &KEY[..60];
        let other = KEY.replacen("ssh-ed25519", "ssh-rsa", 1);
        let long = format!("ssh-rsa {}", "A".repeat(LINE_LIMIT));
        let two = format!("{KEY}\n{KEY}");
        for wrong in [
            "",
            "ssh-ed25519",
            "ssh-dss AAAA",
            "ssh-ed25519 ???",
            "ssh-ed25519 AAAA",
            "-----BEGIN OPENSSH PRIVATE KEY-----",
            cut,
            &other,
            &long,
            &two,
        ] {
            assert!(Line::parse(wrong).is_err(), "{wrong}");
        }
    }
}
