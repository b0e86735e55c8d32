//! The engine: one thread with one io_uring per journal.
//!
//! NBD sockets, journal, devices and the replication socket are all driven from that thread's loop. Nothing on the
//! answer path crosses a thread or takes a lock. All `unsafe` of the program is in here.
//!
//! - `memory`: the memory that the kernel reads and writes, and how it is handed out.
//! - `ring`: operations that own their memory until they are complete.
//! - `disk`: opening, locking and preallocating files and devices.
//! - `store`: how a file is written, in words. `promise`: how a write becomes stable, by what is under it: `block_device`,
//!   `filesystem`. `latency`: how long it takes until a write is stable.
//! - `pmem`: files on persistent memory, written without a system call.
//! - `process`: what a process asks of the system for itself.
//! - `run`: runs of a flush, an apply or a drain go to a device.
//! - `zeroing`: ranges become zeros, by whatever way the device has.
//! - `kept`: what a fenced source discards is written to a file.
//! - `nvram`: the shared log of a destination on non-volatile memory.
//! - `clients`, `client`, `request`: NBD connections and what they ask for. `extents`: the answer to BLOCK_STATUS.
//! - `sums`: the checksums by which both sides compare blocks.
//! - `source`, `destination`: the two drivers of the core.

pub mod block_device;
mod client;
mod clients;
pub mod command;
pub mod destination;
pub mod disk;
mod extents;
pub mod filesystem;
pub mod held;
pub mod kept;
pub mod latency;
pub mod memory;
pub mod nvram;
mod pmem;
pub mod process;
pub mod promise;
mod request;
pub mod ring;
mod run;
pub mod source;
pub mod store;
pub mod sums;
mod zeroing;
