//! Facts about processes, and settings of one's own.

use crate::check;
use std::io;
use std::os::fd::AsFd;

/// The state of a process that `/proc` shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProcessStat {
    /// Its state: `R`, `S`, `Z` …
    pub state: char,
    /// When it started, in clock ticks since boot: with the pid it names a process for ever.
    pub start_ticks: u64,
}

/// Reads `/proc/PID/stat`; `None` when there is no such process.
pub fn stat(pid: i32) -> Option<ProcessStat> {
    parse_stat(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// The same of the process whose directory below `/proc` is open; `None` when it is gone, whatever has its number now.
pub fn stat_of(process: impl AsFd) -> Option<ProcessStat> {
    use rustix::fs::{Mode, OFlags};
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let file = rustix::fs::openat(process, "stat", flags, Mode::empty()).ok()?;
    parse_stat(&io::read_to_string(std::fs::File::from(file)).ok()?)
}

fn parse_stat(text: &str) -> Option<ProcessStat> {
    // The name, in parentheses, may hold anything: what counts comes after the last one.
    let (_, rest) = text.rsplit_once(") ")?;
    let mut fields = rest.split(' ');
    let state = fields.next()?.chars().next()?;
    let start_ticks = fields.nth(18)?.parse().ok()?;
    Some(ProcessStat { state, start_ticks })
}

/// The pages of memory that a process holds; `None` when there is no such process.
pub fn resident_pages(pid: i32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
    text.split(' ').nth(1)?.parse().ok()
}

/// Hides this process from the debuggers of others (ptrace, `/proc/PID/mem`, `/proc/PID/environ`) unless they hold
/// rights in the user namespace in which its program was started.
///
/// # Errors
/// The system's.
pub fn set_undumpable() -> io::Result<()> {
    // SAFETY: plain integers.
    let result = unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) };
    check(result.into()).map(drop)
}

/// Becomes root of this user namespace, with no supplementary groups.
///
/// # Errors
/// The system's.
pub fn become_root() -> io::Result<()> {
    // SAFETY: plain integers and an empty list.
    unsafe {
        check(libc::setgroups(0, std::ptr::null()).into())?;
        check(libc::setresgid(0, 0, 0).into())?;
        check(libc::setresuid(0, 0, 0).into())?;
    }
    Ok(())
}

/// Does something with files as the user and group `id`, but with all of this thread's rights; other threads go on as
/// they are. Through a mount with mapped owners, what is made belongs to whom `id` stands for.
pub fn as_file_owner<T>(id: u32, action: impl FnOnce() -> T) -> T {
    let rights = rustix::thread::capabilities(None);
    // SAFETY: plain integers. The calls concern this thread alone, and give the old id instead of an error.
    let (user, group) = unsafe { (libc::setfsuid(id), libc::setfsgid(id)) };
    if let Ok(rights) = rights {
        // The change took the rights over files. Without them less can be done, which the action will notice.
        let _ = rustix::thread::set_capabilities(None, rights);
    }
    let done = action();
    // SAFETY: as above.
    unsafe {
        libc::setfsgid(group.cast_unsigned());
        libc::setfsuid(user.cast_unsigned());
    }
    done
}

/// Lets this process and its children open up to `wanted` files, or as many as the hard limit allows.
///
/// # Errors
/// The system's.
pub fn limit_open_files(wanted: u64) -> io::Result<()> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let hard = getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX);
    let limit = Some(wanted.min(hard));
    Ok(setrlimit(
        Resource::Nofile,
        Rlimit {
            current: limit,
            maximum: limit,
        },
    )?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_does_not_shift_the_fields() {
        let text = "42 (a) b) S) R 1 42 42 0 -1 4194560 10 0 0 0 0 0 0 0 20 0 1 0 777 1000 1 18";
        assert_eq!(
            parse_stat(text),
            Some(ProcessStat {
                state: 'R',
                start_ticks: 777
            })
        );
        assert_eq!(parse_stat("42 (x"), None);
    }

    #[test]
    fn this_process_is_there() {
        let pid = i32::try_from(std::process::id()).unwrap();
        assert!(stat(pid).is_some());
    }
}
