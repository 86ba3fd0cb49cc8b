//! The rules of terminals.

use crate::Platform;
use crate::bounds;
use crate::error::{Kind, Problem};
use crate::session::service as sessions;
use crate::vm::{rows as vm_rows, service::VmStatus};
use instavm_api::pty as api;
use instavm_node_api::{NodeError, PtyInfo, PtyRequest, PtyStream, VmId};
use rand::Rng;

/// Columns and rows that a terminal may have.
const SIDES: std::ops::RangeInclusive<u32> = 1..=1_000;
const COLS: u32 = 80;
const ROWS: u32 = 24;
/// Bytes of an id.
const ID_LIMIT: usize = 64;
/// Bytes of a program or a command line.
const COMMAND_LIMIT: usize = 64 << 10;
/// An interactive login shell: bash where the image has it. `$1`, if any, is a command line for it.
const LOGIN: &str = "command -v bash >/dev/null && exec bash -il; exec sh -il";
const LOGIN_COMMAND: &str =
    "command -v bash >/dev/null && exec bash -lc \"$1\"; exec sh -lc \"$1\"";

/// Where a caller looks for terminals. Both ways lead to the same ones.
#[derive(Clone, Debug)]
pub(crate) enum Place {
    /// In the VM of a session.
    Session(String),
    /// In a VM.
    Vm(String),
}

/// The VM that runs there now; `None` when it has ended or is being made.
async fn running(
    platform: &Platform,
    account_id: i64,
    place: &Place,
) -> Result<Option<VmId>, Problem> {
    match place {
        Place::Session(id) => {
            let session = sessions::find(platform, account_id, id).await?;
            Ok(session.active_vm().map(|vm| vm.id.clone()))
        }
        Place::Vm(id) => {
            let row = vm_rows::find(&platform.database, account_id, id).await?;
            let row = row.ok_or_else(|| {
                Problem::new(
                    Kind::NotFound,
                    "VM not found: it does not exist, or belongs to another account",
                )
            })?;
            // Memory knows of a start or an end a moment before the row does.
            let session = platform.live.session(&row.session_id);
            let known = session.and_then(|session| session.state().vm);
            let status = known
                .filter(|vm| vm.id == row.id)
                .map_or(row.status, |vm| vm.status);
            Ok((status == VmStatus::Active).then_some(row.id))
        }
    }
}

/// The VM for a new terminal; a session whose VM has expired gets another one first.
async fn usable(platform: &Platform, account_id: i64, place: &Place) -> Result<VmId, Problem> {
    if let Place::Session(id) = place {
        let session = sessions::find(platform, account_id, id).await?;
        let vm = sessions::usable_vm(platform, &session).await?;
        return Ok(vm.id.clone());
    }
    let running = running(platform, account_id, place).await?;
    running.ok_or_else(|| {
        Problem::new(
            Kind::Conflict,
            "the VM does not run: it has ended, or is still being made",
        )
    })
}

fn no_such_pty() -> Problem {
    NodeError::NoSuchPty.into()
}

fn side(field: &str, given: Option<i64>, default: Option<u32>) -> Result<u16, Problem> {
    if given.is_none() && default.is_none() {
        return Err(Problem::invalid(field, "is missing"));
    }
    let value = bounds::number(field, given, default.unwrap_or(*SIDES.start()), &SIDES)?;
    Ok(u16::try_from(value).unwrap_or(u16::MAX))
}

fn check_id(id: &str) -> Result<(), Problem> {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    if id.is_empty() || id.len() > ID_LIMIT || !id.chars().all(fits) {
        let why = format!("must be 1 to {ID_LIMIT} of letters, digits, - and _");
        return Err(Problem::invalid("id", why));
    }
    Ok(())
}

fn check_command(field: &str, text: &str) -> Result<(), Problem> {
    if text.trim().is_empty() || text.contains('\0') || text.len() > COMMAND_LIMIT {
        let why = format!("must be a text of at most {COMMAND_LIMIT} bytes without NUL");
        return Err(Problem::invalid(field, why));
    }
    Ok(())
}

/// What runs on the terminal.
fn program(request: &api::CreatePty) -> Result<Vec<String>, Problem> {
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
    match (&request.command, &request.shell) {
        (Some(command), _) => {
            check_command("command", command)?;
            Ok(words(&["sh", "-c", LOGIN_COMMAND, "pty", command]))
        }
        (None, Some(shell)) => {
            check_command("shell", shell)?;
            Ok(words(&["sh", "-c", &format!("exec {shell}")]))
        }
        (None, None) => Ok(words(&["sh", "-c", LOGIN])),
    }
}

/// Opens a terminal.
pub(crate) async fn open(
    platform: &Platform,
    account_id: i64,
    place: &Place,
    request: api::CreatePty,
) -> Result<(VmId, PtyInfo), Problem> {
    let request = PtyRequest {
        program: program(&request)?,
        cols: side("cols", request.cols, Some(COLS))?,
        rows: side("rows", request.rows, Some(ROWS))?,
        id: match request.id {
            Some(id) => id,
            None => format!("pty-{:012x}", rand::rng().random::<u64>() >> 16),
        },
    };
    check_id(&request.id)?;
    let vm = usable(platform, account_id, place).await?;
    let id = request.id.clone();
    platform.node.open_pty(&vm, request).await?;
    let all = platform.node.ptys(&vm).await?;
    let opened = all.into_iter().find(|pty| pty.id == id);
    Ok((vm, opened.ok_or_else(no_such_pty)?))
}

/// The terminals there, oldest first; none when no VM runs.
pub(crate) async fn list(
    platform: &Platform,
    account_id: i64,
    place: &Place,
) -> Result<Vec<(VmId, PtyInfo)>, Problem> {
    let Some(vm) = running(platform, account_id, place).await? else {
        return Ok(Vec::new());
    };
    let all = platform.node.ptys(&vm).await?;
    Ok(all.into_iter().map(|pty| (vm.clone(), pty)).collect())
}

/// One terminal.
pub(crate) async fn find(
    platform: &Platform,
    account_id: i64,
    place: &Place,
    id: &str,
) -> Result<(VmId, PtyInfo), Problem> {
    let all = list(platform, account_id, place).await?;
    let found = all.into_iter().find(|(_, pty)| pty.id == id);
    found.ok_or_else(no_such_pty)
}

/// Changes the size of a terminal.
pub(crate) async fn resize(
    platform: &Platform,
    account_id: i64,
    place: &Place,
    id: &str,
    size: &api::ResizePty,
) -> Result<(VmId, PtyInfo), Problem> {
    let (cols, rows) = (
        side("cols", size.cols, None)?,
        side("rows", size.rows, None)?,
    );
    let vm = running(platform, account_id, place).await?;
    let vm = vm.ok_or_else(no_such_pty)?;
    platform.node.resize_pty(&vm, id, cols, rows).await?;
    find(platform, account_id, place, id).await
}

/// Closes a terminal. One that is not there, or not any more, is no error.
pub(crate) async fn close(
    platform: &Platform,
    account_id: i64,
    place: &Place,
    id: &str,
) -> Result<(), Problem> {
    let Some(vm) = running(platform, account_id, place).await? else {
        return Ok(());
    };
    match platform.node.close_pty(&vm, id).await {
        Err(NodeError::NoSuchVm | NodeError::VmEnded) | Ok(()) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Attaches to a terminal.
pub(crate) async fn attach(
    platform: &Platform,
    account_id: i64,
    place: &Place,
    id: &str,
) -> Result<PtyStream, Problem> {
    let vm = running(platform, account_id, place).await?;
    let vm = vm.ok_or_else(no_such_pty)?;
    Ok(platform.node.attach_pty(&vm, id).await?)
}
