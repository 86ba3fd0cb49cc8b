//! Loop devices: a file as a block device.

use crate::check;
use rustix::fs::{Mode, OFlags};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

const LOOP_CTL_GET_FREE: libc::c_ulong = 0x4C82;
const LOOP_CONFIGURE: libc::c_ulong = 0x4C0A;
const LOOP_SET_CAPACITY: libc::c_ulong = 0x4C07;
const FLAG_AUTOCLEAR: u32 = 4;
const FLAG_DIRECT_IO: u32 = 16;
/// The major number of loop devices.
const MAJOR: u32 = 7;

/// `struct loop_info64` of the kernel's `include/uapi/linux/loop.h`.
#[repr(C)]
#[derive(Clone, Copy)]
struct LoopInfo {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    sizelimit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo,
    reserved: [u64; 8],
}

/// A loop device that is freed when its last user is gone: keep this until the file system on it is mounted.
#[derive(Debug)]
pub struct LoopDevice {
    /// Its node, `/dev/loop7` for example.
    pub path: PathBuf,
    _open: OwnedFd,
}

/// Makes `file` a block device.
///
/// # Errors
/// `ENOENT` for `/dev/loop-control` where the host offers no loop devices; the system's otherwise.
pub fn attach(file: &Path) -> io::Result<LoopDevice> {
    let backing = rustix::fs::open(file, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    let control = rustix::fs::open(
        "/dev/loop-control",
        OFlags::RDWR | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    // Another process may take the free device first: ask again.
    for _ in 0..64 {
        // SAFETY: this code takes no argument.
        let free = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE as _) };
        let number = check(free.into())?;
        match configure(number, &backing) {
            Err(e) if e.raw_os_error() == Some(libc::EBUSY) => {}
            other => return other,
        }
    }
    Err(io::Error::new(
        io::ErrorKind::ResourceBusy,
        "other processes took every free loop device",
    ))
}

/// Makes a loop device as large as its file has become.
///
/// # Errors
/// The system's.
pub fn follow_file_size(device: &Path) -> io::Result<()> {
    let device = rustix::fs::open(device, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    // SAFETY: this code takes no argument.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_SET_CAPACITY as _) };
    check(result.into()).map(drop)
}

fn configure(number: libc::c_long, backing: &OwnedFd) -> io::Result<LoopDevice> {
    let path = PathBuf::from(format!("/dev/loop{number}"));
    if !path.exists() {
        // A container's /dev does not follow the kernel's.
        let minor = u32::try_from(number).map_err(io::Error::other)?;
        crate::mount::make_device_node(
            &path,
            rustix::fs::FileType::BlockDevice,
            0o660,
            MAJOR,
            minor,
        )?;
    }
    let device = rustix::fs::open(&path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    // Direct I/O keeps the pool out of the page cache of the file below it; not every file system can.
    let direct = set_backing(&device, backing, FLAG_AUTOCLEAR | FLAG_DIRECT_IO);
    match direct {
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => {
            set_backing(&device, backing, FLAG_AUTOCLEAR)?;
        }
        other => other?,
    }
    Ok(LoopDevice {
        path,
        _open: device,
    })
}

fn set_backing(device: &OwnedFd, backing: &OwnedFd, flags: u32) -> io::Result<()> {
    // SAFETY: all-zero bytes are a valid loop_config.
    let mut config: LoopConfig = unsafe { std::mem::zeroed() };
    config.fd = u32::try_from(backing.as_raw_fd()).map_err(io::Error::other)?;
    config.block_size = 4096;
    config.info.flags = flags;
    // SAFETY: this code reads a loop_config, which lives through the call.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE as _, &raw const config) };
    check(result.into()).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_structures_have_the_kernel_s_sizes() {
        assert_eq!(size_of::<LoopInfo>(), 232);
        assert_eq!(size_of::<LoopConfig>(), 304);
    }
}
