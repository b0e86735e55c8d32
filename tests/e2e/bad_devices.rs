//! Block devices: good ones, mounted ones, and file systems without room. All of it needs root.

use std::fs;
use std::sync::Arc;

use crate::harness::{
    Daemon, Image, Ledger, Load, LoopDevice, MIB, Mirror, Mount, Plan, assert_says, create_file, refused, root_or_skip,
};

#[test]
fn block_devices_as_journal_volume_and_image() {
    if !root_or_skip("loop devices") {
        return;
    }
    for durability in ["always", "flush"] {
        let mut plan = Plan::new(&[16 * MIB]);
        let journal = plan.path("journal.file");
        create_file(&journal, 64 * MIB);
        let devices = [&journal, plan.volume(0), plan.image(0)].map(LoopDevice::attach);
        plan.source.durability = durability.to_owned();
        plan.source.journal = devices[0].path.clone();
        plan.source.volumes[0].1 = devices[1].path.clone();
        plan.destination.sources[0].1[0].1 = devices[2].path.clone();
        let mut mirror = plan.start();
        let ledger = Arc::new(Ledger::new(1, 4096, durability == "always"));
        for _ in 0..2 {
            let load = Load::start(&ledger, &mirror.exports(), 2);
            load.wait_for_answers(1000);
            mirror.source.kill();
            load.stop();
            mirror.source.restart();
            ledger.settle("the export on block devices", &mirror.volumes());
        }
        mirror.assert_in_step();
        ledger.check("the image on a block device", &[Image::file(&devices[2].path)]);
        // Before the devices go.
        drop(mirror);
    }
}

#[test]
fn a_volume_that_is_mounted() {
    if !root_or_skip("a mounted loop device") {
        return;
    }
    let mut plan = Plan::new(&[16 * MIB]);
    let file = plan.path("mounted.file");
    let mount = Mount::ext4(&file, 16 * MIB, &plan.path("mnt"));
    plan.source.volumes[0].1 = mount.loop_device().to_owned();
    let said = refused("source", &plan.source.write());
    assert_says(&said, &[mount.loop_device().to_str().unwrap(), "mounted|in use|busy"]);
    // The file behind it is the same disk.
    plan.source.volumes[0].1 = file;
    let said = refused("source", &plan.source.write());
    assert_says(&said, &["mounted.file", "mounted|loop|in use"]);
}

#[test]
fn an_image_that_is_mounted() {
    if !root_or_skip("a mounted loop device") {
        return;
    }
    let mut plan = Plan::new(&[16 * MIB]);
    let file = plan.path("mounted.file");
    let mount = Mount::ext4(&file, 16 * MIB, &plan.path("mnt"));
    plan.destination.sources[0].1[0].1 = mount.loop_device().to_owned();
    let said = refused("destination", &plan.destination.write());
    assert_says(&said, &[mount.loop_device().to_str().unwrap(), "mounted|in use|busy"]);
    plan.destination.sources[0].1[0].1 = file;
    let said = refused("destination", &plan.destination.write());
    assert_says(&said, &["mounted.file", "mounted|loop|in use"]);
}

#[test]
fn a_journal_that_is_a_mounted_device() {
    if !root_or_skip("a mounted loop device") {
        return;
    }
    let mut plan = Plan::new(&[16 * MIB]);
    let file = plan.path("mounted.file");
    let mount = Mount::ext4(&file, 64 * MIB, &plan.path("mnt"));
    plan.source.journal = mount.loop_device().to_owned();
    fs::write(mount.path.join("precious"), b"still here").unwrap();
    // Not even --init may write over a mounted file system.
    let config = plan.source.write();
    let config = config.to_str().unwrap();
    let finished = crate::harness::verb(&["source", "--config", config, "--init"]);
    assert!(!finished.status.success());
    assert_says(&finished.stderr, &[mount.loop_device().to_str().unwrap(), "mounted|in use|busy"]);
    assert_eq!(fs::read(mount.path.join("precious")).unwrap(), b"still here");
}

#[test]
fn a_device_with_a_file_system_where_the_journal_should_be() {
    if !root_or_skip("a loop device") {
        return;
    }
    let mut plan = Plan::new(&[16 * MIB]);
    let file = plan.path("formatted.file");
    drop(Mount::ext4(&file, 64 * MIB, &plan.path("mnt")));
    let before = fs::read(&file).unwrap();
    let device = LoopDevice::attach(&file);
    plan.source.journal = device.path.clone();
    let said = refused("source", &plan.source.write());
    assert_says(&said, &[device.path.to_str().unwrap(), "--init"]);
    assert!(fs::read(&file).unwrap() == before, "a refusal touches nothing");
}

#[test]
fn a_full_disk_under_the_sources_journal() {
    if !root_or_skip("a small file system of its own") {
        return;
    }
    let mut plan = Plan::new(&[8 * MIB]);
    let mount = Mount::ext4(&plan.path("small.file"), 24 * MIB, &plan.path("mnt"));
    plan.source.journal = mount.path.join("alpha.journal");
    plan.source.destination = None;
    let config = plan.source.write();
    assert_says(&refused("source", &config), &["alpha.journal", "space|full"]);
    // With room enough the very same command works: what the first try left is not in its way.
    plan.source.journal_size = "16MiB".to_owned();
    let source = Daemon::source(&plan.source);
    source.sync();
    drop(source);
}

#[test]
fn a_full_disk_under_the_destinations_journals() {
    if !root_or_skip("a small file system of its own") {
        return;
    }
    let mut plan = Plan::new(&[8 * MIB]);
    let mount = Mount::ext4(&plan.path("small.file"), 128 * MIB, &plan.path("mnt"));
    let ballast = mount.path.join("ballast");
    fs::write(&ballast, vec![1; 100 << 20]).unwrap();
    plan.destination.journal_dir = mount.path.join("journals");
    // How large a journal file is depends on the source, so the refusal may come as late as at the first contact.
    let mut destination = Daemon::unstarted_destination(&plan.destination);
    destination.spawn(&[]);
    let source = Daemon::source(&plan.source);
    destination.wait_for_log(&["space|full", "journals"]);
    assert!(source.status().is_object());
    // Once there is room, it works.
    fs::remove_file(&ballast).unwrap();
    if !destination.runs() {
        destination = Daemon::destination(&plan.destination);
    }
    let mirror = Mirror { source, destination, plan };
    mirror.assert_in_step();
    drop(mirror.source);
    drop(mirror.destination);
    drop(mount);
}

#[test]
fn a_loop_device_and_its_file_are_one_volume() {
    if !root_or_skip("a loop device") {
        return;
    }
    let mut plan = Plan::new(&[16 * MIB]);
    let file = plan.volume(0).to_owned();
    let device = LoopDevice::attach(&file);
    plan.source.volumes[0].1 = device.path.clone();
    plan.source.destination = None;
    let source = Daemon::source(&plan.source);
    let mut second = plan.source.clone();
    second.name = "second".to_owned();
    second.journal = plan.path("second.journal");
    second.tcp = crate::harness::free_port();
    // The device is open exclusively, and so for others.
    assert_says(&refused("source", &second.write()), &[device.path.to_str().unwrap(), "in use|busy|another process"]);
    drop(source);
}
