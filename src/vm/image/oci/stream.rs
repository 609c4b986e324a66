//! Streams of an archive: a part of a file, unpacked as its first bytes say, and measured. Nothing is held but buffers.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read},
    os::unix::fs::FileExt,
    time::Instant,
};

use flate2::bufread::MultiGzDecoder;

use super::{
    left::{Left, in_time},
    limits::MAX_WINDOW_LOG,
};

const BUFFER: usize = 64 << 10;

/// A part of a file. Several may be read at one time, and each only until its time is over: what is read may be nothing to
/// who unpacks it, however much it is.
#[derive(Debug, Clone)]
pub struct Section<'a> {
    file: &'a File,
    at: u64,
    end: u64,
    until: Instant,
}

impl<'a> Section<'a> {
    /// The part that begins at `at`.
    pub fn new(file: &'a File, at: u64, length: u64, until: Instant) -> Self {
        Self { file, at, end: at.saturating_add(length), until }
    }

    /// Where its next byte lies in the file.
    pub fn position(&self) -> u64 {
        self.at
    }

    /// How much is left of it.
    pub fn left(&self) -> u64 {
        self.end.saturating_sub(self.at)
    }

    /// Its first bytes, without reading on; fewer where there are no more.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn head(&self) -> io::Result<[u8; 8]> {
        let mut head = [0; 8];
        let mut copy = self.clone();
        let mut read = 0;
        while read < head.len() {
            match copy.read(&mut head[read..])? {
                0 => break,
                more => read += more,
            }
        }
        Ok(head)
    }
}

impl Read for Section<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        in_time(self.until)?;
        let wanted = usize::try_from(self.left()).unwrap_or(usize::MAX).min(buffer.len());
        let read = self.file.read_at(&mut buffer[..wanted], self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}

/// What can be passed over.
pub trait Source: Read + Sized {
    /// Passes over so many bytes.
    ///
    /// # Errors
    /// When there are fewer, or they cannot be read.
    fn pass(&mut self, bytes: u64) -> io::Result<()> {
        match io::copy(&mut self.by_ref().take(bytes), &mut io::sink())? == bytes {
            true => Ok(()),
            false => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

impl Source for Section<'_> {
    fn pass(&mut self, bytes: u64) -> io::Result<()> {
        if bytes > self.left() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.at += bytes;
        Ok(())
    }
}

impl<S: Source> Source for &mut S {
    fn pass(&mut self, bytes: u64) -> io::Result<()> {
        (**self).pass(bytes)
    }
}

/// How a stream is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packing {
    /// Not at all.
    Plain,
    /// gzip, one member or several.
    Gzip,
    /// Zstandard, one frame or several.
    Zstd,
}

/// A packing that is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it is packed by {0}: gzip, zstd and plain archives are taken")]
pub struct OtherPacking(&'static str);

impl Packing {
    /// As the first bytes of a stream say.
    ///
    /// # Errors
    /// [`OtherPacking`] names one that is known and not taken.
    pub fn of(head: [u8; 8]) -> Result<Self, OtherPacking> {
        match head {
            [0x1f, 0x8b, ..] => Ok(Self::Gzip),
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Ok(Self::Zstd),
            // A frame that is skipped comes first in some.
            [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Ok(Self::Zstd),
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Err(OtherPacking("xz")),
            [b'B', b'Z', b'h', b'1'..=b'9', 0x31, 0x41, 0x59, 0x26] => Err(OtherPacking("bzip2")),
            _ => Ok(Self::Plain),
        }
    }
}

/// A stream as it was before it was packed.
pub enum Unpacking<R: Read> {
    /// It was not.
    Plain(BufReader<R>),
    /// See [`Packing::Gzip`].
    Gzip(Box<MultiGzDecoder<BufReader<R>>>),
    /// See [`Packing::Zstd`].
    Zstd(Box<zstd::Decoder<'static, BufReader<R>>>),
}

impl<R: Read> Unpacking<R> {
    /// Unpacks `input`.
    ///
    /// # Errors
    /// When no memory is there for it.
    pub fn new(input: R, packing: Packing) -> io::Result<Self> {
        let input = BufReader::with_capacity(BUFFER, input);
        Ok(match packing {
            Packing::Plain => Self::Plain(input),
            Packing::Gzip => Self::Gzip(Box::new(MultiGzDecoder::new(input))),
            Packing::Zstd => {
                let mut decoder = zstd::Decoder::with_buffer(input)?;
                decoder.window_log_max(MAX_WINDOW_LOG)?;
                Self::Zstd(Box::new(decoder))
            }
        })
    }

    /// Reads what lies behind the end of what was packed. True where there was something.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn has_more(self) -> io::Result<bool> {
        let mut input = match self {
            Self::Plain(input) => input,
            Self::Gzip(decoder) => decoder.into_inner(),
            Self::Zstd(decoder) => decoder.finish(),
        };
        Ok(!input.fill_buf()?.is_empty())
    }
}

impl<R: Read> Read for Unpacking<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(input) => input.read(buffer),
            Self::Gzip(decoder) => decoder.read(buffer),
            Self::Zstd(decoder) => decoder.read(buffer),
        }
    }
}

/// A stream that may not be longer than what is left for it and others.
#[derive(Debug)]
pub struct Metered<'a, R> {
    /// The stream.
    pub input: R,
    /// What is left.
    pub left: &'a Left,
}

impl<R: Read> Read for Metered<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.input.read(buffer)?;
        self.left.bytes(read as u64)?;
        Ok(read)
    }
}

impl<R: Read> Source for Metered<'_, R> {}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::{
        super::{left::Exceeded, limits::Limits},
        *,
    };

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn unpack(bytes: &[u8]) -> io::Result<(Vec<u8>, bool)> {
        let mut head = [0; 8];
        let known = bytes.len().min(8);
        head[..known].copy_from_slice(&bytes[..known]);
        let mut unpacking = Unpacking::new(bytes, Packing::of(head).map_err(io::Error::other)?)?;
        let mut out = Vec::new();
        unpacking.read_to_end(&mut out)?;
        Ok((out, unpacking.has_more()?))
    }

    #[test]
    fn streams_are_unpacked_as_their_first_bytes_say() {
        let zstd = |bytes: &[u8]| zstd::encode_all(bytes, 3).unwrap();
        let skipped = [&[0x50, 0x2a, 0x4d, 0x18, 2, 0, 0, 0, 9, 9][..], &zstd(b"hello")].concat();
        for packed in [
            b"hello".to_vec(),
            gzip(b"hello"),
            zstd(b"hello"),
            skipped,
            [gzip(b"he"), gzip(b"llo")].concat(),
            [zstd(b"he"), zstd(b"llo")].concat(),
        ] {
            assert_eq!(unpack(&packed).unwrap(), (b"hello".to_vec(), false));
        }
        assert!(Packing::of(*b"\xfd7zXZ\0\0\0").is_err() && Packing::of(*b"BZh91AY&").is_err());
        for whole in [gzip(&[7; 5000]), zstd(&[7; 5000])] {
            assert!(unpack(&whole[..whole.len() - 3]).is_err(), "cut");
            assert!(unpack(&[&whole[..], b"behind it"].concat()).map_or(true, |(_, more)| more), "more");
        }
    }

    #[test]
    fn a_bomb_ends_where_it_may_not_be_longer() {
        let left = Left::of(&Limits { bytes: 1 << 20, ..Limits::default() });
        let bomb = gzip(&vec![0; 8 << 20]);
        let input = Unpacking::new(&bomb[..], Packing::Gzip).unwrap();
        let error = io::copy(&mut Metered { input, left: &left }, &mut io::sink()).unwrap_err();
        assert_eq!(Exceeded::of(&error), Some(Exceeded::Bytes));
    }

    /// Members that unpack to nothing: who reads them sees no byte, and the time is over all the same.
    #[test]
    fn what_unpacks_to_nothing_ends_in_time() {
        let file = tempfile::tempfile().unwrap();
        let members = gzip(b"").repeat(10_000);
        file.write_all_at(&members, 0).unwrap();
        let unpack = |until: Instant| {
            let section = Section::new(&file, 0, members.len() as u64, until);
            io::copy(&mut Unpacking::new(section, Packing::Gzip)?, &mut io::sink())
        };
        assert_eq!(unpack(Limits::default().until).unwrap(), 0);
        assert_eq!(Exceeded::of(&unpack(Instant::now()).unwrap_err()), Some(Exceeded::Time));
    }

    #[test]
    fn a_section_is_a_part_of_a_file() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(b"0123456789", 0).unwrap();
        let mut section = Section::new(&file, 2, 5, Limits::default().until);
        assert_eq!(section.head().unwrap(), *b"23456\0\0\0");
        section.pass(2).unwrap();
        let mut text = String::new();
        section.read_to_string(&mut text).unwrap();
        assert_eq!((text.as_str(), section.position(), section.left()), ("456", 7, 0));
        assert!(section.pass(1).is_err());
        let mut beyond = Section::new(&file, 8, 100, Limits::default().until);
        assert_eq!(beyond.read_to_end(&mut Vec::new()).unwrap(), 2);
    }
}
