//! What protects tenants from each other and makes what happened provable.

pub mod audit;
pub mod jailer;
