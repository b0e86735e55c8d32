//! Tests against a real kernel's NBD client: file systems on /dev/nbdX that are mounted while daemons die, move and stall.
//!
//! They change the kernel they run on, so they run in a virtual machine only, as root: `make test-vm` boots one
//! (run.py), makes it ready (guest.sh) and runs this binary in it. `cargo test` shows them as ignored. What they
//! measure goes to the folder that `NBD_MIRROR_VM_RESULTS` names. The machine is emulated and slow: nothing here is judged by
//! its time, except that a hang is one.

#[path = "../e2e/harness/mod.rs"]
#[allow(dead_code, unused_imports, reason = "shared with the end-to-end tests, which use the rest")]
mod harness;

mod agent;
mod device;
mod ext4;
mod failover;
mod filesystem;
mod guest;
mod kernel_log;
mod live;
mod nvdimm;
mod pressure;
mod records;
mod roles;
mod standby;
mod times;
