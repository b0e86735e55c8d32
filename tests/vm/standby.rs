//! A standby host uses the promoted image: as a disk of its own, with no daemon, and over NBD.

use crate::device::Device;
use crate::ext4::Ext4;
use crate::guest::assert_in_guest;
use crate::harness::{LoopDevice, MIB, Mirror, verb};
use crate::records::Records;

use crate::failover::{HANG, RECORDS};

/// The host of the source is lost with everything on it, in the middle of writes that weren't in any journal of ext4's but
/// the one on the volume. So what the standby mounts has to be replayed first, like after any crash.
#[test]
#[ignore = "needs a virtual machine: make test-vm"]
fn a_promoted_image_is_mounted_as_a_local_disk_and_then_over_nbd() {
    assert_in_guest();
    let mut mirror = Mirror::start("always", 96 * MIB);
    let device = Device::attach(&mirror.plan.source.unix(), "vol0");
    let ext4 = Ext4::make(&device.path, &mirror.plan.path("mnt"));
    let records = Records::start(&ext4.path.join("records"));
    records.wait_for(RECORDS, HANG);
    mirror.source.kill();
    // What is under way fails only now.
    drop(device);
    let written = records.cut_off(HANG);
    drop(ext4);
    mirror.destination.kill();

    // As a disk of its own.
    let config = mirror.plan.destination.write();
    let config = config.to_str().expect("test paths are UTF-8");
    verb(&["promote", "--offline", "--force", "--config", config, "alpha"]).success();
    let disk = LoopDevice::attach(mirror.plan.image(0));
    let point = mirror.plan.path("standby");
    let ext4 = Ext4::mount(&disk.path, &point, "");
    written.check(&ext4.path);
    std::fs::write(ext4.path.join("later"), "by the standby").expect("write a file");
    ext4.unmount_clean();
    drop(disk);

    // Over NBD.
    mirror.destination.restart();
    let device = Device::attach(&mirror.plan.destination.unix(), "vol0");
    let ext4 = Ext4::mount(&device.path, &point, "");
    written.check(&ext4.path);
    assert_eq!(std::fs::read(ext4.path.join("later")).expect("read a file"), b"by the standby");
    ext4.unmount_clean();
    device.detach();
}
