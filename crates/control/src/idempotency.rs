//! Requests that may be sent again: with the header `Idempotency-Key`, what a request makes is made once.
//!
//! A request under a key is claimed by a row before anything is made; its answer is written into the row and given again
//! for a day. All ids that a request gives come from the row's nonce, so a request that was cut off (the platform ended, or
//! the caller was told that it takes too long) finds what it made when it comes again. Secrets are no part of a stored
//! answer: they come from the nonce and the text of the caller's own API key, of which only a hash is kept.

use crate::Platform;
use crate::clock::Moment;
use crate::error::{Chain, Kind, Problem};
use crate::extract::key_of;
use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use instavm_store::{Database, StoreError};
use rand::Rng;
use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};

/// The header.
pub(crate) const HEADER: &str = "idempotency-key";
/// The longest key.
const KEY_LIMIT: usize = 255;

/// What a request that may be sent again is told by, beside its body.
#[derive(Debug)]
pub(crate) struct Repeatable {
    key: Option<String>,
    target: String,
    caller_key: String,
}

impl FromRequestParts<Platform> for Repeatable {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &Platform) -> Result<Self, Problem> {
        let key = match parts.headers.get(HEADER) {
            None => None,
            Some(key) => {
                let key = key.to_str().unwrap_or_default().trim();
                if key.is_empty() || key.len() > KEY_LIMIT {
                    return Err(Problem::invalid(
                        "Idempotency-Key",
                        format!("must be 1 to {KEY_LIMIT} visible ASCII characters"),
                    ));
                }
                Some(key.to_owned())
            }
        };
        let path = parts.uri.path_and_query().map_or("", |text| text.as_str());
        Ok(Repeatable {
            key,
            target: format!("{} {path}", parts.method),
            caller_key: key_of(&parts.headers).unwrap_or_default().to_owned(),
        })
    }
}

/// The SHA-256 of a body.
pub(crate) type BodyDigest = [u8; 32];

/// Where the ids of a request come from.
#[derive(Clone, Debug)]
pub(crate) struct Nonce([u8; 32]);

impl Nonce {
    fn random() -> Nonce {
        Nonce(rand::rng().random())
    }

    fn bytes(&self, parts: &[&str]) -> [u8; 32] {
        let mut inner = Sha256::new().chain_update(self.0);
        for part in parts {
            inner.update((part.len() as u64).to_be_bytes());
            inner.update(part);
        }
        Sha256::digest(inner.finalize()).into()
    }

    /// 20 characters of `[a-z0-9]` after a prefix.
    pub(crate) fn id(&self, prefix: &str, number: u32) -> String {
        const CHARACTERS: &[u8] = b"abcdefghijklmnopqrstuvwxyz0123456789";
        let bytes = self.bytes(&[prefix, &number.to_string()]);
        let text = bytes[..20]
            .iter()
            .map(|byte| char::from(CHARACTERS[usize::from(*byte) % CHARACTERS.len()]));
        prefix.chars().chain(text).collect()
    }

    /// A UUID.
    pub(crate) fn uuid(&self, number: u32) -> String {
        let bytes = self.bytes(&["uuid", &number.to_string()]);
        let (first, _) = bytes.split_at(16);
        let mut random = [0; 16];
        random.copy_from_slice(first);
        uuid::Builder::from_random_bytes(random)
            .into_uuid()
            .to_string()
    }
}

/// One carrying out of a request.
#[derive(Clone, Debug)]
pub(crate) struct Attempt {
    pub nonce: Nonce,
    /// It was begun before and cut off: what it made is there under its ids.
    pub is_repeated: bool,
    /// What secrets come from: the text of the caller's API key, so that they come out the same again; a random text
    /// for a request that is not sent again.
    secret: String,
}

impl Attempt {
    /// Letters and digits that nobody can compute who does not know the caller's API key.
    pub(crate) fn secret(&self, length: usize) -> String {
        const CHARACTERS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
        let blocks = (0u32..).flat_map(|block| {
            self.nonce
                .bytes(&["secret", &self.secret, &block.to_string()])
        });
        // Bytes beyond the last whole round would make some characters likelier.
        let fair = 256 - 256 % CHARACTERS.len();
        blocks
            .map(usize::from)
            .filter(|byte| *byte < fair)
            .map(|byte| char::from(CHARACTERS[byte % CHARACTERS.len()]))
            .take(length)
            .collect()
    }
}

/// An answer, and the carrying out that it came from.
pub(crate) struct Answered<T> {
    pub answer: T,
    pub attempt: Attempt,
}

/// Carries a request out, once if it has a key. A request that fails is forgotten, so that it can be tried again; one
/// that takes too long goes on, and is waited for when it comes again.
pub(crate) async fn once<T, W, Working>(
    platform: &Platform,
    account_id: i64,
    repeatable: Repeatable,
    body: BodyDigest,
    work: W,
) -> Result<Answered<T>, Problem>
where
    T: Serialize + DeserializeOwned + Send + 'static,
    W: FnOnce(Attempt) -> Working,
    Working: Future<Output = Result<T, Problem>> + Send + 'static,
{
    let Some(key) = &repeatable.key else {
        let attempt = Attempt {
            nonce: Nonce::random(),
            is_repeated: false,
            secret: hex(&rand::rng().random::<[u8; 32]>()),
        };
        // Boxed, because the work of some requests is large.
        let answer = Box::pin(work(attempt.clone())).await?;
        return Ok(Answered { answer, attempt });
    };
    let claim = Claim {
        account_id,
        key_hash: hex(&Sha256::digest(key.as_bytes())),
        fingerprint: fingerprint(&repeatable, &body),
    };
    let Some(guard) = platform.exclusive.try_hold(&claim.lock()) else {
        return Err(Problem::new(
            Kind::Conflict,
            "Idempotency-Key: a request under this key is under way; ask again when it has been answered",
        ));
    };
    let claimed = claim.make(platform).await?;
    let attempt = Attempt {
        nonce: claimed.nonce,
        is_repeated: claimed.is_repeated,
        secret: repeatable.caller_key,
    };
    if let Some(answer) = claimed.answer {
        let answer = serde_json::from_str(&answer)
            .map_err(|error| Problem::internal("reading a stored answer", error))?;
        return Ok(Answered { answer, attempt });
    }
    let working = Box::pin(work(attempt.clone()));
    let task = {
        let platform = platform.clone();
        async move {
            let result = working.await;
            let outcome = match &result {
                // What can be an answer can be written.
                Ok(answer) => Outcome::Answer(serde_json::to_string(answer).unwrap_or_default()),
                Err(problem) if problem.kind == Kind::TimedOut => Outcome::GoesOn,
                Err(_) => Outcome::Failed,
            };
            claim.settle(&platform.database, outcome).await;
            drop(guard);
            result
        }
    };
    let answer = platform.carry_out("the request", task).await?;
    Ok(Answered { answer, attempt })
}

/// What the request is: the same again has the same.
fn fingerprint(repeatable: &Repeatable, body: &BodyDigest) -> String {
    let digest = Sha256::new()
        .chain_update(repeatable.target.as_bytes())
        .chain_update([0])
        // Another key of the account would come to other secrets.
        .chain_update(Sha256::digest(repeatable.caller_key.as_bytes()))
        .chain_update(body);
    hex(&digest.finalize())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A request under a key.
struct Claim {
    account_id: i64,
    key_hash: String,
    fingerprint: String,
}

/// What came of its carrying out.
enum Outcome {
    Answer(String),
    /// It takes longer than the caller waits.
    GoesOn,
    Failed,
}

/// What is on record of it.
struct Claimed {
    nonce: Nonce,
    is_repeated: bool,
    answer: Option<String>,
}

impl Claim {
    fn lock(&self) -> String {
        format!("request:{}:{}", self.account_id, self.key_hash)
    }

    async fn make(&self, platform: &Platform) -> Result<Claimed, Problem> {
        let database = &platform.database;
        let now = Moment::now();
        let old = now.minus(platform.settings.request_retention);
        let own = || vec![self.account_id.into(), self.key_hash.as_str().into()];
        database
            .execute(
                "DELETE FROM requests WHERE account_id = $1 AND key_hash = $2 AND created_at <= $3",
                [own(), vec![old.0.into()]].concat(),
            )
            .await?;
        let nonce = Nonce::random();
        let values = vec![
            self.fingerprint.as_str().into(),
            nonce.0.to_vec().into(),
            now.0.into(),
        ];
        let is_new = database
            .execute(
                "INSERT INTO requests (account_id, key_hash, fingerprint, nonce, created_at) \
                 VALUES ($1, $2, $3, $4, $5) ON CONFLICT (account_id, key_hash) DO NOTHING",
                [own(), values].concat(),
            )
            .await?
            > 0;
        if is_new {
            return Ok(Claimed {
                nonce,
                is_repeated: false,
                answer: None,
            });
        }
        let row = database
            .fetch_optional(
                "SELECT fingerprint, nonce, answer FROM requests WHERE account_id = $1 AND key_hash = $2",
                own(),
            )
            .await?;
        let row = row.ok_or_else(|| {
            Problem::new(
                Kind::Conflict,
                "Idempotency-Key: its request was just given up; ask again",
            )
        })?;
        if row.get::<String>("fingerprint")? != self.fingerprint {
            return Err(Problem::invalid(
                "Idempotency-Key",
                "another request was sent under this key (another path, query, body or API key); use a new key for a \
                 new request",
            ));
        }
        let nonce = row.get::<Vec<u8>>("nonce")?;
        let nonce = nonce.try_into().map_err(|_| StoreError::Content {
            column: "nonce",
            found: "another number of bytes".to_owned(),
        })?;
        Ok(Claimed {
            nonce: Nonce(nonce),
            is_repeated: true,
            answer: row.get("answer")?,
        })
    }

    /// Writes the answer down, or forgets the request when it failed.
    async fn settle(&self, database: &Database, outcome: Outcome) {
        let own = || vec![self.account_id.into(), self.key_hash.as_str().into()];
        let settled =
            match outcome {
                Outcome::Answer(text) => database
                    .execute(
                        "UPDATE requests SET answer = $3 WHERE account_id = $1 AND key_hash = $2",
                        [own(), vec![text.into()]].concat(),
                    )
                    .await,
                Outcome::GoesOn => return,
                Outcome::Failed => {
                    database
                        .execute(
                            "DELETE FROM requests WHERE account_id = $1 AND key_hash = $2",
                            own(),
                        )
                        .await
                }
            };
        if let Err(error) = settled {
            // Sent again, the request finds what it made by the ids.
            tracing::error!(error = %Chain(&error), "recording the answer to a request failed");
        }
    }
}

/// Drops some of the requests that were made before a moment; returns how many.
pub(crate) async fn drop_old(
    database: &Database,
    before: Moment,
    limit: u32,
) -> Result<u64, StoreError> {
    database
        .execute(
            "DELETE FROM requests WHERE created_at IN (SELECT created_at FROM requests WHERE created_at < $1 \
             ORDER BY created_at LIMIT $2)",
            vec![before.0.into(), limit.into()],
        )
        .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_and_secrets_come_out_the_same_again() {
        let attempt = |nonce: &Nonce, secret: &str| Attempt {
            nonce: nonce.clone(),
            is_repeated: false,
            secret: secret.to_owned(),
        };
        let (one, other) = (Nonce::random(), Nonce::random());
        assert_eq!(one.id("vm_", 0), one.id("vm_", 0));
        assert_eq!(one.id("vm_", 0).len(), 23);
        assert_ne!(one.id("vm_", 0), one.id("vm_", 1));
        assert_ne!(one.id("vm_", 0), other.id("vm_", 0));
        assert!(uuid::Uuid::try_parse(&one.uuid(3)).is_ok());
        let first = attempt(&one, "key").secret(43);
        assert_eq!(first.len(), 43);
        assert_eq!(first, attempt(&one, "key").secret(43));
        assert_ne!(first, attempt(&one, "other").secret(43));
        assert_ne!(first, attempt(&other, "key").secret(43));
    }
}
