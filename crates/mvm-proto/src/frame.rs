//! Frames: a length, a kind, and that many bytes. What is in them is said in [`super::message`].
//!
//! ```text
//! u32 little-endian: length of the content   u8: kind   content
//! ```

use std::io::{self, Read, Write};

use serde::{Serialize, de::DeserializeOwned};

/// Bytes in a frame of data at most.
pub const MAX_DATA: usize = 256 << 10;
/// Bytes in a message at most: the longest is a command with its environment.
pub const MAX_MESSAGE: usize = 64 << 10;
const HEAD: usize = 5;

/// What a frame holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// A message: JSON.
    Message = 0,
    /// Bytes: a file's, a command's input or output. None at all are the end of an input.
    Data = 1,
    /// Bytes of a command's error output.
    Errors = 2,
}

/// Why a frame could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum ProtoError {
    /// The connection failed.
    #[error("the connection failed")]
    Io(#[from] io::Error),
    /// The other side closed the connection where it owed an answer.
    #[error("the connection was closed in place of an answer")]
    Closed,
    /// A frame that is longer than any can be.
    #[error("a frame of {length} bytes: at most {most} are possible")]
    TooLong {
        /// Its length.
        length: usize,
        /// The most.
        most: usize,
    },
    /// A frame of no known kind.
    #[error("a frame of unknown kind {0}")]
    Kind(u8),
    /// A frame of another kind than is due.
    #[error("a frame of data in place of a message")]
    Unexpected,
    /// A message that is none.
    #[error("a message that makes no sense")]
    Message(#[source] serde_json::Error),
}

impl ProtoError {
    /// Is it the other side that broke the rules, and not the connection?
    pub fn is_nonsense(&self) -> bool {
        !matches!(self, Self::Io(_) | Self::Closed)
    }
}

/// Reads and writes frames on a stream, with one buffer each way.
#[derive(Debug)]
pub struct Frames<S> {
    stream: S,
    read: Vec<u8>,
    write: Vec<u8>,
}

impl<S> Frames<S> {
    /// On this stream.
    pub fn on(stream: S) -> Self {
        Self { stream, read: Vec::new(), write: Vec::new() }
    }

    /// The stream.
    pub fn stream(&self) -> &S {
        &self.stream
    }

    /// The stream, for who sets its limits.
    pub fn stream_mut(&mut self) -> &mut S {
        &mut self.stream
    }

    /// The content of the frame that was read last.
    pub fn content(&self) -> &[u8] {
        &self.read
    }
}

impl<S: Read> Frames<S> {
    /// Reads the next frame; its content is [`Frames::content`] until the next one. `None` where the other side has closed
    /// the connection between two frames.
    ///
    /// # Errors
    /// Where the connection fails, ends within a frame, or carries something that is no frame.
    pub fn advance(&mut self) -> Result<Option<Kind>, ProtoError> {
        let mut head = [0; HEAD];
        let mut filled = 0;
        while filled < HEAD {
            match self.stream.read(&mut head[filled..]) {
                Ok(0) if filled == 0 => return Ok(None),
                Ok(0) => return Err(ProtoError::Closed),
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        let [length @ .., kind] = head;
        let length = u32::from_le_bytes(length) as usize;
        let (kind, most) = match kind {
            0 => (Kind::Message, MAX_MESSAGE),
            1 => (Kind::Data, MAX_DATA),
            2 => (Kind::Errors, MAX_DATA),
            other => return Err(ProtoError::Kind(other)),
        };
        if length > most {
            return Err(ProtoError::TooLong { length, most });
        }
        // Grows as the bytes come: a length alone takes no memory.
        self.read.clear();
        let mut rest = (&mut self.stream).take(length as u64);
        if rest.read_to_end(&mut self.read)? < length {
            return Err(ProtoError::Closed);
        }
        Ok(Some(kind))
    }

    /// Reads a message, which must be next.
    ///
    /// # Errors
    /// As [`Frames::advance`], and where it is none or makes no sense.
    pub fn message<T: DeserializeOwned>(&mut self) -> Result<T, ProtoError> {
        match self.advance()? {
            Some(Kind::Message) => self.parse(),
            Some(_) => Err(ProtoError::Unexpected),
            None => Err(ProtoError::Closed),
        }
    }

    /// Reads a frame of data that is as long as this, and keeps no copy of it.
    ///
    /// # Errors
    /// As [`Frames::advance`], and where it is none or of another length.
    pub fn data_into(&mut self, content: &mut [u8]) -> Result<(), ProtoError> {
        let mut head = [0; HEAD];
        self.read_whole(&mut head)?;
        let [length @ .., kind] = head;
        let length = u32::from_le_bytes(length) as usize;
        if kind != Kind::Data as u8 || length != content.len() {
            return Err(ProtoError::Unexpected);
        }
        self.read_whole(content)
    }

    fn read_whole(&mut self, bytes: &mut [u8]) -> Result<(), ProtoError> {
        self.stream.read_exact(bytes).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => ProtoError::Closed,
            _ => error.into(),
        })
    }

    /// The message that was read last.
    ///
    /// # Errors
    /// Where it makes no sense.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T, ProtoError> {
        serde_json::from_slice(&self.read).map_err(ProtoError::Message)
    }
}

impl<S: Write> Frames<S> {
    /// Writes a message.
    ///
    /// # Errors
    /// Where the connection fails, or the message is too long.
    pub fn send<T: Serialize>(&mut self, message: &T) -> Result<(), ProtoError> {
        self.begin(Kind::Message);
        serde_json::to_writer(&mut self.write, message).map_err(ProtoError::Message)?;
        self.finish(MAX_MESSAGE)
    }

    /// Writes bytes.
    ///
    /// # Errors
    /// Where the connection fails, or there are more than [`MAX_DATA`].
    pub fn data(&mut self, kind: Kind, bytes: &[u8]) -> Result<(), ProtoError> {
        self.begin(kind);
        self.write.extend_from_slice(bytes);
        self.finish(MAX_DATA)
    }

    /// Writes bytes, and keeps no copy of them.
    ///
    /// # Errors
    /// As [`Frames::data`].
    pub fn data_uncopied(&mut self, kind: Kind, bytes: &[u8]) -> Result<(), ProtoError> {
        let length = bytes.len();
        if length > MAX_DATA {
            return Err(ProtoError::TooLong { length, most: MAX_DATA });
        }
        let [a, b, c, d] = (length as u32).to_le_bytes();
        self.stream.write_all(&[a, b, c, d, kind as u8])?;
        Ok(self.stream.write_all(bytes)?)
    }

    /// Writes bytes that `fill` puts behind those that are there, and returns how many: they are not copied once more.
    ///
    /// # Errors
    /// Where the connection fails, or `fill` does.
    pub fn data_from(
        &mut self,
        kind: Kind,
        most: usize,
        fill: impl FnOnce(&mut [u8]) -> io::Result<usize>,
    ) -> Result<usize, ProtoError> {
        self.begin(kind);
        self.write.resize(HEAD + most.min(MAX_DATA), 0);
        let count = fill(&mut self.write[HEAD..])?;
        self.write.truncate(HEAD + count);
        if count > 0 {
            self.finish(MAX_DATA)?;
        }
        Ok(count)
    }

    fn begin(&mut self, kind: Kind) {
        self.write.clear();
        self.write.extend_from_slice(&[0, 0, 0, 0, kind as u8]);
    }

    /// Head and content go in one piece.
    fn finish(&mut self, most: usize) -> Result<(), ProtoError> {
        let length = self.write.len() - HEAD;
        if length > most {
            return Err(ProtoError::TooLong { length, most });
        }
        // At most MAX_DATA.
        self.write[..4].copy_from_slice(&(length as u32).to_le_bytes());
        Ok(self.stream.write_all(&self.write)?)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frames(bytes: &[u8]) -> Frames<&[u8]> {
        Frames::on(bytes)
    }

    #[test]
    fn what_is_written_is_read() {
        let mut out = Frames::on(Vec::new());
        out.send(&"hello").unwrap();
        out.data(Kind::Data, b"abc").unwrap();
        out.data(Kind::Data, b"").unwrap();
        out.data(Kind::Errors, b"no").unwrap();
        assert_eq!(out.data_from(Kind::Data, 9, |space| (&b"xy"[..]).read(space)).unwrap(), 2);
        let bytes = out.stream().clone();
        let mut back = frames(&bytes);
        assert_eq!(back.message::<String>().unwrap(), "hello");
        for (kind, content) in
            [(Kind::Data, "abc"), (Kind::Data, ""), (Kind::Errors, "no"), (Kind::Data, "xy")]
        {
            assert_eq!(back.advance().unwrap(), Some(kind));
            assert_eq!(back.content(), content.as_bytes());
        }
        assert_eq!(back.advance().unwrap(), None);
    }

    #[test]
    fn what_is_secret_passes_without_a_copy() {
        let mut out = Frames::on(Vec::new());
        for piece in [&b"secret"[..], b""] {
            out.data_uncopied(Kind::Data, piece).unwrap();
        }
        assert_eq!(out.write.capacity(), 0);
        let bytes = out.stream().clone();
        let mut back = frames(&bytes);
        let (mut six, mut none) = ([0; 6], [0; 0]);
        back.data_into(&mut six).unwrap();
        back.data_into(&mut none).unwrap();
        assert_eq!((&six, back.read.capacity()), (b"secret", 0));
        assert!(matches!(back.data_into(&mut six), Err(ProtoError::Closed)));
        for length in [5, 7] {
            let wrong = frames(&bytes).data_into(&mut vec![0; length]);
            assert!(matches!(wrong, Err(ProtoError::Unexpected)), "{length}");
        }
        assert!(matches!(frames(&bytes[..7]).data_into(&mut six), Err(ProtoError::Closed)));
    }

    #[test]
    fn what_is_no_frame_is_an_error() {
        let head = |length: u32, kind: u8| [&length.to_le_bytes()[..], &[kind]].concat();
        let too_long = MAX_DATA as u32 + 1;
        assert!(matches!(frames(&head(too_long, 1)).advance(), Err(ProtoError::TooLong { .. })));
        let too_long = MAX_MESSAGE as u32 + 1;
        assert!(matches!(frames(&head(too_long, 0)).advance(), Err(ProtoError::TooLong { .. })));
        assert!(matches!(frames(&head(0, 9)).advance(), Err(ProtoError::Kind(9))));
        assert!(matches!(frames(&head(4, 1)).advance(), Err(ProtoError::Closed)));
        assert!(matches!(frames(&[1, 0]).advance(), Err(ProtoError::Closed)));
        let json = [head(1, 0), b"{".to_vec()].concat();
        assert!(matches!(frames(&json).message::<String>(), Err(ProtoError::Message(_))));
        assert!(matches!(frames(&head(0, 1)).message::<String>(), Err(ProtoError::Unexpected)));
    }

    #[test]
    fn nothing_too_long_is_written() {
        let mut out = Frames::on(Vec::new());
        let long = vec![0; MAX_DATA + 1];
        assert!(matches!(out.data(Kind::Data, &long), Err(ProtoError::TooLong { .. })));
        assert!(out.stream().is_empty());
    }

    proptest! {
        #[test]
        fn any_bytes_are_frames_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let mut frames = frames(&bytes);
            while let Ok(Some(_)) = frames.advance() {
                prop_assert!(frames.content().len() <= bytes.len());
            }
        }
    }
}
