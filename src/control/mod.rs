//! The control plane, on tokio.

pub mod admin;
pub mod check;
pub mod config;
pub mod destination;
pub mod exports;
mod handshake;
mod link;
pub mod listen;
pub mod metrics;
pub mod negotiate;
pub mod notify;
mod seat;
mod signals;
pub mod source;
mod status;
