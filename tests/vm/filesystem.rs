//! A file system on a mirrored volume, as anyone would use it.

use std::process::Command;
use std::time::Duration;

use crate::device::Device;
use crate::ext4::Ext4;
use crate::guest::assert_in_guest;
use crate::harness::{MIB, Mirror, finish};
use crate::kernel_log::KernelLog;

/// mkfs, mount, fio with a checksum in each block, unmount, fsck, detach.
fn works(durability: &str) {
    assert_in_guest();
    let log = KernelLog::from_now();
    let mirror = Mirror::start(durability, 128 * MIB);
    let device = Device::attach(&mirror.plan.source.unix(), "vol0");
    let ext4 = Ext4::make(&device.path, &mirror.plan.path("mnt"));

    let mut fio = Command::new("fio");
    fio.args(["--name=verify", "--rw=randwrite", "--bs=4k", "--size=4M", "--ioengine=libaio", "--iodepth=8"]);
    fio.args(["--verify=crc32c", "--verify_fatal=1", "--do_verify=1", "--fsync=32", "--randseed=7"]);
    fio.args(["--direct=1", "--output-format=terse"]).arg(format!("--directory={}", ext4.path.display()));
    fio.current_dir(mirror.plan.dir.path());
    finish(fio, Duration::from_secs(300)).success();

    ext4.unmount_clean();
    device.detach();
    log.assert_harmless();
    mirror.assert_in_step();
}

#[test]
#[ignore = "needs a virtual machine: make test-vm"]
fn fio_finds_all_it_wrote_on_an_ext4_with_durability_always() {
    works("always");
}

#[test]
#[ignore = "needs a virtual machine: make test-vm"]
fn fio_finds_all_it_wrote_on_an_ext4_with_durability_flush() {
    works("flush");
}
