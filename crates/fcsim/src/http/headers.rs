//! The header lines that mean something, and what is wrong with those that are refused.

use super::parser::RequestError;

/// What a request's headers said.
#[derive(Debug, Default)]
pub(super) struct Headers {
    pub content_length: u32,
    pub expect_continue: bool,
}

impl Headers {
    /// Takes one line in. Values that are merely not supported are passed over, like unknown names.
    pub(super) fn line(&mut self, line: &[u8]) -> Result<(), RequestError> {
        let line = str::from_utf8(line).map_err(|error| {
            RequestError::Header(format!("Header contains invalid characters. Key: {error}"))
        })?;
        let Some((name, value)) = line.split_once(':') else {
            return Err(RequestError::Header(format!("Header is incorrectly formatted. Key: {line}")));
        };
        let invalid = |name: &str, value: &str| {
            Err(RequestError::Header(format!("Invalid value. Key:{name}; Value:{value}")))
        };
        match name.to_ascii_lowercase().trim() {
            "content-length" => match value.trim().parse() {
                Ok(length) => self.content_length = length,
                Err(_) => return invalid(name, value),
            },
            "expect" => self.expect_continue |= value.trim() == "100-continue",
            "content-type" | "accept" if value.trim().is_empty() => {}
            "accept-encoding" => {
                let value = value.trim();
                if value.is_empty() {
                    return Err(RequestError::InvalidRequest);
                }
                for encoding in value.split(',').map(str::trim) {
                    if encoding == "identity;q=0" || (encoding == "*;q=0" && !value.contains("identity")) {
                        return invalid("Accept-Encoding", encoding);
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }
}
