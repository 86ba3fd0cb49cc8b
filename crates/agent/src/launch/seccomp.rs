//! The system call filter of everything in a VM.
//!
//! What is refused is what a machine's owner has no use for inside a namespace and what has been the kernel's way
//! out most often. Capabilities are the first wall (none outside the VM's user namespace); this is the second.

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, sock_filter,
};
use std::collections::BTreeMap;
use std::io;

/// Refused with `EPERM`.
const REFUSED: &[libc::c_long] = &[
    libc::SYS_acct,
    libc::SYS_add_key,
    libc::SYS_bpf,
    libc::SYS_clock_adjtime,
    libc::SYS_clock_settime,
    libc::SYS_adjtimex,
    libc::SYS_delete_module,
    libc::SYS_fanotify_init,
    libc::SYS_finit_module,
    libc::SYS_init_module,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_io_uring_setup,
    libc::SYS_kexec_file_load,
    libc::SYS_kexec_load,
    libc::SYS_keyctl,
    libc::SYS_lookup_dcookie,
    libc::SYS_nfsservctl,
    libc::SYS_open_by_handle_at,
    libc::SYS_perf_event_open,
    libc::SYS_quotactl,
    libc::SYS_reboot,
    libc::SYS_request_key,
    libc::SYS_settimeofday,
    libc::SYS_swapoff,
    libc::SYS_swapon,
    libc::SYS_syslog,
    libc::SYS_userfaultfd,
    libc::SYS_vhangup,
];

#[cfg(target_arch = "x86_64")]
const REFUSED_HERE: &[libc::c_long] = &[
    libc::SYS_ioperm,
    libc::SYS_iopl,
    libc::SYS_kexec_file_load,
    libc::SYS_modify_ldt,
    libc::SYS_uselib,
    libc::SYS_ustat,
];
#[cfg(not(target_arch = "x86_64"))]
const REFUSED_HERE: &[libc::c_long] = &[];

/// The address families that a VM may use; sockets of all others are refused.
const FAMILIES: &[libc::c_int] = &[
    libc::AF_UNIX,
    libc::AF_INET,
    libc::AF_INET6,
    libc::AF_NETLINK,
    libc::AF_PACKET,
];

/// Installs the filter in this process and all that it will start. Needs rights in the VM's user namespace;
/// `no_new_privs` is left alone so that `sudo` works inside.
pub(super) fn install() -> io::Result<()> {
    let program = program().map_err(io::Error::other)?;
    apply(&program)
}

fn program() -> Result<BpfProgram, seccompiler::BackendError> {
    let mut program = other_numbers().to_vec();
    program.extend(listed_calls()?);
    Ok(program)
}

/// The calls of the other ABI that x86-64 kernels may have (x32): their numbers are the same with a bit more, which no
/// list of numbers matches. They do not exist, as on a kernel without that ABI. All jumps are relative, so this goes
/// before everything else.
#[cfg(target_arch = "x86_64")]
fn other_numbers() -> [sock_filter; 3] {
    const X32: u32 = 0x4000_0000;
    let instruction = |code: u32, jf, k| sock_filter {
        // The codes are small; the C library's type is wider than the kernel's.
        code: code as u16,
        jt: 0,
        jf,
        k,
    };
    [
        // The number is the first of the call's data.
        instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0),
        instruction(libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K, 1, X32),
        instruction(
            libc::BPF_RET | libc::BPF_K,
            0,
            libc::SECCOMP_RET_ERRNO | libc::ENOSYS.unsigned_abs(),
        ),
    ]
}
#[cfg(not(target_arch = "x86_64"))]
fn other_numbers() -> [sock_filter; 0] {
    []
}

/// Requests to devices and file systems that are refused.
const REFUSED_REQUESTS: &[u64] = &[
    // Pushing characters into a terminal that somebody else reads.
    libc::TIOCSTI,
    // Subvolumes of btrfs, which every user may make: what is in them is not charged to the disk that they are in, not
    // in its snapshots, and keeps it from being deleted. Making (four forms), deleting (two), changing flags.
    0x5000_9401,
    0x5000_940e,
    0x5000_9417,
    0x5000_9418,
    0x5000_940f,
    0x5000_943f,
    0x4008_941a,
];

fn listed_calls() -> Result<BpfProgram, seccompiler::BackendError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    for &call in REFUSED.iter().chain(REFUSED_HERE) {
        rules.insert(call, Vec::new());
    }
    rules.insert(libc::SYS_socket, vec![other_families()?]);
    let requests = REFUSED_REQUESTS.iter().map(|&request| {
        let is = SeccompCondition::new(1, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, request)?;
        SeccompRule::new(vec![is])
    });
    rules.insert(libc::SYS_ioctl, requests.collect::<Result<_, _>>()?);
    SeccompFilter::new(
        rules,
        SeccompAction::Allow,
        SeccompAction::Errno(libc::EPERM as u32),
        std::env::consts::ARCH.try_into()?,
    )?
    .try_into()
}

fn other_families() -> Result<SeccompRule, seccompiler::BackendError> {
    let differs = |&family: &libc::c_int| {
        let family = u64::from(family.unsigned_abs());
        SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Ne, family)
    };
    SeccompRule::new(
        FAMILIES
            .iter()
            .map(differs)
            .collect::<Result<Vec<_>, _>>()?,
    )
}

/// `seccompiler::apply_filter` would set `no_new_privs`.
fn apply(program: &BpfProgram) -> io::Result<()> {
    let program = libc::sock_fprog {
        len: u16::try_from(program.len()).map_err(io::Error::other)?,
        filter: program.as_ptr().cast_mut().cast(),
    };
    // SAFETY: seccompiler's sock_filter has the kernel's layout; the program lives through the call, which copies it.
    let result = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            0,
            &raw const program,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(all(test, target_arch = "x86_64"))]
#[allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]
mod tests {
    use super::*;

    const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
    const REFUSE: u32 = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
    const UNKNOWN: u32 = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;
    const AUDIT_ARCH_X86_64: u32 = 0xC000_003E;

    /// What the kernel's machine gives for a call: the part of it that filters use.
    fn evaluate(program: &[sock_filter], number: u32, arguments: [u32; 2]) -> u32 {
        let load = |offset: u32| match offset {
            0 => number,
            4 => AUDIT_ARCH_X86_64,
            16 => arguments[0],
            24 => arguments[1],
            _ => 0,
        };
        let (mut at, mut value) = (0, 0);
        loop {
            let sock_filter { code, jt, jf, k } = program[at];
            at += 1;
            let jump = match u32::from(code) {
                0x20 => {
                    value = load(k);
                    0
                }
                0x54 => {
                    value &= k;
                    0
                }
                0x05 => k as usize,
                0x15 => usize::from(if value == k { jt } else { jf }),
                0x25 => usize::from(if value > k { jt } else { jf }),
                0x35 => usize::from(if value >= k { jt } else { jf }),
                0x06 => return k,
                other => panic!("instruction {other:#x} at {}", at - 1),
            };
            at += jump;
        }
    }

    #[test]
    fn calls_get_what_the_lists_say() {
        let program = program().unwrap();
        let call = |number: libc::c_long, arguments| {
            evaluate(&program, u32::try_from(number).unwrap(), arguments)
        };
        assert_eq!(call(libc::SYS_getpid, [0, 0]), ALLOW);
        assert_eq!(call(libc::SYS_bpf, [0, 0]), REFUSE);
        let (inet, other) = (libc::AF_INET as u32, libc::AF_VSOCK as u32);
        assert_eq!(call(libc::SYS_socket, [inet, 0]), ALLOW);
        assert_eq!(call(libc::SYS_socket, [other, 0]), REFUSE);
        let push = u32::try_from(libc::TIOCSTI).unwrap();
        assert_eq!(call(libc::SYS_ioctl, [0, push]), REFUSE);
        let (subvolume, reflink) = (0x5000_940e, 0x4004_9409);
        assert_eq!(call(libc::SYS_ioctl, [0, subvolume]), REFUSE);
        assert_eq!(call(libc::SYS_ioctl, [0, reflink]), ALLOW);
        assert_eq!(call(libc::SYS_ioctl, [0, 0]), ALLOW);
    }

    #[test]
    fn numbers_of_the_other_abi_are_unknown_calls() {
        let program = program().unwrap();
        for number in [libc::SYS_getpid, libc::SYS_bpf, libc::SYS_keyctl, 512, 547] {
            let number = u32::try_from(number).unwrap() | 0x4000_0000;
            assert_eq!(evaluate(&program, number, [0, 0]), UNKNOWN, "{number:#x}");
        }
        assert_eq!(evaluate(&program, u32::MAX, [0, 0]), UNKNOWN);
    }
}
