//! Bytes of one connection into requests, with the limits and the leftovers of Firecracker's parser: a window of
//! 1,024 bytes in which each line must end, and a state that an error leaves as it was.

use std::collections::VecDeque;

use super::{Method, Request, headers::Headers};

/// Each line must fit in here.
const WINDOW: usize = 1024;

/// Why bytes are not a request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RequestError {
    #[error("Invalid header. Reason: {0}")]
    Header(String),
    #[error("Invalid HTTP Method: Unsupported HTTP method.")]
    Method,
    #[error("Invalid HTTP Version: Unsupported HTTP version.")]
    Version,
    #[error("Invalid request.")]
    InvalidRequest,
    #[error("Invalid URI: {0}")]
    Uri(&'static str),
    #[error("Overflow occurred when parsing a request.")]
    Overflow,
    #[error("Request payload with size {size} is larger than the limit of {limit} allowed by server.")]
    TooLarge { size: usize, limit: usize },
}

/// What comes out of a parser.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// The client waits for a go-ahead before it sends its body.
    Continue,
    Request(Request),
}

#[derive(Debug, Default, PartialEq, Eq, Clone, Copy)]
enum State {
    #[default]
    RequestLine,
    Headers,
    Body,
}

/// A connection's parser.
#[derive(Debug)]
pub(crate) struct Parser {
    state: State,
    /// Bytes that were read and not yet used: the beginning of a line.
    window: Vec<u8>,
    pending: Option<(Method, String)>,
    headers: Headers,
    body: Vec<u8>,
    limit: usize,
    events: VecDeque<Event>,
}

impl Parser {
    /// A parser that takes bodies up to `limit` bytes.
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            state: State::default(),
            window: Vec::new(),
            pending: None,
            headers: Headers::default(),
            body: Vec::new(),
            limit,
            events: VecDeque::new(),
        }
    }

    /// How many bytes may be read next; zero where the window is full.
    pub(crate) fn room(&self) -> usize {
        WINDOW.saturating_sub(self.window.len())
    }

    /// Takes bytes in, at most [`Parser::room`] of them. After an error the bytes are gone, the state is not.
    pub(crate) fn feed(&mut self, bytes: &[u8]) -> Result<(), RequestError> {
        let before = self.window.len();
        if before >= WINDOW || bytes.len() > WINDOW - before {
            return Err(RequestError::Overflow);
        }
        self.window.extend_from_slice(bytes);
        let mut start = 0;
        let outcome = loop {
            match self.step(&mut start) {
                Ok(true) => {}
                Ok(false) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        if outcome.is_ok() {
            self.window.drain(..start);
        } else {
            // the window's cursor stays where it was before this read
            self.window.truncate(before);
        }
        outcome
    }

    /// The next thing that was understood.
    pub(crate) fn pop(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Forgets requests that were understood and not yet taken.
    pub(crate) fn discard_requests(&mut self) {
        self.events.retain(|event| matches!(event, Event::Continue));
    }

    /// One step; false where more bytes are needed.
    fn step(&mut self, start: &mut usize) -> Result<bool, RequestError> {
        let rest = &self.window[*start..];
        match self.state {
            State::RequestLine | State::Headers => {
                let Some(end) = rest.windows(2).position(|pair| pair == b"\r\n") else {
                    if *start == 0 && self.window.len() == WINDOW {
                        return Err(match self.state {
                            State::RequestLine => RequestError::InvalidRequest,
                            _ => RequestError::Header(format!(
                                "Invalid content length. Header: {}",
                                String::from_utf8_lossy(&self.window)
                            )),
                        });
                    }
                    return Ok(false);
                };
                let line = rest[..end].to_vec();
                if self.state == State::RequestLine {
                    *start += end + 2;
                    self.pending = Some(request_line(&line)?);
                    self.headers = Headers::default();
                    self.state = State::Headers;
                } else if line.is_empty() {
                    self.end_of_headers()?;
                    *start += 2;
                } else {
                    self.headers.line(&line)?;
                    *start += end + 2;
                }
                Ok(true)
            }
            State::Body => {
                let wanted = (self.headers.content_length as usize).saturating_sub(self.body.len());
                let take = wanted.min(rest.len());
                self.body.extend_from_slice(&rest[..take]);
                *start += take;
                if take < wanted {
                    return Ok(false);
                }
                let body = std::mem::take(&mut self.body);
                self.finish(Some(body));
                Ok(true)
            }
        }
    }

    fn end_of_headers(&mut self) -> Result<(), RequestError> {
        let size = self.headers.content_length as usize;
        if size == 0 {
            self.finish(None);
        } else if size > self.limit {
            return Err(RequestError::TooLarge { size, limit: self.limit });
        } else {
            if self.headers.expect_continue {
                self.events.push_back(Event::Continue);
            }
            self.state = State::Body;
        }
        Ok(())
    }

    fn finish(&mut self, body: Option<Vec<u8>>) {
        self.state = State::RequestLine;
        if let Some((method, path)) = self.pending.take() {
            self.events.push_back(Event::Request(Request { method, path, body }));
        }
    }
}

fn request_line(line: &[u8]) -> Result<(Method, String), RequestError> {
    let mut parts = line.splitn(3, |&byte| byte == b' ');
    let (Some(method), Some(uri), Some(version)) = (parts.next(), parts.next(), parts.next()) else {
        return Err(RequestError::InvalidRequest);
    };
    let method = Method::from_token(method).ok_or(RequestError::Method)?;
    if uri.is_empty() {
        return Err(RequestError::Uri("Empty URI not allowed."));
    }
    let uri = str::from_utf8(uri).map_err(|_| RequestError::Uri("Cannot parse URI as UTF-8."))?;
    if !matches!(version, b"HTTP/1.0" | b"HTTP/1.1") {
        return Err(RequestError::Version);
    }
    Ok((method, path_of(uri).to_owned()))
}

/// The path of a request target: after the host where a scheme was given, empty where it is no path.
fn path_of(uri: &str) -> &str {
    match uri.strip_prefix("http://") {
        Some(rest) => rest.find('/').map_or("", |at| &rest[at..]),
        None if uri.starts_with('/') => uri,
        None => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(method: Method, path: &str, body: Option<&str>) -> Option<Event> {
        Some(Event::Request(Request { method, path: path.into(), body: body.map(|text| text.into()) }))
    }

    #[test]
    fn a_request_may_come_a_byte_at_a_time() {
        let mut parser = Parser::new(100);
        for byte in b"PUT /vm HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}GET / HTTP/1.0\r\n\r\n" {
            parser.feed(&[*byte]).unwrap();
        }
        assert_eq!(parser.pop(), request(Method::Put, "/vm", Some("{}")));
        assert_eq!(parser.pop(), request(Method::Get, "/", None));
        assert_eq!(parser.pop(), None);
    }

    #[test]
    fn a_body_past_the_limit_is_refused_by_its_header() {
        let mut parser = Parser::new(10);
        let error = parser.feed(b"PUT / HTTP/1.1\r\nContent-Length: 11\r\n\r\n").unwrap_err();
        assert_eq!(error, RequestError::TooLarge { size: 11, limit: 10 });
    }

    #[test]
    fn an_error_in_the_headers_leaves_the_parser_among_headers() {
        let mut parser = Parser::new(10);
        assert!(parser.feed(b"GET / HTTP/1.1\r\nnonsense\r\n\r\n").is_err());
        let error = parser.feed(b"GET / HTTP/1.1\r\n\r\n").unwrap_err();
        assert_eq!(
            error.to_string(),
            "Invalid header. Reason: Header is incorrectly formatted. Key: GET / HTTP/1.1"
        );
    }

    #[test]
    fn a_line_must_fit_in_the_window() {
        let mut parser = Parser::new(10);
        assert_eq!(parser.feed(&[b'a'; 1024]), Err(RequestError::InvalidRequest));
        let mut parser = Parser::new(10);
        parser.feed(&[b'a'; 1023]).unwrap();
        assert_eq!(parser.room(), 1);
    }

    #[test]
    fn targets_with_a_host_lose_it() {
        assert_eq!(path_of("http://localhost/vm/config"), "/vm/config");
        assert_eq!(path_of("http://localhost"), "");
        assert_eq!(path_of("/vm"), "/vm");
        assert_eq!(path_of("vm"), "");
    }
}
