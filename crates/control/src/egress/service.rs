//! The rules of policies. A policy belongs to a session, so that it is also in force for the VMs that the session has after
//! this one; the node enforces it on the VM that runs.

use super::rows;
use crate::Platform;
use crate::error::{Chain, Kind, Problem};
use crate::session::service::{self as sessions, Session};
use crate::vm::rows as vm_rows;
use crate::vm::service::{Profile, Vm};
use instavm_api::egress as api;
use instavm_node_api::{EgressPolicy, NodeError, Refusal, VmId};
use std::sync::Arc;

/// Where a caller looks for a policy. Both ways lead to the same one.
#[derive(Clone, Debug)]
pub(crate) enum Place {
    /// By a session.
    Session(String),
    /// By a VM.
    Vm(String),
}

/// A policy as it was sent.
///
/// # Errors
/// 422 naming the entry that is none.
pub(crate) fn read(platform: &Platform, request: api::SetEgress) -> Result<EgressPolicy, Problem> {
    let registries = match (request.allow_public_repos, request.allow_package_managers) {
        (Some(one), Some(other)) if one != other => {
            let why = "is another name of allow_public_repos and must say the same";
            return Err(Problem::invalid("allow_package_managers", why));
        }
        (one, other) => one.or(other).unwrap_or(true),
    };
    let policy = EgressPolicy {
        allow_public_repos: registries,
        allow_http: request.allow_http.unwrap_or(true),
        allow_https: request.allow_https.unwrap_or(true),
        allowed_domains: request.allowed_domains.unwrap_or_default(),
        allowed_cidrs: request.allowed_cidrs.unwrap_or_default(),
    };
    check(platform, &policy, "")?;
    Ok(policy)
}

/// Refuses a policy with an entry that is none. `within` is what comes before the names of its lists.
pub(crate) fn check(
    platform: &Platform,
    policy: &EgressPolicy,
    within: &str,
) -> Result<(), Problem> {
    platform.node.check_egress(policy).map_err(|bad| {
        let place = bad.place.map(|place| format!("[{place}]"));
        let field = format!("{within}{}{}", bad.list, place.unwrap_or_default());
        Problem::invalid(&field, bad.reason)
    })
}

/// The session that a place leads to, and the VM that it names.
async fn find(
    platform: &Platform,
    account_id: i64,
    place: &Place,
) -> Result<(Arc<Session>, Option<VmId>), Problem> {
    match place {
        Place::Session(id) => Ok((sessions::find(platform, account_id, id).await?, None)),
        Place::Vm(id) => {
            let row = vm_rows::find(&platform.database, account_id, id).await?;
            let row = row.ok_or_else(|| {
                let message = "VM not found: it does not exist, or belongs to another account";
                Problem::new(Kind::NotFound, message)
            })?;
            let session = sessions::find(platform, account_id, &row.session_id).await?;
            Ok((session, Some(row.id)))
        }
    }
}

/// The policy of a session and its VM.
pub(crate) async fn policy(
    platform: &Platform,
    account_id: i64,
    place: &Place,
) -> Result<EgressPolicy, Problem> {
    let (session, _) = find(platform, account_id, place).await?;
    let policy = session.state().profile.origin.egress;
    Ok(policy.unwrap_or_default())
}

/// What was refused to a VM lately, the newest first.
pub(crate) async fn refusals(
    platform: &Platform,
    account_id: i64,
    vm_id: String,
) -> Result<Vec<Refusal>, Problem> {
    let (_, vm) = find(platform, account_id, &Place::Vm(vm_id)).await?;
    Ok(vm.map(|vm| platform.refusals.of(&vm)).unwrap_or_default())
}

/// Replaces the policy of a session and its VM; it is in force when this returns.
pub(crate) async fn set(
    platform: &Platform,
    account_id: i64,
    place: &Place,
    policy: EgressPolicy,
) -> Result<(), Problem> {
    let (session, named) = find(platform, account_id, place).await?;
    let there = platform.clone();
    let task = async move {
        // A VM that is being made is waited for: it is made with the policy that was there before.
        let _guard = session.changing().await;
        if session.state().killed {
            let message = "session not found: it was ended by kill; start a new one";
            return Err(Problem::new(Kind::NotFound, message));
        }
        let vm = session.active_vm();
        match (&vm, &named) {
            (Some(vm), Some(named)) if vm.id == *named => {}
            (_, Some(_)) => return Err(ended()),
            (_, None) => {}
        }
        let _one = match &vm {
            Some(vm) => Some(there.exclusive.hold(&vm.id.0).await),
            None => None,
        };
        replace(&there, &session, vm.as_deref(), policy).await
    };
    platform
        .carry_out("changing what the VM may reach", task)
        .await
}

fn ended() -> Problem {
    Problem::new(
        Kind::Conflict,
        "the VM has ended; its session may have another one",
    )
}

/// On record first, so that a VM that is made after a failure is not freer than what was asked for.
async fn replace(
    platform: &Platform,
    session: &Arc<Session>,
    vm: Option<&Vm>,
    policy: EgressPolicy,
) -> Result<(), Problem> {
    let old = session.state().profile;
    let mut new = old.clone();
    new.origin.egress = Some(policy.clone());
    rows::set(&platform.database, &session.id, &new).await?;
    if let Some(vm) = vm
        && let Err(error) = platform.node.set_egress(&vm.id, policy).await
    {
        undo(platform, session, &old).await;
        return Err(match error {
            NodeError::NoSuchVm | NodeError::VmEnded => ended(),
            error => error.into(),
        });
    }
    session.set_profile(new);
    Ok(())
}

async fn undo(platform: &Platform, session: &Session, old: &Profile) {
    if let Err(error) = rows::set(&platform.database, &session.id, old).await {
        tracing::error!(session = session.id, error = %Chain(&error), "a policy that is not in force stays on record");
    }
}
