//! Signals that end Firecracker with an exit code of their own (the rest keep the default: SIGTERM ends it by signal).

/// Signal and exit code.
const FATAL: [(libc::c_int, libc::c_int); 7] = [
    // sent by somebody; one that a seccomp filter raised would be 148
    (libc::SIGSYS, 2),
    (libc::SIGBUS, 149),
    (libc::SIGSEGV, 150),
    (libc::SIGXFSZ, 151),
    (libc::SIGXCPU, 154),
    (libc::SIGHUP, 156),
    (libc::SIGILL, 157),
];

/// Makes the fatal signals end the process with their code.
pub(crate) fn install() {
    for (signal, _) in FATAL {
        // SAFETY: sigaction is plain data; all zeroes is an empty mask and no flags.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = on_fatal as *const () as libc::sighandler_t;
        // SAFETY: the handler is an extern "C" function of the type that a handler without SA_SIGINFO has, and does
        // only what is async-signal-safe. A failure leaves the default action, which ends the process too.
        unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) };
    }
}

extern "C" fn on_fatal(signal: libc::c_int) {
    let code = FATAL.iter().find(|(number, _)| *number == signal).map_or(2, |(_, code)| *code);
    // SAFETY: _exit is async-signal-safe and does not return.
    unsafe { libc::_exit(code) }
}

/// Ends this process as a crash does: no destructors, no exit code.
pub(crate) fn kill_self() -> ! {
    // SAFETY: getpid and kill have no memory preconditions; SIGKILL to oneself does not return.
    unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
    std::process::abort()
}
