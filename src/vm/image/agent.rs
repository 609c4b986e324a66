//! The agent for guests, as it was built with this program: its bytes, and nothing of what it does.

/// A static program for Linux, of this program's own architecture.
pub const PROGRAM: &[u8] = include_bytes!(env!("MVM_GUEST"));
