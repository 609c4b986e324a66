//! What the host and the agent in a guest say to each other over vsock port [`PORT`]: one crate for the host, the guest and
//! the simulated guest.
//!
//! ```text
//! host                                   guest
//! CONNECT 52\n            ──>  (the VMM)
//!                         <──  OK <port>\n
//! Hello, request          ──>
//!                         <──  Hello, answer | Refused
//! what belongs to it     <──>  what belongs to it             (exec, cp, logs)
//! ```
//! A connection carries one request. Each side says in its [`Hello`] which versions it speaks; the newest that both know
//! holds, and where there is none both say so ([`Hello::agree`]). Within a version, messages only ever get new fields: who
//! does not know one ignores it, and a request that a guest does not know is refused as [`Code::Unsupported`]. The host says which
//! instance it means; a guest that knows that it is another one refuses all, as [`Code::OtherIdentity`].
//!
//! Neither side trusts the other: a frame has a greatest length, what a path may be is said in [`copy`], and how long the
//! other may be silent is for each side to say.

pub mod copy;
pub mod disk;
pub mod frame;
pub mod hello;
pub mod message;
pub mod secrets;
pub mod settings;
pub mod ssh_key;

pub use self::{
    frame::{Frames, Kind, ProtoError},
    hello::{Hello, Incompatible},
    message::{Answer, Code, Input, Request},
};

/// The vsock port on which the agent listens.
pub const PORT: u32 = 52;
