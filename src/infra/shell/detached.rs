//! Programs that outlive this process, by `posix_spawn`: unlike fork it copies nothing of this process, however large it is.
//! The standard library uses it too, but not for a program with a session of its own.

use std::{
    ffi::{CString, OsStr, c_char, c_int, c_short},
    fs::File,
    io,
    mem::MaybeUninit,
    os::{fd::AsRawFd, unix::ffi::OsStrExt},
    path::Path,
    ptr,
    sync::PoisonError,
};

use super::{PATH, STARTING, ShellError};

/// What a detached program reads and writes.
#[derive(Debug)]
pub struct Streams {
    /// Its stdin.
    pub input: File,
    /// Its stdout.
    pub output: File,
    /// Its stderr.
    pub errors: File,
}

/// Starts a program that shall outlive this process: its own session, its own working directory, its own streams. Returns
/// its pid; it is a child of this process, and reaped by whoever waits for it.
///
/// # Errors
/// When it cannot be started.
pub fn spawn_detached<S: AsRef<OsStr>>(
    program: &Path,
    arguments: impl IntoIterator<Item = S>,
    directory: &Path,
    streams: Streams,
) -> Result<i32, ShellError> {
    let error = |source| ShellError::Spawn { program: program.to_path_buf(), source };
    let _shared = STARTING.read().unwrap_or_else(PoisonError::into_inner);
    spawn(program, arguments, directory, &streams).map_err(error)
}

fn spawn<S: AsRef<OsStr>>(
    program: &Path,
    arguments: impl IntoIterator<Item = S>,
    directory: &Path,
    streams: &Streams,
) -> io::Result<i32> {
    let text = |text: &OsStr| CString::new(text.as_bytes()).map_err(io::Error::from);
    let program = text(program.as_os_str())?;
    let directory = text(directory.as_os_str())?;
    let arguments =
        arguments.into_iter().map(|argument| text(argument.as_ref())).collect::<io::Result<Vec<_>>>()?;
    let environment = [text(OsStr::new(&format!("PATH={PATH}")))?, text(OsStr::new("TZ=UTC"))?];
    let pointers = |texts: &mut dyn Iterator<Item = &CString>| -> Vec<*mut c_char> {
        texts.map(|text| text.as_ptr().cast_mut()).chain([ptr::null_mut()]).collect()
    };
    let argv = pointers(&mut [&program].into_iter().chain(&arguments));
    let envp = pointers(&mut environment.iter());
    let actions = Actions::new(&directory, streams)?;
    let attributes = Attributes::new()?;
    let mut pid = 0;
    // SAFETY: both objects are initialised; all texts and vectors outlive the call, the vectors end with a null pointer.
    done(unsafe {
        libc::posix_spawn(
            &mut pid,
            program.as_ptr(),
            actions.0.as_ptr(),
            attributes.0.as_ptr(),
            argv.as_ptr(),
            envp.as_ptr(),
        )
    })?;
    Ok(pid)
}

fn done(code: c_int) -> io::Result<()> {
    if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(code)) }
}

/// What the child does before it is the program.
struct Actions(MaybeUninit<libc::posix_spawn_file_actions_t>);

impl Actions {
    fn new(directory: &CString, streams: &Streams) -> io::Result<Self> {
        let mut actions = MaybeUninit::uninit();
        // SAFETY: it initialises what it is given.
        done(unsafe { libc::posix_spawn_file_actions_init(actions.as_mut_ptr()) })?;
        let mut actions = Self(actions);
        for (number, stream) in (0..).zip([&streams.input, &streams.output, &streams.errors]) {
            // SAFETY: it is initialised.
            done(unsafe {
                libc::posix_spawn_file_actions_adddup2(actions.0.as_mut_ptr(), stream.as_raw_fd(), number)
            })?;
        }
        // SAFETY: it is initialised, and copies the text.
        done(unsafe {
            libc::posix_spawn_file_actions_addchdir_np(actions.0.as_mut_ptr(), directory.as_ptr())
        })?;
        Ok(actions)
    }
}

impl Drop for Actions {
    fn drop(&mut self) {
        // SAFETY: it is initialised, and nobody uses it any more.
        unsafe { libc::posix_spawn_file_actions_destroy(self.0.as_mut_ptr()) };
    }
}

/// What the program finds: a session of its own, no signal blocked, none ignored.
struct Attributes(MaybeUninit<libc::posix_spawnattr_t>);

impl Attributes {
    fn new() -> io::Result<Self> {
        let flags = libc::POSIX_SPAWN_SETSID as c_int
            | libc::POSIX_SPAWN_SETSIGMASK as c_int
            | libc::POSIX_SPAWN_SETSIGDEF as c_int;
        let (mut none, mut pipe) = (MaybeUninit::uninit(), MaybeUninit::uninit());
        let mut attributes = MaybeUninit::uninit();
        // SAFETY: it initialises what it is given.
        done(unsafe { libc::posix_spawnattr_init(attributes.as_mut_ptr()) })?;
        let mut attributes = Self(attributes);
        let at = attributes.0.as_mut_ptr();
        // SAFETY: the sets are made before they are used, and the attributes are initialised.
        unsafe {
            libc::sigemptyset(none.as_mut_ptr());
            libc::sigemptyset(pipe.as_mut_ptr());
            // Rust's programs ignore it, and what they start would too.
            libc::sigaddset(pipe.as_mut_ptr(), libc::SIGPIPE);
            done(libc::posix_spawnattr_setflags(at, flags as c_short))?;
            done(libc::posix_spawnattr_setsigmask(at, none.as_ptr()))?;
            done(libc::posix_spawnattr_setsigdefault(at, pipe.as_ptr()))?;
        }
        Ok(attributes)
    }
}

impl Drop for Attributes {
    fn drop(&mut self) {
        // SAFETY: it is initialised, and nobody uses it any more.
        unsafe { libc::posix_spawnattr_destroy(self.0.as_mut_ptr()) };
    }
}
