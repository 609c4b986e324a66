//! Sleep and wake as whole commands: what a guest holds in memory and on its disks goes on as if nothing had been, and what
//! is damaged, missing, cut off or in the way is said and loses nothing.

#[path = "../support/mod.rs"]
mod support;

mod cut_off;
mod cycles;
mod damage;
mod elsewhere;
mod faults;
mod guest;
mod real;
mod refused;
mod room;
mod together;
mod vsock;
