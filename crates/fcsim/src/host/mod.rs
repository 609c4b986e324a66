//! What fcsim needs of the kernel beyond the standard library: the only modules with `unsafe`, and error texts.

pub(crate) mod clock;
pub(crate) mod errno;
pub(crate) mod signals;
pub(crate) mod tap;
