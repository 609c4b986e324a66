//! The entries of a tar stream, one after the other. Names are not judged here.
//!
//! Of the `tar` crate only the headers are used. Its own walk takes the values of extended headers for lines, which those of
//! `security.capability` are not, and reads headers of any length into memory. Where readers of archives differ, this one
//! does what the engines do that make and run images: links, folders and devices have no content, whatever they say.

use std::io::{self, Read};

use tar::{EntryType, GnuExtSparseHeader, GnuSparseHeader, Header};

use super::{
    limits::{MAX_HEADER, MAX_PIECES},
    pax::{self, Attribute, Map, Pax, PaxError, Piece},
    stream::Source,
};

const BLOCK: u64 = 512;

/// Why a stream is no archive.
#[derive(Debug, thiserror::Error)]
pub enum TarError {
    /// It ends where something should follow.
    #[error("it was cut off")]
    Cut,
    /// It is not what the form says.
    #[error("{0}")]
    Malformed(&'static str),
    /// It is packed in a way that is not taken.
    #[error("{0}")]
    Packed(String),
    /// It cannot be read or unpacked.
    #[error("it cannot be read")]
    Read(#[source] io::Error),
}

impl From<io::Error> for TarError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Self::Cut,
            _ => Self::Read(error),
        }
    }
}

impl From<PaxError> for TarError {
    fn from(error: PaxError) -> Self {
        Self::Malformed(error.0)
    }
}

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// A folder.
    Folder,
    /// A symbolic link.
    Symlink,
    /// Another name of a file.
    HardLink,
    /// A named pipe.
    Fifo,
    /// A device.
    Device,
    /// A socket, as some tools write it.
    Socket,
    /// Something else; its letter.
    Other(u8),
}

/// One entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// What it is.
    pub kind: Kind,
    /// Its name.
    pub name: Vec<u8>,
    /// Where it leads, if it is a link.
    pub link: Vec<u8>,
    /// The length of the file.
    pub size: u64,
    /// The length of its content in the archive.
    pub stored: u64,
    /// Where the parts of its content belong, if the file is sparse.
    pub pieces: Option<Vec<Piece>>,
    /// Its permissions.
    pub mode: u32,
    /// Its owner.
    pub uid: u64,
    /// Its owner's group.
    pub gid: u64,
    /// When its content was changed, in seconds.
    pub mtime: i64,
    /// Its extended attributes, those that are kept.
    pub attributes: Vec<Attribute>,
    /// How many others it has.
    pub left_out: u64,
}

/// What an entry takes of its stream: its header and its content, in whole blocks.
pub fn takes(entry: &Entry) -> u64 {
    entry.stored.div_ceil(BLOCK).saturating_add(1).saturating_mul(BLOCK)
}

/// Headers that come before the one that they are about.
#[derive(Debug, Default)]
struct Before {
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    pax: Option<Pax>,
}

/// A tar stream.
#[derive(Debug)]
pub struct Entries<R> {
    input: R,
    /// Content of the entry that was not read yet, and what fills its last block.
    content: u64,
    padding: u64,
}

impl<R: Source> Entries<R> {
    /// The entries of `input`.
    pub fn new(input: R) -> Self {
        Self { input, content: 0, padding: 0 }
    }

    /// The stream: where the content of the entry begins that [`Self::next`] returned last, or behind the end.
    pub fn input(&mut self) -> &mut R {
        &mut self.input
    }

    /// The next entry; `None` behind the last one. What was not read of the content of the one before is passed over.
    ///
    /// # Errors
    /// When the stream is no archive, or cannot be read.
    pub fn next(&mut self) -> Result<Option<Entry>, TarError> {
        let mut before = Before::default();
        loop {
            let rest = self.content.checked_add(self.padding).ok_or(TarError::Cut)?;
            self.input.pass(rest)?;
            (self.content, self.padding) = (0, 0);
            let Some(block) = self.block()? else {
                return self.end(&before);
            };
            if block.iter().all(|&byte| byte == 0) {
                // The second one may be missing, but nothing else may be there.
                return match self.block()? {
                    Some(block) if block.iter().any(|&byte| byte != 0) => {
                        Err(TarError::Malformed("something follows its end"))
                    }
                    _ => self.end(&before),
                };
            }
            let header = Header::from_byte_slice(&block);
            check_sum(header)?;
            let size = size_of(header)?;
            match header.entry_type() {
                EntryType::GNULongName => before.name = Some(self.long(size)?),
                EntryType::GNULongLink => before.link = Some(self.long(size)?),
                EntryType::XHeader => {
                    let bytes = self.header(size)?;
                    before.pax = Some(Pax::parse(&bytes)?);
                }
                // What it says is about all that follows: nobody writes anything there that would matter.
                EntryType::XGlobalHeader => self.expect(size)?,
                _ => return self.entry(header, size, before).map(Some),
            }
        }
    }

    /// The content of the entry that was returned last, as the archive has it: that of a sparse file without its holes.
    pub fn content(&mut self) -> Content<'_, R> {
        Content(self)
    }

    fn end(&self, before: &Before) -> Result<Option<Entry>, TarError> {
        match before {
            Before { name: None, link: None, pax: None } => Ok(None),
            _ => Err(TarError::Cut),
        }
    }

    /// One block; `None` at the end of the stream.
    fn block(&mut self) -> Result<Option<[u8; BLOCK as usize]>, TarError> {
        let mut block = [0; BLOCK as usize];
        let mut read = 0;
        while read < block.len() {
            match self.input.read(&mut block[read..]) {
                Ok(0) if read == 0 => return Ok(None),
                Ok(0) => return Err(TarError::Cut),
                Ok(more) => read += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Some(block))
    }

    fn expect(&mut self, size: u64) -> Result<(), TarError> {
        let padded = size.checked_next_multiple_of(BLOCK).ok_or(TarError::Malformed("a size is none"))?;
        (self.content, self.padding) = (size, padded - size);
        Ok(())
    }

    /// A header that is content.
    fn header(&mut self, size: u64) -> Result<Vec<u8>, TarError> {
        if size > MAX_HEADER {
            return Err(TarError::Malformed("a header is longer than any that is needed"));
        }
        self.expect(size)?;
        let mut bytes = Vec::new();
        self.content().read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// A name that is content; it may end with a NUL.
    fn long(&mut self, size: u64) -> Result<Vec<u8>, TarError> {
        let mut name = self.header(size)?;
        if name.last() == Some(&0) {
            name.pop();
        }
        Ok(name)
    }

    fn entry(&mut self, header: &Header, size: u64, before: Before) -> Result<Entry, TarError> {
        let pax = before.pax.unwrap_or_default();
        let name = pax.path.or(before.name).unwrap_or_else(|| header.path_bytes().into_owned());
        let link = pax.link.or(before.link);
        let link = link.or_else(|| header.link_name_bytes().map(|name| name.into_owned()));
        let mut kind = match header.entry_type() {
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => Kind::File,
            EntryType::Directory => Kind::Folder,
            EntryType::Symlink => Kind::Symlink,
            EntryType::Link => Kind::HardLink,
            EntryType::Fifo => Kind::Fifo,
            EntryType::Char | EntryType::Block => Kind::Device,
            other if other.as_byte() == b's' => Kind::Socket,
            other => Kind::Other(other.as_byte()),
        };
        // Before there were folders.
        if kind == Kind::File && name.ends_with(b"/") {
            kind = Kind::Folder;
        }
        let stored = match kind {
            Kind::File | Kind::Other(_) => pax.size.unwrap_or(size),
            _ => 0,
        };
        let old = header.as_old();
        let mut entry = Entry {
            kind,
            name,
            link: link.unwrap_or_default(),
            size: stored,
            stored,
            pieces: None,
            mode: number(&old.mode, || header.mode().map(u64::from), "a mode is none")? as u32 & 0o7777,
            uid: match pax.uid {
                Some(uid) => uid,
                None => number(&old.uid, || header.uid(), "an owner is none")?,
            },
            gid: match pax.gid {
                Some(gid) => gid,
                None => number(&old.gid, || header.gid(), "a group is none")?,
            },
            mtime: match pax.mtime {
                Some(mtime) => mtime,
                // Before 1970 the number is a negative one.
                None => number(&old.mtime, || header.mtime(), "a time is none")?.cast_signed(),
            },
            attributes: pax.attributes,
            left_out: pax.left_out,
        };
        let padded = stored.checked_next_multiple_of(BLOCK).ok_or(TarError::Malformed("a size is none"))?;
        let (pieces, length) = match pax.sparse {
            _ if kind != Kind::File => (None, 0),
            Some((Map::Here(pieces), length)) => (Some(pieces), length),
            Some((Map::BeforeContent, length)) => {
                let (pieces, read) = self.map(stored)?;
                entry.stored = stored - read;
                (Some(pieces), length)
            }
            None if header.entry_type() == EntryType::GNUSparse => {
                let (pieces, length) = self.gnu_map(header)?;
                (Some(pieces), length)
            }
            None => (None, stored),
        };
        if let Some(pieces) = &pieces {
            pax::check(pieces, length, entry.stored)?;
        }
        (entry.pieces, entry.size) = (pieces, length);
        (self.content, self.padding) = (entry.stored, padded - stored);
        Ok(entry)
    }

    /// The parts of a sparse file, where they are listed before its content: decimal numbers, a line each, in whole blocks.
    /// How many bytes that took is told too.
    fn map(&mut self, stored: u64) -> Result<(Vec<Piece>, u64), TarError> {
        const WRONG: TarError = TarError::Malformed("the parts of a sparse file are not listed");
        let mut numbers = Vec::new();
        let mut text = Vec::new();
        let mut read = 0;
        loop {
            read += BLOCK;
            if read > stored {
                return Err(WRONG);
            }
            let block = self.block()?.ok_or(TarError::Cut)?;
            for byte in block {
                match byte {
                    b'\n' => {
                        numbers.push(pax::decimal(&text).ok_or(WRONG)?);
                        text.clear();
                        let parts = numbers[0];
                        if parts > MAX_PIECES as u64 {
                            return Err(TarError::Malformed("a sparse file has too many parts"));
                        }
                        if numbers.len() as u64 == 1 + 2 * parts {
                            // It fills its last block, and the content follows.
                            return Ok((pax::pieces(&numbers[1..])?, read));
                        }
                    }
                    byte if text.len() < 20 => text.push(byte),
                    _ => return Err(WRONG),
                }
            }
        }
    }

    /// The parts of a sparse file, where they are listed in its header and in the blocks behind it. And its length.
    fn gnu_map(&mut self, header: &Header) -> Result<(Vec<Piece>, u64), TarError> {
        const WRONG: TarError = TarError::Malformed("the parts of a sparse file are not listed");
        let gnu = header.as_gnu().ok_or(WRONG)?;
        let mut pieces = Vec::new();
        let mut add = |headers: &[GnuSparseHeader]| {
            for one in headers.iter().filter(|one| !one.is_empty()) {
                let (at, length) = (one.offset().map_err(|_| WRONG)?, one.length().map_err(|_| WRONG)?);
                pieces.push(Piece { at, length });
            }
            match pieces.len() > MAX_PIECES {
                true => Err(TarError::Malformed("a sparse file has too many parts")),
                false => Ok(()),
            }
        };
        add(&gnu.sparse)?;
        let mut more = gnu.is_extended();
        while more {
            let mut block = GnuExtSparseHeader::new();
            *block.as_mut_bytes() = self.block()?.ok_or(TarError::Cut)?;
            add(block.sparse())?;
            more = block.is_extended();
        }
        Ok((pieces, gnu.real_size().map_err(|_| WRONG)?))
    }
}

/// See [`Entries::content`].
#[derive(Debug)]
pub struct Content<'a, R>(&'a mut Entries<R>);

impl<R: Source> Read for Content<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = usize::try_from(self.0.content).unwrap_or(usize::MAX).min(buffer.len());
        if wanted == 0 {
            return Ok(0);
        }
        match self.0.input.read(&mut buffer[..wanted])? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            read => {
                self.0.content -= read as u64;
                Ok(read)
            }
        }
    }
}

/// The sum of a header's bytes, with spaces where the sum itself stands.
fn check_sum(header: &Header) -> Result<(), TarError> {
    let bytes = header.as_bytes();
    let sum = bytes[..148].iter().chain(&bytes[156..]).map(|&byte| u32::from(byte)).sum::<u32>();
    match header.cksum().is_ok_and(|said| said == sum + 8 * u32::from(b' ')) {
        true => Ok(()),
        false => Err(TarError::Malformed("it is no tar archive, or damaged: the sum of a header is wrong")),
    }
}

fn size_of(header: &Header) -> Result<u64, TarError> {
    number(&header.as_old().size, || header.entry_size(), "a size is none")
}

/// A number of a header; some leave out those that are 0.
fn number(
    field: &[u8],
    read: impl FnOnce() -> io::Result<u64>,
    wrong: &'static str,
) -> Result<u64, TarError> {
    match field.iter().all(|byte| matches!(byte, 0 | b' ')) {
        true => Ok(0),
        false => read().map_err(|_| TarError::Malformed(wrong)),
    }
}
