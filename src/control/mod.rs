//! The control plane, on tokio.

pub mod admin;
pub mod config;
pub mod metrics;
pub mod negotiate;
