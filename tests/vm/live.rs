//! The destination's images, mounted to be read while they are mirrored.

use std::fs;
use std::process::Command;
use std::time::Duration;

use crate::device::Device;
use crate::ext4::Ext4;
use crate::failover::{HANG, Mounted, RECORDS};
use crate::harness::{finish, pattern};

/// Frozen for a moment, the file system has nothing in its journal that isn't in its place; so what the sync signal then
/// takes over can be mounted without a replay, which a read-only device doesn't allow.
#[test]
#[ignore = "needs a virtual machine: make test-vm"]
fn a_live_image_is_mounted_and_read_while_mirroring_goes_on() {
    let mounted = Mounted::start(|plan| plan.source.max_age = "1h".to_owned());
    let folder = mounted.ext4.path.join("before");
    fs::create_dir(&folder).expect("make a folder");
    for number in 0..20 {
        fs::write(folder.join(number.to_string()), pattern(number, 10_000)).expect("write a file");
    }
    let freeze = |option| {
        let mut fsfreeze = Command::new("fsfreeze");
        fsfreeze.arg(option).arg(&mounted.ext4.path);
        finish(fsfreeze, HANG).success();
    };
    freeze("--freeze");
    mounted.mirror.source.sync();
    freeze("--unfreeze");
    mounted.records.wait_for(RECORDS, HANG);
    fs::write(mounted.ext4.path.join("after"), "later").expect("write a file");

    let device = Device::attach(&mounted.destination(), "vol0@image");
    let live = Ext4::mount(&device.path, &mounted.mirror.plan.path("live"), "ro,noload");
    for number in 0..20 {
        let path = live.path.join("before").join(number.to_string());
        let bytes = fs::read(&path).unwrap_or_else(|error| panic!("read {}: {error}", path.display()));
        assert!(bytes == pattern(number, 10_000), "file {number} isn't what was written");
    }
    assert!(!live.path.join("after").exists(), "a live image shows what is newer than the last sync signal");
    // It is the mirror that goes on meanwhile, and the reader doesn't hold it up.
    mounted.records.wait_for(RECORDS, Duration::from_secs(120));
    live.unmount();
    device.detach();
    mounted.end();
}
