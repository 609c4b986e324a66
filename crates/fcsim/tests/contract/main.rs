//! The contract of Firecracker's API and process, as cases that run on fcsim and on the real Firecracker alike: each
//! expectation is written once, to the letter, and knows nothing of the program under test.
//!
//! A case is a function that takes a [`support::Lab`]; [`on_both`] makes two tests of it. The real half is skipped,
//! visibly, where there is no Firecracker or no KVM, and so are cases with a TAP where network namespaces are not
//! allowed.

mod support;

mod actions;
mod arguments;
mod balloon;
mod boot;
mod config_file;
mod cpu;
mod death;
mod drives;
mod http;
mod instance;
mod load;
mod logging;
mod machine;
mod memory_hotplug;
mod mmds;
mod network;
mod pci;
mod pmem;
mod routing;
mod serial;
mod snapshot;
mod vsock;
