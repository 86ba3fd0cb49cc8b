//! The rules of shares. A share belongs to a VM and one of its ports; the gateway serves it.

use super::door::{Door, DoorError};
use super::rows;
use crate::Platform;
use crate::clock::Moment;
use crate::error::{Chain, Kind, Problem};
use crate::session::service as sessions;
use crate::vm::rows as vm_rows;
use crate::vm::service::VmStatus;
use instavm_node_api::VmId;
use instavm_store::{Database, StoreError};
use std::time::Duration;

/// Open shares that one VM may have.
const PER_VM: i64 = 64;
/// Shares that a list holds.
const LISTED: u32 = 1_000;
/// How long, and of how many, the URLs of shares that have ended still say so after a restart.
const REMEMBERED: Duration = Duration::from_secs(86_400);
const REMEMBERED_MOST: u32 = 1_024;

/// Where a share is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    Open,
    /// Its owner ended it.
    Revoked,
    /// Its VM ended.
    Ended,
}

impl Status {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Status::Open => "open",
            Status::Revoked => "revoked",
            Status::Ended => "ended",
        }
    }

    pub(crate) fn parse(text: &str) -> Option<Status> {
        [Status::Open, Status::Revoked, Status::Ended]
            .into_iter()
            .find(|status| status.as_str() == text)
    }
}

/// A port of a VM under a URL.
#[derive(Clone, Debug)]
pub(crate) struct Share {
    pub id: String,
    pub account_id: i64,
    pub vm_id: VmId,
    pub session_id: String,
    pub port: u16,
    pub is_public: bool,
    pub status: Status,
    /// The port of the host that it is found under, where shares have ports of their own.
    pub listen_port: Option<u16>,
    pub created_at: Moment,
    pub updated_at: Moment,
}

impl Share {
    fn door(&self) -> Door {
        Door {
            id: self.id.clone(),
            account_id: self.account_id,
            vm: self.vm_id.clone(),
            port: self.port,
            is_public: self.is_public,
            created_at: self.created_at.system_time(),
            listen_port: self.listen_port,
            is_revoked: self.status == Status::Revoked,
            is_over: self.status != Status::Open,
        }
    }
}

impl From<DoorError> for Problem {
    fn from(error: DoorError) -> Self {
        Problem::new(Kind::AtCapacity, error.to_string())
    }
}

/// What a share is to be of.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    pub vm_id: Option<String>,
    pub session_id: Option<String>,
    pub port: u16,
    /// As it is when absent; a new one is private then.
    pub is_public: Option<bool>,
}

fn ended() -> Problem {
    Problem::new(
        Kind::Conflict,
        "the VM does not run: it has ended, or is still being made",
    )
}

/// The VM that a share is to be of. A session whose VM has expired gets another one first.
async fn vm_of(
    platform: &Platform,
    account_id: i64,
    wanted: &Wanted,
) -> Result<(VmId, String), Problem> {
    let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    if let Some(id) = given(&wanted.vm_id) {
        let row = vm_rows::find(&platform.database, account_id, &id).await?;
        let row = row.ok_or_else(|| {
            let message = "VM not found: it does not exist, or belongs to another account";
            Problem::new(Kind::NotFound, message)
        })?;
        let session = sessions::find(platform, account_id, &row.session_id).await?;
        let runs = session.active_vm().is_some_and(|vm| vm.id == row.id);
        return if runs {
            Ok((row.id, row.session_id))
        } else {
            Err(ended())
        };
    }
    let Some(id) = given(&wanted.session_id) else {
        return Err(Problem::invalid(
            "vm_id",
            "is missing: give vm_id, or session_id for the VM of a session",
        ));
    };
    let session = sessions::find(platform, account_id, &id).await?;
    let vm = sessions::usable_vm(platform, &session).await?;
    Ok((vm.id.clone(), session.id.clone()))
}

/// Opens a share of a VM's port under this id, or finds the one that is open already.
pub(crate) async fn create(
    platform: &Platform,
    account_id: i64,
    id: String,
    wanted: Wanted,
) -> Result<Share, Problem> {
    let (vm_id, session_id) = vm_of(platform, account_id, &wanted).await?;
    let there = platform.clone();
    let task = async move {
        let platform = there;
        let _one = platform
            .exclusive
            .hold(&format!("shares:{}", vm_id.0))
            .await;
        if let Some(found) = rows::of_port(&platform.database, &vm_id, wanted.port).await? {
            return with_visibility(&platform, found, wanted.is_public).await;
        }
        let now = Moment::now();
        let share = Share {
            id,
            account_id,
            vm_id,
            session_id,
            port: wanted.port,
            is_public: wanted.is_public.unwrap_or(false),
            status: Status::Open,
            listen_port: None,
            created_at: now,
            updated_at: now,
        };
        open(&platform, share).await
    };
    platform.carry_out("opening the share", task).await
}

/// The row comes first: a platform that dies in between finds it and opens the share.
async fn open(platform: &Platform, mut share: Share) -> Result<Share, Problem> {
    let database = &platform.database;
    if rows::count_of_vm(database, &share.vm_id).await? >= PER_VM {
        return Err(Problem::new(
            Kind::TooMany,
            format!("the VM has {PER_VM} shares, the most: revoke some"),
        ));
    }
    if !rows::insert(database, &share).await? {
        return Err(ended());
    }
    match platform.doors.open(share.door()) {
        Ok(port) => share.listen_port = port,
        Err(error) => {
            rows::remove(database, &share.id).await?;
            return Err(error.into());
        }
    }
    rows::set_listen_port(database, &share.id, share.listen_port).await?;
    if !platform.live.has_vm(&share.vm_id) {
        // It ended meanwhile, perhaps before the row was there.
        rows::end(database, &share.id, Status::Ended).await?;
        platform.doors.end_vm(&share.vm_id);
        return Err(ended());
    }
    Ok(share)
}

async fn with_visibility(
    platform: &Platform,
    mut share: Share,
    is_public: Option<bool>,
) -> Result<Share, Problem> {
    let Some(is_public) = is_public.filter(|wanted| *wanted != share.is_public) else {
        return Ok(share);
    };
    // What closes comes first in the gateway, what opens last.
    if !is_public {
        platform.doors.set_public(&share.id, false);
    }
    rows::set_public(&platform.database, &share.id, is_public).await?;
    platform.doors.set_public(&share.id, is_public);
    share.is_public = is_public;
    share.updated_at = Moment::now();
    Ok(share)
}

/// A share of an account.
pub(crate) async fn find(platform: &Platform, account_id: i64, id: &str) -> Result<Share, Problem> {
    let share = rows::find(&platform.database, account_id, id).await?;
    share.ok_or_else(|| {
        Problem::new(
            Kind::NotFound,
            "share not found: it does not exist, or belongs to another account",
        )
    })
}

/// The newest shares of an account, newest first; of one VM if it is named.
pub(crate) async fn list(
    platform: &Platform,
    account_id: i64,
    vm: Option<&str>,
) -> Result<Vec<Share>, Problem> {
    Ok(rows::all(&platform.database, account_id, vm, LISTED).await?)
}

/// Changes who may pass, or ends the share for good.
pub(crate) async fn update(
    platform: &Platform,
    account_id: i64,
    id: &str,
    is_public: Option<bool>,
    revoke: bool,
) -> Result<Share, Problem> {
    let vm_id = find(platform, account_id, id).await?.vm_id;
    let (there, id) = (platform.clone(), id.to_owned());
    let task = async move {
        let platform = there;
        let _one = platform
            .exclusive
            .hold(&format!("shares:{}", vm_id.0))
            .await;
        let share = find(&platform, account_id, &id).await?;
        if revoke {
            return end(&platform, share).await;
        }
        if share.status != Status::Open && is_public.is_some() {
            let why = format!("the share is {}: make a new one", share.status.as_str());
            return Err(Problem::new(Kind::Conflict, why));
        }
        with_visibility(&platform, share, is_public).await
    };
    platform.carry_out("changing the share", task).await
}

async fn end(platform: &Platform, mut share: Share) -> Result<Share, Problem> {
    if share.status == Status::Open {
        rows::end(&platform.database, &share.id, Status::Revoked).await?;
        platform.doors.revoke(&share.id);
        share.status = Status::Revoked;
        share.updated_at = Moment::now();
    }
    Ok(share)
}

/// The URL of a share.
pub(crate) fn url(platform: &Platform, share: &Share) -> String {
    platform.doors.url(&share.id, share.listen_port)
}

/// Opens all shares on record whose VMs live, each where it was found before if it can be; those that have ended say so.
pub(crate) async fn start(platform: &Platform) -> Result<(), StoreError> {
    let database = &platform.database;
    for mut share in rows::open(database).await? {
        if !is_alive(platform, &share.vm_id) {
            rows::end(database, &share.id, Status::Ended).await?;
            continue;
        }
        match platform.doors.open(share.door()) {
            Ok(port) if port == share.listen_port => {}
            Ok(port) => {
                let before = url(platform, &share);
                share.listen_port = port;
                rows::set_listen_port(database, &share.id, port).await?;
                let now = url(platform, &share);
                tracing::warn!(
                    share = share.id,
                    before,
                    now,
                    "a share has moved: its port is taken"
                );
            }
            Err(error) => {
                tracing::error!(share = share.id, error = %Chain(&error), "a share is not served");
            }
        }
    }
    let since = Moment::now().minus(REMEMBERED);
    for share in rows::over(database, since, REMEMBERED_MOST).await? {
        // Its port may be another's by now.
        if let Err(error) = platform.doors.open(share.door()) {
            tracing::debug!(share = share.id, error = %Chain(&error), "a share's end is not told");
        }
    }
    Ok(())
}

fn is_alive(platform: &Platform, vm: &VmId) -> bool {
    platform.live.has_vm(vm)
}

/// The ids of the shares that are open according to the records of all accounts.
///
/// # Errors
/// [`StoreError`] when they cannot be read.
pub async fn recorded(database: &Database) -> Result<Vec<String>, StoreError> {
    let open = rows::open(database).await?;
    Ok(open.into_iter().map(|share| share.id).collect())
}

/// Where a port of a session's VM is reached.
pub(crate) struct AppUrl {
    pub share: Share,
    pub status: VmStatus,
    pub expires_at: Option<Moment>,
}

/// The share of a port of a session's VM; a private one is made where there is none.
pub(crate) async fn app_url(
    platform: &Platform,
    account_id: i64,
    session_id: &str,
    port: u16,
) -> Result<AppUrl, Problem> {
    let wanted = Wanted {
        vm_id: None,
        session_id: Some(session_id.to_owned()),
        port,
        is_public: None,
    };
    let share = create(platform, account_id, new_id(), wanted).await?;
    let session = sessions::find(platform, account_id, session_id).await?;
    let vm = session.active_vm().filter(|vm| vm.id == share.vm_id);
    let vm = vm.ok_or_else(ended)?;
    Ok(AppUrl {
        share,
        status: vm.status,
        expires_at: vm.expires_at,
    })
}

fn new_id() -> String {
    format!("sh-{}", crate::vm::service::random_id(20))
}
