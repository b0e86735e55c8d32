//! End-to-end tests: the real binary, real files, real clients.
//!
//! Every test starts its own daemons on files in its own temporary folder, talks to them only through the
//! surface that users have (command line, NBD, log, exit code), and ends them again. `NBD_MIRROR_BIN` names
//! the binary under test; without it, the one that Cargo built with these tests is taken.
//!
//! A foreign tool that isn't installed fails the test with the name of its Debian package. Tests that need
//! root (loop devices, mounts) fail as anyone else, unless `NBD_MIRROR_SKIP_ROOT=1` leaves them out. Where the kernel
//! has no FUSE (`/dev/fuse`), those that make disks fail and lose their power are left out, and say so.

mod apart;
mod attach;
mod bad_clients;
mod bad_devices;
mod bad_peers;
mod bad_start;
mod check;
mod clients;
mod copy;
mod demo;
mod disk_faults;
mod harness;
mod harness_check;
mod inherited;
mod inspect;
mod kills;
mod live;
mod multi;
mod nvram;
mod persistent;
mod power_cuts;
mod promote;
mod resident;
mod restart;
mod soak;
mod surface;
mod swap;
mod warrant;
