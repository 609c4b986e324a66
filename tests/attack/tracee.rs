//! A VMM that somebody has taken over: its first thread, stopped, makes whatever system call it is told to.

use std::{io, ptr};

/// The kernel's answer where a filter forbids a call. (The call is not made; whoever sent the signal that it costs is traced.)
#[derive(Debug, PartialEq, Eq)]
pub enum Answer {
    /// What it returned.
    Did(i64),
    /// The error.
    Failed(i32),
    /// A seccomp filter does not have it.
    Forbidden,
}

/// An argument of a call.
#[derive(Clone, Copy)]
pub enum Argument<'a> {
    /// A number.
    Number(i64),
    /// The address of these bytes.
    Bytes(&'a [u8]),
}

/// The stopped thread, which goes on as if nothing had been when this is dropped.
pub struct Tracee {
    pid: libc::pid_t,
    registers: libc::user_regs_struct,
}

impl Tracee {
    /// Stops the first thread of a process where it waits in a system call.
    pub fn stop(pid: i32) -> Self {
        /// `syscall`.
        const CALL: u16 = 0x050f;
        request(libc::PTRACE_SEIZE, pid, 0, 0);
        for _ in 0..1000 {
            request(libc::PTRACE_INTERRUPT, pid, 0, 0);
            wait(pid);
            // SAFETY: all zeros are a valid value.
            let mut registers: libc::user_regs_struct = unsafe { std::mem::zeroed() };
            request(libc::PTRACE_GETREGS, pid, 0, &raw mut registers as usize);
            // SAFETY: a word of a process of this test's is read.
            let before = unsafe { libc::ptrace(libc::PTRACE_PEEKTEXT, pid, registers.rip - 2, 0_usize) };
            if before as u16 == CALL && registers.orig_rax.cast_signed() >= 0 {
                return Self { pid, registers };
            }
            // It does something just now.
            request(libc::PTRACE_CONT, pid, 0, 0);
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        panic!("it never waits");
    }

    /// Lets it make a call.
    pub fn call(&self, number: i64, arguments: &[Argument]) -> Answer {
        let mut registers = self.registers;
        // It waits in a system call: the instruction for one is right before where it goes on.
        registers.rip -= 2;
        registers.rax = number.cast_unsigned();
        registers.orig_rax = u64::MAX;
        // Below what is in use of its stack, and below what may be.
        let mut free = registers.rsp - 8192;
        let mut values = [0; 6];
        for (value, argument) in values.iter_mut().zip(arguments) {
            *value = match argument {
                Argument::Number(number) => number.cast_unsigned(),
                Argument::Bytes(bytes) => {
                    free -= (bytes.len() as u64).next_multiple_of(16) + 16;
                    self.write(free, bytes);
                    free
                }
            };
        }
        [registers.rdi, registers.rsi, registers.rdx, registers.r10, registers.r8, registers.r9] = values;
        request(libc::PTRACE_SETREGS, self.pid, 0, &raw const registers as usize);
        request(libc::PTRACE_SINGLESTEP, self.pid, 0, 0);
        let stopped_by = libc::WSTOPSIG(wait(self.pid));
        request(libc::PTRACE_GETREGS, self.pid, 0, &raw mut registers as usize);
        if stopped_by == libc::SIGSYS {
            // The step has its own signal still.
            request(libc::PTRACE_SINGLESTEP, self.pid, 0, 0);
            wait(self.pid);
            return Answer::Forbidden;
        }
        assert_eq!(stopped_by, libc::SIGTRAP, "it has made the call");
        match registers.rax.cast_signed() {
            error @ -4095..0 => Answer::Failed(i32::try_from(-error).expect("an errno")),
            result => Answer::Did(result),
        }
    }

    fn write(&self, address: u64, bytes: &[u8]) {
        for (offset, word) in (0..).step_by(8).zip(bytes.chunks(8)) {
            let mut whole = [0; 8];
            whole[..word.len()].copy_from_slice(word);
            let address = usize::try_from(address + offset).expect("an address");
            request(libc::PTRACE_POKEDATA, self.pid, address, usize::from_le_bytes(whole));
        }
    }
}

impl Drop for Tracee {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            request(libc::PTRACE_SETREGS, self.pid, 0, &raw const self.registers as usize);
            request(libc::PTRACE_DETACH, self.pid, 0, 0);
        }
    }
}

fn wait(pid: libc::pid_t) -> libc::c_int {
    let mut status = 0;
    // SAFETY: the status outlives the call.
    assert_eq!(unsafe { libc::waitpid(pid, &mut status, libc::__WALL) }, pid);
    assert!(libc::WIFSTOPPED(status), "it ended: {status:x}");
    status
}

#[track_caller]
fn request(what: libc::c_uint, pid: libc::pid_t, address: usize, data: usize) {
    let (address, data) = (ptr::without_provenance_mut::<libc::c_void>(address), data as *mut libc::c_void);
    // SAFETY: a process of this test's, stopped; where an address is given for an answer, there is room for it.
    let answer = unsafe { libc::ptrace(what, pid, address, data) };
    assert_eq!(answer, 0, "{}", io::Error::last_os_error());
}
