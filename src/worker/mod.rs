//! What runs in a guest, as mvm understands it. Does no I/O: who asks a guest is `vm::instance::guest`.

pub mod hooks;
