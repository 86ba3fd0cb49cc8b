//! The entries of a layer's tar stream, with everything that extends a header put where it belongs.
//!
//! The fields of headers are the library's to read. What extends them is read here: the library reads names and
//! attributes of any length into memory, ends an attribute at the first newline, and knows one of the four ways in which
//! a sparse file is written.

use std::io::{self, Read};
use tar::{EntryType, GnuExtSparseHeader, Header};

const BLOCK: usize = 512;
/// The longest name, and the most attributes, that an entry may have.
const LONGEST_EXTENSION: u64 = 1 << 20;
/// The digits of the largest number.
const LONGEST_NUMBER: usize = 20;
/// The most pieces of a sparse file.
const MOST_PIECES: usize = 1 << 20;

/// What an entry makes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Directory,
    File,
    Symlink(Vec<u8>),
    Hardlink(Vec<u8>),
    Fifo,
    /// A kind that cannot be unpacked.
    Other(&'static str),
}

/// One entry.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) path: Vec<u8>,
    pub(super) kind: Kind,
    pub(super) mode: u32,
    pub(super) uid: u64,
    pub(super) gid: u64,
    /// Seconds and nanoseconds.
    pub(super) modified: (i64, u32),
    /// The size of the file that it makes.
    pub(super) size: u64,
    pub(super) attributes: Vec<(Vec<u8>, Vec<u8>)>,
    /// Of a sparse file: where its pieces lie, and how long they are.
    pub(super) pieces: Option<Vec<(u64, u64)>>,
}

/// Reads the entries of a tar stream, one after the other.
pub(super) struct Entries<R> {
    from: R,
    /// Bytes of the present entry's content that are still to be read.
    content: u64,
    /// Bytes that fill its last block.
    padding: u64,
}

/// What stands in front of a header and changes it.
#[derive(Default)]
struct Extensions {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    records: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Extensions {
    /// The last record of a key counts.
    fn record(&self, key: &str) -> Option<&[u8]> {
        self.records
            .iter()
            .rev()
            .find(|(name, _)| name == key.as_bytes())
            .map(|(_, value)| value.as_slice())
    }

    fn number(&self, key: &str) -> io::Result<Option<u64>> {
        self.record(key).map(decimal).transpose()
    }
}

impl<R: Read> Entries<R> {
    pub(super) fn new(from: R) -> Self {
        Self {
            from,
            content: 0,
            padding: 0,
        }
    }

    /// The next entry, after skipping what was not read of the one before.
    pub(super) fn advance(&mut self) -> io::Result<Option<Entry>> {
        let mut extensions = Extensions::default();
        loop {
            self.skip_content()?;
            let Some(header) = self.header()? else {
                return Ok(None);
            };
            let kind = header.entry_type();
            self.has_content(header.entry_size()?)?;
            if kind.is_gnu_longname() {
                extensions.path = Some(until_nul(self.extension()?));
            } else if kind.is_gnu_longlink() {
                extensions.link = Some(until_nul(self.extension()?));
            } else if kind.is_pax_local_extensions() {
                let text = self.extension()?;
                extensions.records.extend(pax_records(&text)?);
            } else if kind.is_pax_global_extensions() {
                // Holds a comment, like the commit that an archive was made of.
                self.extension()?;
            } else {
                return self.entry(&header, &extensions).map(Some);
            }
        }
    }

    /// Reads content of the present entry.
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.content)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        if most == 0 {
            return Ok(0);
        }
        let length = self.from.read(&mut buffer[..most])?;
        if length == 0 {
            return Err(invalid("the layer ends within a file"));
        }
        self.content -= length as u64;
        Ok(length)
    }

    /// Reads what is behind the last entry, to the end of the stream.
    pub(super) fn finish(mut self) -> io::Result<()> {
        io::copy(&mut self.from, &mut io::sink()).map(|_| ())
    }

    fn skip_content(&mut self) -> io::Result<()> {
        let rest = self
            .content
            .checked_add(self.padding)
            .ok_or_else(|| invalid("an entry is larger than a number can say"))?;
        let skipped = io::copy(&mut self.from.by_ref().take(rest), &mut io::sink())?;
        if skipped < rest {
            return Err(invalid("the layer ends within a file"));
        }
        (self.content, self.padding) = (0, 0);
        Ok(())
    }

    fn header(&mut self) -> io::Result<Option<Header>> {
        let mut header = Header::new_old();
        if !read_block(&mut self.from, header.as_mut_bytes())? {
            return Ok(None);
        }
        let bytes = header.as_bytes();
        if bytes.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let sum: u32 = bytes[..148]
            .iter()
            .chain(&bytes[156..])
            .map(|byte| u32::from(*byte))
            .sum();
        if header.cksum()? != sum + 8 * 32 {
            return Err(invalid("the layer is no tar archive, or a damaged one"));
        }
        Ok(Some(header))
    }

    fn has_content(&mut self, size: u64) -> io::Result<()> {
        self.content = size;
        self.padding = size
            .checked_next_multiple_of(BLOCK as u64)
            .ok_or_else(|| invalid("an entry is larger than a number can say"))?
            - size;
        Ok(())
    }

    fn extension(&mut self) -> io::Result<Vec<u8>> {
        if self.content > LONGEST_EXTENSION {
            return Err(invalid("a name or an attribute is longer than a megabyte"));
        }
        let mut bytes = Vec::new();
        let mut buffer = [0; BLOCK];
        loop {
            match self.read(&mut buffer)? {
                0 => return Ok(bytes),
                length => bytes.extend_from_slice(&buffer[..length]),
            }
        }
    }

    fn entry(&mut self, header: &Header, extensions: &Extensions) -> io::Result<Entry> {
        let content = match extensions.number("size")? {
            Some(size) => size,
            None => header.entry_size()?,
        };
        self.has_content(content)?;
        let sparse_name = extensions.record("GNU.sparse.name");
        let path = sparse_name
            .or(extensions.record("path"))
            .or(extensions.path.as_deref())
            .map_or_else(|| header.path_bytes().into_owned(), <[u8]>::to_vec);
        let link = extensions
            .record("linkpath")
            .or(extensions.link.as_deref())
            .map(<[u8]>::to_vec)
            .or_else(|| header.link_name_bytes().map(std::borrow::Cow::into_owned))
            .unwrap_or_default();
        let kind = kind_of(header.entry_type(), &path, link);
        if kind != Kind::File && !matches!(kind, Kind::Other(_)) {
            // Some archives say a size there, and none has content.
            self.has_content(0)?;
        }
        let modified = match extensions.record("mtime") {
            Some(text) => seconds(text)?,
            None => (i64::try_from(header.mtime()?).unwrap_or(i64::MAX), 0),
        };
        let mut entry = Entry {
            path,
            mode: header.mode()? & 0o7777,
            uid: extensions.number("uid")?.map_or_else(|| header.uid(), Ok)?,
            gid: extensions.number("gid")?.map_or_else(|| header.gid(), Ok)?,
            modified,
            size: if kind == Kind::File { content } else { 0 },
            attributes: attributes(extensions),
            pieces: None,
            kind,
        };
        if entry.kind == Kind::File {
            self.sparse(header, extensions, &mut entry)?;
        }
        Ok(entry)
    }

    /// Finds the pieces of a sparse file, whichever way they are written.
    fn sparse(
        &mut self,
        header: &Header,
        extensions: &Extensions,
        entry: &mut Entry,
    ) -> io::Result<()> {
        let found = if header.entry_type().is_gnu_sparse() {
            self.old_sparse(header)?
        } else if extensions.record("GNU.sparse.major") == Some(b"1") {
            let size = extensions.number("GNU.sparse.realsize")?;
            let size = size.ok_or_else(|| invalid("a sparse file does not say its size"))?;
            (size, self.sparse_map()?)
        } else if let Some(size) = extensions.number("GNU.sparse.size")? {
            (size, sparse_records(extensions)?)
        } else {
            return Ok(());
        };
        let (size, pieces) = found;
        let mut end = 0;
        let mut stored = 0_u64;
        for &(offset, length) in &pieces {
            if offset < end {
                return Err(invalid("the pieces of a sparse file overlap"));
            }
            end = offset
                .checked_add(length)
                .filter(|end| *end <= size)
                .ok_or_else(|| invalid("a piece of a sparse file lies behind its end"))?;
            stored += length;
        }
        if stored != self.content {
            return Err(invalid("the pieces of a sparse file are not its content"));
        }
        entry.size = size;
        entry.pieces = Some(pieces);
        Ok(())
    }

    /// In the header, and in further blocks behind it.
    fn old_sparse(&mut self, header: &Header) -> io::Result<(u64, Vec<(u64, u64)>)> {
        let gnu = header
            .as_gnu()
            .ok_or_else(|| invalid("a sparse file in an archive that is not GNU tar's"))?;
        let mut pieces = Vec::new();
        let mut add = |found: &[tar::GnuSparseHeader]| -> io::Result<()> {
            for piece in found.iter().filter(|piece| !piece.is_empty()) {
                pieces.push((piece.offset()?, piece.length()?));
            }
            if pieces.len() > MOST_PIECES {
                return Err(invalid("a sparse file has too many pieces"));
            }
            Ok(())
        };
        add(&gnu.sparse)?;
        let mut more = gnu.is_extended();
        while more {
            let mut block = GnuExtSparseHeader::new();
            if !read_block(&mut self.from, block.as_mut_bytes())? {
                return Err(invalid("the layer ends within a file"));
            }
            add(block.sparse())?;
            more = block.is_extended();
        }
        Ok((gnu.real_size()?, pieces))
    }

    /// In front of the content, as lines with numbers, filled to whole blocks.
    fn sparse_map(&mut self) -> io::Result<Vec<(u64, u64)>> {
        let mut numbers: Vec<u64> = Vec::new();
        let mut digits = Vec::new();
        let mut wanted = None;
        while wanted.is_none_or(|wanted| numbers.len() < wanted) {
            let mut block = [0; BLOCK];
            if self.content < BLOCK as u64 {
                return Err(invalid("a sparse file does not list its pieces"));
            }
            read_block(&mut self.from, &mut block)?;
            self.content -= BLOCK as u64;
            for byte in block {
                if wanted.is_some_and(|wanted| numbers.len() >= wanted) {
                    break;
                }
                if byte != b'\n' {
                    digits.push(byte);
                    if digits.len() > LONGEST_NUMBER {
                        return Err(invalid("a sparse file does not list its pieces"));
                    }
                    continue;
                }
                numbers.push(decimal(&digits)?);
                digits.clear();
                if let (None, Some(count)) = (wanted, numbers.first()) {
                    let count = usize::try_from(*count).unwrap_or(usize::MAX);
                    if count > MOST_PIECES {
                        return Err(invalid("a sparse file has too many pieces"));
                    }
                    wanted = Some(1 + count * 2);
                }
            }
        }
        Ok(pairs(&numbers[1..]))
    }
}

/// In the records of the header.
fn sparse_records(extensions: &Extensions) -> io::Result<Vec<(u64, u64)>> {
    let numbers = match extensions.record("GNU.sparse.map") {
        Some([]) => Vec::new(),
        Some(map) => map
            .split(|byte| *byte == b',')
            .map(decimal)
            .collect::<io::Result<Vec<_>>>()?,
        None => extensions
            .records
            .iter()
            .filter(|(key, _)| {
                matches!(
                    key.as_slice(),
                    b"GNU.sparse.offset" | b"GNU.sparse.numbytes"
                )
            })
            .map(|(_, value)| decimal(value))
            .collect::<io::Result<Vec<_>>>()?,
    };
    Ok(pairs(&numbers))
}

fn pairs(numbers: &[u64]) -> Vec<(u64, u64)> {
    numbers
        .chunks_exact(2)
        .map(|pair| (pair[0], pair[1]))
        .collect()
}

fn kind_of(kind: EntryType, path: &[u8], link: Vec<u8>) -> Kind {
    match kind {
        // Before there was a kind for folders, their names ended with a slash.
        EntryType::Regular if path.ends_with(b"/") => Kind::Directory,
        EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => Kind::File,
        EntryType::Directory => Kind::Directory,
        EntryType::Symlink => Kind::Symlink(link),
        EntryType::Link => Kind::Hardlink(link),
        EntryType::Fifo => Kind::Fifo,
        EntryType::Char | EntryType::Block => {
            Kind::Other("a device node, which no image may bring")
        }
        _ => Kind::Other("an entry of a kind that is not known"),
    }
}

fn attributes(extensions: &Extensions) -> Vec<(Vec<u8>, Vec<u8>)> {
    extensions
        .records
        .iter()
        .filter_map(|(key, value)| {
            let name = key.strip_prefix(b"SCHILY.xattr.")?;
            Some((name.to_vec(), value.clone()))
        })
        .collect()
}

/// Records of the form `length key=value\n`, where the length counts all of it.
fn pax_records(text: &[u8]) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let wrong = || invalid("the attributes of an entry are damaged");
    let mut records = Vec::new();
    let mut rest = text;
    while !rest.is_empty() && rest[0] != 0 {
        let space = rest.iter().position(|b| *b == b' ').ok_or_else(wrong)?;
        let length = usize::try_from(decimal(&rest[..space])?).map_err(|_| wrong())?;
        let record = rest.get(space + 1..length).ok_or_else(wrong)?;
        let record = record.strip_suffix(b"\n").ok_or_else(wrong)?;
        let equals = record.iter().position(|b| *b == b'=').ok_or_else(wrong)?;
        records.push((record[..equals].to_vec(), record[equals + 1..].to_vec()));
        rest = &rest[length..];
    }
    Ok(records)
}

fn decimal(digits: &[u8]) -> io::Result<u64> {
    std::str::from_utf8(digits)
        .ok()
        .filter(|text| text.bytes().all(|b| b.is_ascii_digit()))
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| invalid("a number in the attributes of an entry is none"))
}

/// A time as seconds with a fraction, perhaps before 1970.
fn seconds(text: &[u8]) -> io::Result<(i64, u32)> {
    let wrong = || invalid("the time of an entry is none");
    let text = std::str::from_utf8(text).map_err(|_| wrong())?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    if !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return Err(wrong());
    }
    let seconds: i64 = whole.parse().map_err(|_| wrong())?;
    let digits: String = fraction
        .chars()
        .chain("000000000".chars())
        .take(9)
        .collect();
    let nanoseconds: u32 = digits.parse().map_err(|_| wrong())?;
    if text.starts_with('-') && nanoseconds > 0 {
        return Ok((seconds.saturating_sub(1), 1_000_000_000 - nanoseconds));
    }
    Ok((seconds, nanoseconds))
}

/// Fills a block; false at the end of the stream.
fn read_block(from: &mut impl Read, block: &mut [u8; BLOCK]) -> io::Result<bool> {
    let mut filled = 0;
    while filled < BLOCK {
        match from.read(&mut block[filled..]) {
            Ok(0) if filled == 0 => return Ok(false),
            Ok(0) => return Err(invalid("the layer ends within a header")),
            Ok(length) => filled += length,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(true)
}

fn until_nul(mut bytes: Vec<u8>) -> Vec<u8> {
    if let Some(end) = bytes.iter().position(|b| *b == 0) {
        bytes.truncate(end);
    }
    bytes
}

pub(super) fn invalid(reason: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}

pub(super) fn too_large(reason: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::FileTooLarge, reason)
}
