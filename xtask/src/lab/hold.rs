//! One empty VM that the lab keeps from its beginning to its end.
//!
//! KVM changes the kernel's own code (static keys) with the first VM of a machine and again when the last one is gone, and so it
//! does for each virtual CPU whose interrupt controller is not yet on. A kernel that runs on two CPUs of QEMU 7.2's emulation does
//! not survive that for long: it puts a breakpoint there for a moment, and the translation of that outlives it. With one that is
//! always held, no guest's start and no guest's end changes anything.

use std::{
    ffi::{c_int, c_ulong},
    fs::File,
    os::fd::AsRawFd,
};

use anyhow::{Context, Result, bail};

/// Requests of <https://docs.kernel.org/virt/kvm/api.html>: `_IO(0xAE, number)`.
const CREATE_VM: c_ulong = 0xae01;
const CREATE_INTERRUPT_CONTROLLER: c_ulong = 0xae60;
const CREATE_VCPU: c_ulong = 0xae41;

/// Makes it and never returns; what ends this program ends the VM.
///
/// # Errors
/// When KVM does not make one.
pub fn for_ever() -> Result<()> {
    let kvm = File::options().read(true).write(true).open("/dev/kvm").context("cannot open /dev/kvm")?;
    let vm = ask(kvm.as_raw_fd(), CREATE_VM)?;
    ask(vm, CREATE_INTERRUPT_CONTROLLER)?;
    ask(vm, CREATE_VCPU)?;
    loop {
        std::thread::park();
    }
}

/// A request whose argument is 0: the default type of machine, the CPU's number.
fn ask(descriptor: c_int, request: c_ulong) -> Result<c_int> {
    let none: c_ulong = 0;
    // SAFETY: none of the requests above reads or writes memory of this process; what they make is meant to stay open.
    let answer = unsafe { libc::ioctl(descriptor, request, none) };
    if answer < 0 {
        bail!("KVM refused request {request:#x}: {}", std::io::Error::last_os_error());
    }
    Ok(answer)
}
