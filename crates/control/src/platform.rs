//! The platform: its parts, its start, its end.

use crate::api_key::service::{self as api_keys, KeyHolder, Keys};
use crate::body::Bodies;
use crate::egress::refusals::Refusals;
use crate::error::{Chain, Problem};
use crate::exclusive::Exclusive;
use crate::execution::answer::Answers;
use crate::live::Live;
use crate::metrics::Metrics;
use crate::share::Doors;
use crate::snapshot::build::Builds;
use crate::tasks::Tasks;
use crate::{Settings, openapi, reconcile, router};
use axum::Router;
use instavm_node_api::Node;
use instavm_store::{Database, StoreError};
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// What a platform is made of.
pub struct Dependencies {
    /// Its records.
    pub database: Database,
    /// The node that runs its VMs.
    pub node: Arc<dyn Node>,
    /// The gateway that serves its shares.
    pub doors: Arc<dyn Doors>,
    /// Its limits.
    pub settings: Settings,
}

impl std::fmt::Debug for Dependencies {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Dependencies")
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

/// Why a platform could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The records could not be read or brought in line with the node.
    #[error("bringing the records in line with the node failed")]
    Records(#[from] StoreError),
    /// The API's document could not be written.
    #[error("writing the API's document failed")]
    Document(#[source] serde_json::Error),
}

/// The platform. Cheap to clone; all clones are the same one.
#[derive(Clone)]
pub struct Platform {
    inner: Arc<Inner>,
}

/// The platform's parts.
pub struct Inner {
    pub(crate) database: Database,
    pub(crate) node: Arc<dyn Node>,
    pub(crate) doors: Arc<dyn Doors>,
    pub(crate) settings: Settings,
    pub(crate) keys: Keys,
    pub(crate) live: Live,
    pub(crate) metrics: Metrics,
    pub(crate) answers: Answers,
    pub(crate) bodies: Bodies,
    pub(crate) builds: Builds,
    pub(crate) exclusive: Exclusive,
    pub(crate) refusals: Refusals,
    /// Everything that runs beside requests.
    pub(crate) tracker: Tasks,
    /// Tells it to end.
    pub(crate) stopping: CancellationToken,
    /// The API's document as JSON.
    pub(crate) document: String,
}

impl Deref for Platform {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        &self.inner
    }
}

impl std::fmt::Debug for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Platform").finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inner").finish_non_exhaustive()
    }
}

impl Platform {
    /// Loads what is kept in memory, brings records and node in line, takes up unfinished executions, and follows the
    /// ends of VMs from then on.
    ///
    /// # Errors
    /// [`StartError`] when the records cannot be read or written.
    pub async fn start(dependencies: Dependencies) -> Result<Platform, StartError> {
        let Dependencies {
            database,
            node,
            doors,
            settings,
        } = dependencies;
        let platform = Platform {
            inner: Arc::new(Inner {
                database,
                node,
                doors,
                bodies: Bodies::new(&settings),
                builds: Builds::new(&settings),
                exclusive: Exclusive::default(),
                refusals: Refusals::default(),
                settings,
                keys: Keys::default(),
                live: Live::default(),
                metrics: Metrics::new(),
                answers: Answers::default(),
                tracker: Tasks::default(),
                stopping: CancellationToken::new(),
                document: openapi::document()
                    .to_pretty_json()
                    .map_err(StartError::Document)?,
            }),
        };
        Box::pin(reconcile::start(&platform)).await?;
        Ok(platform)
    }

    /// Every route.
    pub fn router(&self) -> Router {
        router::build(self)
    }

    /// Reads accounts and keys anew: what another process has changed counts from now on. Without this call it counts
    /// within a second.
    ///
    /// # Errors
    /// [`StoreError`] when they cannot be read; then every key is looked up when it is next used.
    pub async fn reload_accounts(&self) -> Result<(), StoreError> {
        self.keys.reload(&self.database).await
    }

    /// Whose an API key is, from memory alone: no answer means little.
    #[must_use]
    pub fn known_key(&self, key: &str) -> Option<KeyHolder> {
        self.keys.known(key)
    }

    /// Whose an API key is; `None` when it is unknown or revoked, or the records cannot be read.
    pub async fn key_holder(&self, key: &str) -> Option<KeyHolder> {
        api_keys::holder(self, key).await
    }

    /// The account of the API key of this number; `None` when it is revoked, or the records cannot be read.
    pub async fn account_of_key(&self, key_id: i64) -> Option<i64> {
        api_keys::account_of(self, key_id).await
    }

    /// Does something to its end, whatever becomes of the caller.
    pub(crate) async fn carry_out<T: Send + 'static>(
        &self,
        what: &str,
        work: impl Future<Output = Result<T, Problem>> + Send + 'static,
    ) -> Result<T, Problem> {
        self.tracker
            .spawn(work)
            .await
            .map_err(|error| Problem::internal(what, error))?
    }

    /// Ends what runs beside requests: VMs that are being made or ended are waited for, executions in the background
    /// are taken up again at the next start. VMs live on. Whether all of it ended before the deadline.
    pub async fn drain(&self, deadline: Duration) -> bool {
        self.stopping.cancel();
        self.tracker.close();
        let ended = tokio::time::timeout(deadline, self.tracker.wait())
            .await
            .is_ok();
        if let Err(error) = self.keys.flush(&self.database).await {
            tracing::warn!(error = %Chain(&error), "writing down when keys were used failed");
        }
        ended
    }
}
