//! HTTP as Firecracker's small server speaks it: requests, responses, and the rules of its parser.
//!
//! Knows nothing of the API behind it.

mod headers;
mod parser;
pub(crate) mod server;

use std::fmt;

pub(crate) use parser::Parser;

/// The methods that are known at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Method {
    Get,
    Put,
    Patch,
    Delete,
}

impl Method {
    fn from_token(token: &[u8]) -> Option<Self> {
        Some(match token {
            b"GET" => Self::Get,
            b"PUT" => Self::Put,
            b"PATCH" => Self::Patch,
            b"DELETE" => Self::Delete,
            _ => return None,
        })
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Get => "GET",
            Self::Put => "PUT",
            Self::Patch => "PATCH",
            Self::Delete => "DELETE",
        })
    }
}

/// A whole request.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Request {
    pub method: Method,
    /// The path; empty where the target was not a path.
    pub path: String,
    /// The body, where Content-Length was not zero.
    pub body: Option<Vec<u8>>,
}

/// A response, before it is put into bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Response {
    pub status: u16,
    /// Says that the request used something deprecated.
    pub deprecation: bool,
    pub body: Option<String>,
}

impl Response {
    /// A response without a body.
    pub(crate) fn empty(status: u16) -> Self {
        Self { status, deprecation: false, body: None }
    }

    /// A response with a body.
    pub(crate) fn with_body(status: u16, body: String) -> Self {
        Self { status, deprecation: false, body: Some(body) }
    }

    /// The bytes on the wire: no reason phrase, and a space where it would be.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut text =
            format!("HTTP/1.1 {} \r\nServer: Firecracker API\r\nConnection: keep-alive\r\n", self.status);
        if self.deprecation {
            text.push_str("Deprecation: true\r\n");
        }
        let length = match (&self.body, self.status) {
            (Some(body), _) => Some(body.len()),
            (None, 100 | 204) => None,
            (None, _) => Some(0),
        };
        if let Some(length) = length {
            text.push_str(&format!("Content-Type: application/json\r\nContent-Length: {length}\r\n"));
        }
        text.push_str("\r\n");
        text.push_str(self.body.as_deref().unwrap_or_default());
        text.into_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_204_has_no_length_and_no_reason() {
        let bytes = Response::empty(204).to_bytes();
        assert_eq!(bytes, b"HTTP/1.1 204 \r\nServer: Firecracker API\r\nConnection: keep-alive\r\n\r\n");
    }

    #[test]
    fn deprecation_comes_before_the_type() {
        let response = Response { deprecation: true, ..Response::with_body(400, "{}".into()) };
        let text = String::from_utf8(response.to_bytes()).unwrap_or_default();
        assert!(text.contains(
            "keep-alive\r\nDeprecation: true\r\nContent-Type: application/json\r\nContent-Length: 2"
        ));
    }
}
