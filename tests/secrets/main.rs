//! Tenants' secrets as whole commands on the simulated VMM: where they are, where they are not, who has which, and what is said where
//! a key or a guest does not fit. The same with real guests is in the lab.

#[path = "../support/mod.rs"]
mod support;

mod bad_input;
mod cut_off;
mod delivery;
mod guarded;
mod keys;
mod lost;
mod search;
mod why;
mod world;
