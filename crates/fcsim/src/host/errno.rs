//! Texts of system errors as Firecracker's official builds print them: those are linked with musl, whose wording
//! differs from glibc's in places ("Address in use", "Resource busy"), and callers match on these texts.

use std::{fmt, io};

/// An I/O error that prints as it would in a musl program.
pub(crate) struct OsError(pub io::Error);

impl fmt::Debug for OsError {
    /// As the error itself does.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.raw_os_error().and_then(|code| Some((musl_text(code)?, code))) {
            Some((text, code)) => f
                .debug_struct("Os")
                .field("code", &code)
                .field("kind", &self.0.kind())
                .field("message", &text)
                .finish(),
            None => fmt::Debug::fmt(&self.0, f),
        }
    }
}

impl From<io::Error> for OsError {
    fn from(error: io::Error) -> Self {
        Self(error)
    }
}

impl From<rustix::io::Errno> for OsError {
    fn from(error: rustix::io::Errno) -> Self {
        Self(error.into())
    }
}

impl std::error::Error for OsError {}

impl fmt::Display for OsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.raw_os_error().and_then(|code| Some((musl_text(code)?, code))) {
            Some((text, code)) => write!(f, "{text} (os error {code})"),
            None => fmt::Display::fmt(&self.0, f),
        }
    }
}

/// musl's wording where it is not glibc's.
fn musl_text(code: i32) -> Option<&'static str> {
    Some(match code {
        libc::EADDRINUSE => "Address in use",
        libc::EADDRNOTAVAIL => "Address not available",
        libc::EBUSY => "Resource busy",
        libc::ECHILD => "No child process",
        libc::ECONNABORTED => "Connection aborted",
        libc::EDEADLK => "Resource deadlock would occur",
        libc::EDQUOT => "Quota exceeded",
        libc::EHOSTUNREACH => "Host is unreachable",
        libc::EIO => "I/O error",
        libc::EISCONN => "Socket is connected",
        libc::ELOOP => "Symbolic link loop",
        libc::EMFILE => "No file descriptors available",
        libc::EMSGSIZE => "Message too large",
        libc::ENAMETOOLONG => "Filename too long",
        libc::ENETRESET => "Connection reset by network",
        libc::ENETUNREACH => "Network unreachable",
        libc::ENFILE => "Too many open files in system",
        libc::ENOMEM => "Out of memory",
        libc::ENOTCONN => "Socket not connected",
        libc::ENOTSUP => "Not supported",
        libc::ENOTTY => "Not a tty",
        libc::ENXIO => "No such device or address",
        libc::EOVERFLOW => "Value too large for data type",
        libc::ESHUTDOWN => "Cannot send after socket shutdown",
        libc::ESPIPE => "Invalid seek",
        libc::ETIMEDOUT => "Operation timed out",
        libc::EXDEV => "Cross-device link",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_musls_where_the_two_differ() {
        let text = |code| OsError(io::Error::from_raw_os_error(code)).to_string();
        assert_eq!(text(libc::ENOENT), "No such file or directory (os error 2)");
        assert_eq!(text(libc::EADDRINUSE), "Address in use (os error 98)");
        assert_eq!(text(libc::EBUSY), "Resource busy (os error 16)");
        assert_eq!(OsError(io::Error::other("made up")).to_string(), "made up");
    }
}
