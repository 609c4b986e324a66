//! The `mvm` binary: arguments in, exit code out.
fn main() {}
