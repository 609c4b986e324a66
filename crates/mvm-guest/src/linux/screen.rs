//! Where the agent prints: the guest's console, or its own error output as a service. Never waits: a person may have stopped
//! the console, and what does not fit then is lost.

use std::{
    fs::{File, OpenOptions},
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::OpenOptionsExt,
    },
};

/// The console.
pub struct Screen(Option<File>);

impl Screen {
    /// The machine's own.
    pub fn console() -> Self {
        let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
        Self(OpenOptions::new().write(true).custom_flags(flags).open("/dev/console").ok())
    }

    /// Where a service's words go.
    pub fn errors() -> Self {
        Self(std::io::stderr().as_fd().try_clone_to_owned().ok().map(File::from))
    }

    /// Prints a line.
    pub fn line(&self, text: &str) {
        if let Some(file) = &self.0 {
            // In one piece, so that lines of several threads do not mix.
            let _ = rustix::io::write(file, format!("{text}\n").as_bytes());
        }
    }
}

/// The terminal that the machine's console is.
///
/// # Errors
/// Where it has none.
pub fn terminal() -> std::io::Result<OwnedFd> {
    let active = std::fs::read_to_string("/sys/class/tty/console/active")?;
    // The last of them is /dev/console.
    let name = active.split_whitespace().last().unwrap_or("console");
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(libc::O_NOCTTY);
    Ok(options.open(format!("/dev/{name}"))?.into())
}
