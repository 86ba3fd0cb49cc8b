//! Bytes from one connection to another, untouched.
//!
//! Short connections are copied through a small buffer. What goes on is moved by the kernel, from socket to pipe to
//! socket, without coming into this process.

use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};
use std::io;
use std::os::fd::OwnedFd;
use tokio::io::Interest;
use tokio::net::TcpStream;

const BUFFER: usize = 16 << 10;
/// What has come before the kernel moves the rest.
const LONG: u64 = 256 << 10;
/// The size of the pipe, where the system gives that much.
const PIPE: usize = 1 << 20;

/// Carries everything that `from` sends to `to`, until its end, which is passed on.
pub(super) async fn carry(from: &TcpStream, to: &TcpStream) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    let mut carried: u64 = 0;
    loop {
        let count = read(from, &mut buffer).await?;
        if count == 0 {
            return end(to);
        }
        write(to, &buffer[..count]).await?;
        carried += count as u64;
        if carried >= LONG {
            drop(buffer);
            return move_rest(from, to).await;
        }
    }
}

/// Carries both ways until both have ended, or one has broken.
pub(super) async fn exchange(one: &TcpStream, other: &TcpStream) -> io::Result<()> {
    tokio::try_join!(carry(one, other), carry(other, one)).map(|_| ())
}

/// Says that nothing more will be sent.
pub(super) fn end(to: &TcpStream) -> io::Result<()> {
    Ok(rustix::net::shutdown(to, rustix::net::Shutdown::Write)?)
}

/// Reads what there is; 0 at the end.
pub(super) async fn read(from: &TcpStream, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        from.readable().await?;
        match from.try_read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            done => return done,
        }
    }
}

/// Writes all of it.
pub(super) async fn write(to: &TcpStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        to.writable().await?;
        match to.try_write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => bytes = &bytes[count..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

async fn move_rest(from: &TcpStream, to: &TcpStream) -> io::Result<()> {
    let (out, into): (OwnedFd, OwnedFd) = pipe_with(PipeFlags::NONBLOCK | PipeFlags::CLOEXEC)?;
    // A smaller pipe only makes it slower.
    let size = fcntl_setpipe_size(&into, PIPE).unwrap_or(BUFFER);
    let flags = SpliceFlags::NONBLOCK | SpliceFlags::MOVE;
    loop {
        // The pipe is empty here, so only the socket can make this wait.
        let fill = || Ok(splice(from, None, &into, None, size, flags)?);
        let mut held: usize = from.async_io(Interest::READABLE, fill).await?;
        if held == 0 {
            return end(to);
        }
        while held > 0 {
            let drain = || Ok(splice(&out, None, to, None, held, flags)?);
            let moved: usize = to.async_io(Interest::WRITABLE, drain).await?;
            if moved == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            held -= moved;
        }
    }
}
