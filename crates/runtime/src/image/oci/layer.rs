//! A layer: from the blob as it was sent to a folder, verified by the digest of what is in it.

use super::reference::Digest;
use super::tree::Tree;
use super::unpack::{Budget, Check, Dropped, Failure, Unpacker};
use sha2::{Digest as _, Sha256};
use std::fs::File;
use std::io::{self, BufReader, Read, Seek};
use std::path::Path;
use std::sync::mpsc;

const PIECE: usize = 256 << 10;
/// How many pieces may wait between the thread that decompresses and the one that writes.
const WAITING: usize = 8;

/// Why a layer could not be made.
#[derive(Debug)]
pub(super) enum LayerError {
    /// It holds what must not be unpacked, or the system refused.
    Unpack(Failure),
    /// It cannot be decompressed.
    Stream(io::Error),
    /// What is in it is not what the image says.
    Content(Digest),
}

/// Unpacks a blob on top of what is in `target`, which nobody else uses yet.
pub(super) fn unpack(
    blob: &Path,
    content: &Digest,
    target: &Path,
    budget: &mut Budget,
    check: &mut Check<'_>,
) -> Result<Dropped, LayerError> {
    let stream = open(blob).map_err(LayerError::Stream)?;
    let tree = Tree::open(target).map_err(|error| {
        LayerError::Unpack(Failure {
            path: Vec::new(),
            error,
        })
    })?;
    // What the headers take comes on top of the content of files, and a stream without end must end.
    let most = budget
        .bytes
        .saturating_add(budget.files.saturating_mul(1024));
    let (sender, pieces) = mpsc::sync_channel(WAITING);
    let (unpacked, hashed) = std::thread::scope(|scope| {
        let reader = scope.spawn(move || decompress(stream, most, &sender));
        let from = Pieces {
            pieces,
            piece: Vec::new(),
            read: 0,
        };
        let unpacked = Unpacker::new(&tree, budget, check).unpack(from);
        let hashed = reader
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the decompressor died")));
        (unpacked, hashed)
    });
    let hashed = match (&unpacked, hashed) {
        // The writer gave up first.
        (Err(_), Ok(_)) => None,
        (_, Err(error)) => return Err(LayerError::Stream(error)),
        (Ok(_), Ok(hashed)) => hashed,
    };
    let dropped = unpacked.map_err(LayerError::Unpack)?;
    match hashed {
        Some(found) if found == *content => Ok(dropped),
        Some(found) => Err(LayerError::Content(found)),
        None => Err(LayerError::Stream(io::ErrorKind::UnexpectedEof.into())),
    }
}

/// How the blob is compressed is seen from its first bytes, whatever it is called.
fn open(blob: &Path) -> io::Result<Box<dyn Read + Send>> {
    let mut file = File::open(blob)?;
    let mut magic = [0; 4];
    let mut found = 0;
    while found < magic.len() {
        match file.read(&mut magic[found..])? {
            0 => break,
            length => found += length,
        }
    }
    file.rewind()?;
    let file = BufReader::with_capacity(PIECE, file);
    Ok(match magic {
        [0x1f, 0x8b, ..] => Box::new(flate2::bufread::MultiGzDecoder::new(file)),
        [0x28, 0xb5, 0x2f, 0xfd] | [0x50..=0x5f, 0x2a, 0x4d, 0x18] => {
            Box::new(zstd::Decoder::with_buffer(file)?)
        }
        _ => Box::new(file),
    })
}

/// Sends the content piece by piece; the digest of it all, or `None` when nobody takes it any more.
fn decompress(
    mut stream: impl Read,
    most: u64,
    sender: &mpsc::SyncSender<Vec<u8>>,
) -> io::Result<Option<Digest>> {
    let mut hash = Sha256::new();
    let mut total = 0_u64;
    loop {
        let mut piece = vec![0; PIECE];
        let mut filled = 0;
        while filled < PIECE {
            match stream.read(&mut piece[filled..]) {
                Ok(0) => break,
                Ok(length) => filled += length,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        if filled == 0 {
            return Ok(Some(Digest::of_hash(hash)));
        }
        piece.truncate(filled);
        total += filled as u64;
        if total > most {
            return Err(super::entry::too_large(
                "unpacked it is larger than is allowed",
            ));
        }
        hash.update(&piece);
        if sender.send(piece).is_err() {
            return Ok(None);
        }
    }
}

/// The other end: the pieces as one stream.
struct Pieces {
    pieces: mpsc::Receiver<Vec<u8>>,
    piece: Vec<u8>,
    read: usize,
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.read == self.piece.len() {
            match self.pieces.recv() {
                Ok(piece) => (self.piece, self.read) = (piece, 0),
                Err(mpsc::RecvError) => return Ok(0),
            }
        }
        let length = buffer.len().min(self.piece.len() - self.read);
        buffer[..length].copy_from_slice(&self.piece[self.read..self.read + length]);
        self.read += length;
        Ok(length)
    }
}
