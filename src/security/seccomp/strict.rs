//! The strict filter: what Firecracker 1.16 calls when it does what mvm asks of it, and nothing else.
//!
//! Firecracker's own allows as well what mvm never asks for: io_uring (whose calls no filter sees), devices that come and go,
//! balloons, vhost-user and pmem. The tables were taken down from a VMM that was traced through the demo and the story of the
//! lab, each thread from the moment on at which it has its filter; what else is in them is for what no story shows: a log line
//! in another time zone, a panic, the end.
//!
//! Firecracker takes filters as a map of threads to programs, in the form of the `bitcode` crate
//! (docs/seccompiler.md there). Another build that reads it in another way does not start.

use std::{collections::BTreeMap, fmt, sync::LazyLock};

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch,
};

/// The versions of Firecracker whose calls are in the tables begin like that.
pub const STRICT_FOR: &str = "1.16.";

/// Why there is no strict filter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoStrict(String);

impl fmt::Display for NoStrict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One condition of an argument, by its number.
#[derive(Clone, Copy)]
enum When {
    Is(u8, u32),
    Lacks(u8, u32),
}

use When::{Is, Lacks};

/// A call, and what its arguments have to be.
type Allowed = (i64, &'static [When]);

/// The filters of a VMM, by its threads.
pub struct Strict {
    /// Thread by thread, an instruction a number.
    threads: BTreeMap<&'static str, Vec<u64>>,
}

impl Strict {
    /// They are compiled once a process.
    ///
    /// # Errors
    /// Where the machine's architecture has no tables.
    pub fn get() -> Result<&'static Self, NoStrict> {
        static COMPILED: LazyLock<Result<Strict, NoStrict>> = LazyLock::new(Strict::compile);
        COMPILED.as_ref().map_err(NoStrict::clone)
    }

    fn compile() -> Result<Self, NoStrict> {
        if !cfg!(target_arch = "x86_64") {
            return Err(NoStrict(format!("there is no strict one for {}", std::env::consts::ARCH)));
        }
        let tables = [("vmm", tables::VMM), ("api", tables::API), ("vcpu", tables::VCPU)];
        let compile = |(thread, own): (&'static str, &[Allowed])| Ok((thread, compile(own)?));
        let threads = tables.into_iter().map(compile).collect::<Result<_, seccompiler::BackendError>>();
        Ok(Self { threads: threads.map_err(|error| NoStrict(format!("it cannot be compiled: {error}")))? })
    }

    /// As Firecracker takes them with `--seccomp-filter`.
    ///
    /// # Errors
    /// Never in practice: it is plain data.
    pub fn file(&self) -> Result<Vec<u8>, NoStrict> {
        bitcode::serialize(&self.threads).map_err(|error| NoStrict(error.to_string()))
    }

    /// Is this program one of them?
    pub fn has(&self, program: &[u64]) -> bool {
        self.threads.values().any(|own| own == program)
    }
}

/// A call that is not in the table is answered by SIGSYS: the VMM says which one it was, and ends. It cannot have another
/// handler for it, since that would be such a call.
fn compile(own: &[Allowed]) -> Result<Vec<u64>, seccompiler::BackendError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    for (call, when) in own.iter().chain(tables::ALL) {
        let conditions = when.iter().map(|when| {
            let (argument, operator, value) = match *when {
                Is(argument, value) => (argument, SeccompCmpOp::Eq, value),
                Lacks(argument, bits) => (argument, SeccompCmpOp::MaskedEq(bits.into()), 0),
            };
            SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value.into())
        });
        let conditions = conditions.collect::<Result<Vec<_>, _>>()?;
        let alternatives = rules.entry(*call).or_default();
        if !conditions.is_empty() {
            alternatives.push(SeccompRule::new(conditions)?);
        }
    }
    let filter = SeccompFilter::new(rules, SeccompAction::Trap, SeccompAction::Allow, TargetArch::x86_64)?;
    let program: BpfProgram = filter.try_into()?;
    // `struct sock_filter`, as one number.
    let packed = |one: &seccompiler::sock_filter| {
        u64::from(one.code) | u64::from(one.jt) << 16 | u64::from(one.jf) << 24 | u64::from(one.k) << 32
    };
    Ok(program.iter().map(packed).collect())
}

#[cfg(target_arch = "x86_64")]
mod tables {
    use super::{Allowed, Is, Lacks};

    const EXEC: u32 = libc::PROT_EXEC as u32;
    const WRITE: u32 = libc::PROT_WRITE as u32;
    const CLOEXEC: u32 = libc::SOCK_CLOEXEC as u32;
    const STREAM: u32 = (libc::SOCK_STREAM | libc::SOCK_CLOEXEC) as u32;
    const PRIVATE: u32 = (libc::MAP_ANONYMOUS | libc::MAP_PRIVATE) as u32;
    const SHARED: u32 = libc::MAP_SHARED as u32;
    /// SIGRTMIN is 35 to musl: by it vCPUs are made to leave the guest.
    const KICK: u32 = 35;
    const ABORT: u32 = libc::SIGABRT as u32;

    /// What every thread needs: memory, locks, a log line, a panic, the end.
    pub const ALL: &[Allowed] = &[
        (libc::SYS_read, &[]),
        (libc::SYS_write, &[]),
        (libc::SYS_close, &[]),
        (libc::SYS_open, &[]),
        (libc::SYS_fstat, &[]),
        (libc::SYS_brk, &[]),
        (libc::SYS_munmap, &[]),
        (libc::SYS_mremap, &[]),
        (libc::SYS_mmap, &[Is(3, PRIVATE), Lacks(2, EXEC)]),
        // The time zone.
        (libc::SYS_mmap, &[Is(3, SHARED), Lacks(2, EXEC | WRITE)]),
        (libc::SYS_madvise, &[Is(2, libc::MADV_DONTNEED as u32)]),
        (libc::SYS_futex, &[Is(1, 0)]),
        (libc::SYS_futex, &[Is(1, 1)]),
        (libc::SYS_futex, &[Is(1, 128)]),
        (libc::SYS_futex, &[Is(1, 129)]),
        (libc::SYS_futex, &[Is(1, 137)]),
        (libc::SYS_sched_yield, &[]),
        (libc::SYS_clock_gettime, &[]),
        (libc::SYS_restart_syscall, &[]),
        (libc::SYS_gettid, &[]),
        (libc::SYS_rt_sigprocmask, &[]),
        (libc::SYS_rt_sigreturn, &[]),
        (libc::SYS_sigaltstack, &[]),
        (libc::SYS_rt_sigaction, &[Is(0, ABORT)]),
        (libc::SYS_tkill, &[Is(1, ABORT)]),
        (libc::SYS_exit, &[]),
        (libc::SYS_exit_group, &[]),
        // A panic asks whether stderr is a terminal, the end whether stdin is one.
        (libc::SYS_ioctl, &[Is(1, libc::TIOCGWINSZ as u32)]),
    ];

    /// Devices, vsock, snapshots.
    pub const VMM: &[Allowed] = &[
        (libc::SYS_epoll_ctl, &[]),
        (libc::SYS_epoll_pwait, &[]),
        // The TAP, and disks.
        (libc::SYS_readv, &[]),
        (libc::SYS_writev, &[]),
        (libc::SYS_lseek, &[]),
        (libc::SYS_fsync, &[]),
        (libc::SYS_ftruncate, &[]),
        (libc::SYS_stat, &[]),
        (libc::SYS_fcntl, &[Is(1, libc::F_SETFD as u32)]),
        (libc::SYS_getrandom, &[]),
        (libc::SYS_timerfd_settime, &[Is(1, 0)]),
        // Connections to and from the guest.
        (libc::SYS_accept4, &[Is(3, CLOEXEC)]),
        (libc::SYS_socket, &[Is(0, libc::AF_UNIX as u32), Is(1, STREAM), Is(2, 0)]),
        (libc::SYS_connect, &[]),
        (libc::SYS_recvfrom, &[]),
        (libc::SYS_sendto, &[]),
        (libc::SYS_ioctl, &[Is(1, libc::FIONBIO as u32)]),
        (libc::SYS_tkill, &[Is(1, KICK)]),
        // A snapshot: KVM_GET_DIRTY_LOG, KVM_GET_IRQCHIP, KVM_GET_CLOCK, KVM_GET_PIT2.
        (libc::SYS_ioctl, &[Is(1, 0x4010_ae42)]),
        (libc::SYS_ioctl, &[Is(1, 0xc208_ae62)]),
        (libc::SYS_ioctl, &[Is(1, 0x8030_ae7c)]),
        (libc::SYS_ioctl, &[Is(1, 0x8070_ae9f)]),
        (libc::SYS_ioctl, &[Is(1, libc::TCGETS as u32)]),
    ];

    /// Requests of mvm.
    pub const API: &[Allowed] = &[
        (libc::SYS_epoll_ctl, &[]),
        (libc::SYS_epoll_pwait, &[]),
        (libc::SYS_getrandom, &[]),
        (libc::SYS_accept4, &[Is(3, CLOEXEC)]),
        (libc::SYS_recvfrom, &[]),
        (libc::SYS_recvmsg, &[]),
        (libc::SYS_sendto, &[]),
        (libc::SYS_fcntl, &[Is(1, libc::F_SETFD as u32)]),
        (libc::SYS_ioctl, &[Is(1, libc::FIONBIO as u32)]),
    ];

    /// The guest, and its state for a snapshot.
    pub const VCPU: &[Allowed] = &[
        // KVM_RUN, KVM_KVMCLOCK_CTRL.
        (libc::SYS_ioctl, &[Is(1, 0xae80)]),
        (libc::SYS_ioctl, &[Is(1, 0xaead)]),
        // KVM_GET_MP_STATE, _REGS, _SREGS, _XSAVE, _XSAVE2, _XCRS, _DEBUGREGS, _LAPIC, _TSC_KHZ, _CPUID2, _MSRS, _VCPU_EVENTS.
        (libc::SYS_ioctl, &[Is(1, 0x8004_ae98)]),
        (libc::SYS_ioctl, &[Is(1, 0x8090_ae81)]),
        (libc::SYS_ioctl, &[Is(1, 0x8138_ae83)]),
        (libc::SYS_ioctl, &[Is(1, 0x9000_aea4)]),
        (libc::SYS_ioctl, &[Is(1, 0x9000_aecf)]),
        (libc::SYS_ioctl, &[Is(1, 0x8188_aea6)]),
        (libc::SYS_ioctl, &[Is(1, 0x8080_aea1)]),
        (libc::SYS_ioctl, &[Is(1, 0x8400_ae8e)]),
        (libc::SYS_ioctl, &[Is(1, 0xaea3)]),
        (libc::SYS_ioctl, &[Is(1, 0xc008_ae91)]),
        (libc::SYS_ioctl, &[Is(1, 0xc008_ae88)]),
        (libc::SYS_ioctl, &[Is(1, 0x8040_ae9f)]),
        // A guest's driver that comes up sets its TAP's offloads: TUNSETOFFLOAD.
        (libc::SYS_ioctl, &[Is(1, 0x4004_54d0)]),
    ];
}

#[cfg(not(target_arch = "x86_64"))]
mod tables {
    use super::Allowed;

    pub const ALL: &[Allowed] = &[];
    pub const VMM: &[Allowed] = &[];
    pub const API: &[Allowed] = &[];
    pub const VCPU: &[Allowed] = &[];
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_compiled_and_known_again() {
        let Ok(strict) = Strict::get() else { return };
        assert_eq!(strict.threads.keys().collect::<Vec<_>>(), [&"api", &"vcpu", &"vmm"]);
        assert!(strict.threads.values().all(|program| strict.has(program)));
        let mut other = strict.threads["vmm"].clone();
        other[20] ^= 1;
        assert!(!strict.has(&other) && !strict.has(&[]));
    }

    /// What the form is to who reads it: a map with these names, each an array of numbers.
    #[test]
    fn the_file_is_a_map_of_threads_to_programs() {
        let Ok(strict) = Strict::get() else { return };
        let read: std::collections::HashMap<String, Vec<u64>> =
            bitcode::deserialize(&strict.file().unwrap()).unwrap();
        assert_eq!(read.len(), 3);
        assert_eq!(read["vcpu"], strict.threads["vcpu"]);
    }

    /// A socket of the network, io_uring, another program: in no thread's table.
    #[test]
    fn what_leads_out_is_in_no_table() {
        let all = [tables::ALL, tables::VMM, tables::API, tables::VCPU].concat();
        for call in [
            libc::SYS_io_uring_setup,
            libc::SYS_io_uring_enter,
            libc::SYS_execve,
            libc::SYS_clone3,
            libc::SYS_ptrace,
            libc::SYS_mprotect,
            libc::SYS_sendmsg,
            libc::SYS_bpf,
        ] {
            assert!(all.iter().all(|(allowed, _)| *allowed != call), "{call}");
        }
    }
}
