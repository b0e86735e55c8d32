//! The control plane, on tokio.

pub mod admin;
pub mod config;
pub mod destination;
pub mod listen;
pub mod metrics;
pub mod negotiate;
pub mod notify;
pub mod source;
