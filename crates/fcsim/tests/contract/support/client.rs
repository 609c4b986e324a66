//! HTTP over the API socket, down to the bytes.

use std::{
    io::{self, Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

use serde_json::{Value, json};

/// One connection.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    /// What was read and belongs to no answer yet.
    rest: Vec<u8>,
}

/// One answer.
#[derive(Debug)]
pub struct Answer {
    /// What it answers, for messages.
    asked: String,
    /// Status line and header lines.
    pub head: String,
    pub body: String,
}

impl Client {
    /// Connects.
    pub fn connect(socket: &Path) -> io::Result<Self> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        Ok(Self { stream, rest: Vec::new() })
    }

    /// Sends bytes as they are. A peer that hung up is seen when the answer is read.
    pub fn write(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes);
    }

    /// Sends bytes and reads one answer.
    #[track_caller]
    pub fn exchange(&mut self, bytes: &[u8]) -> Answer {
        self.write(bytes);
        let asked = String::from_utf8_lossy(&bytes[..bytes.len().min(200)]).into_owned();
        self.answer(&asked).unwrap_or_else(|error| panic!("no answer to {asked:?}: {error}"))
    }

    /// Sends a request and reads its answer.
    #[track_caller]
    pub fn request(&mut self, method: &str, path: &str, body: Option<&str>) -> Answer {
        let mut bytes = format!("{method} {path} HTTP/1.1\r\n");
        if let Some(body) = body {
            bytes.push_str(&format!("Content-Length: {}\r\n", body.len()));
        }
        bytes.push_str("\r\n");
        bytes.push_str(body.unwrap_or_default());
        self.exchange(bytes.as_bytes())
    }

    /// Reads one answer.
    pub fn answer(&mut self, asked: &str) -> io::Result<Answer> {
        let end = loop {
            match self.rest.windows(4).position(|four| four == b"\r\n\r\n") {
                Some(end) => break end,
                None => self.fill()?,
            }
        };
        let head = String::from_utf8_lossy(&self.rest[..end]).into_owned();
        let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: ")?.parse().ok());
        let whole = end + 4 + length.unwrap_or(0_usize);
        while self.rest.len() < whole {
            self.fill()?;
        }
        let body = String::from_utf8_lossy(&self.rest[end + 4..whole]).into_owned();
        self.rest.drain(..whole);
        Ok(Answer { asked: asked.to_owned(), head, body })
    }

    /// Says that nothing more will be sent, and tells whether the other side then closes without another word.
    pub fn closes_after_eof(mut self) -> bool {
        let _ = self.stream.shutdown(std::net::Shutdown::Write);
        self.is_closed()
    }

    /// Waits for the other side to close; false where it says something first.
    pub fn is_closed(&mut self) -> bool {
        match self.fill() {
            Ok(()) => false,
            Err(error) => {
                matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset)
            }
        }
    }

    fn fill(&mut self) -> io::Result<()> {
        let mut buffer = [0; 4096];
        match self.stream.read(&mut buffer)? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            count => {
                self.rest.extend_from_slice(&buffer[..count]);
                Ok(())
            }
        }
    }
}

impl Answer {
    /// The status line must be this one: there is no reason phrase.
    #[track_caller]
    fn expect_status(&self, status: u16) {
        let line = self.head.lines().next().unwrap_or_default();
        let Self { asked, body, .. } = self;
        assert_eq!(line, format!("HTTP/1.1 {status} "), "to {asked}\nwith body {body}");
    }

    /// It went well and there is nothing to say.
    #[track_caller]
    pub fn done(&self) {
        self.expect_status(204);
        assert_eq!(self.body, "", "to {}", self.asked);
    }

    /// It went well and this is the answer.
    #[track_caller]
    pub fn says(&self, expected: Value) {
        assert_eq!(self.value(), expected, "to {}", self.asked);
    }

    /// The answer of a request that went well.
    #[track_caller]
    pub fn value(&self) -> Value {
        self.expect_status(200);
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error} in {}", self.body))
    }

    /// It is refused with exactly this text.
    #[track_caller]
    pub fn fault(&self, message: &str) {
        self.refused(400, message);
    }

    /// Its body is not what it should be, and this is why.
    #[track_caller]
    pub fn bad_body(&self, why: &str) {
        self.fault(&format!("An error occurred when deserializing the json body of a request: {why}."));
    }

    /// It is refused with a status and exactly this text.
    #[track_caller]
    pub fn refused(&self, status: u16, message: &str) {
        self.expect_status(status);
        let expected = json!({ "fault_message": message }).to_string();
        assert_eq!(self.body, expected, "to {}", self.asked);
    }

    /// It is refused by the HTTP layer, whose bodies have a line break in a text and so are no JSON.
    #[track_caller]
    pub fn http_error(&self, message: &str) {
        self.expect_status(400);
        let expected =
            format!("{{ \"error\": \"{message}\nAll previous unanswered requests will be dropped.\" }}");
        assert_eq!(self.body, expected, "to {}", self.asked);
    }

    /// Does it say that what was asked for is deprecated?
    pub fn is_deprecated(&self) -> bool {
        self.head.lines().any(|line| line == "Deprecation: true")
    }
}
