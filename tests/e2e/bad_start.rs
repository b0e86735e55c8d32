//! Starts that have to be refused: the message names the cause, the place and the remedy, and nothing was touched.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::harness::{
    Client, Daemon, DestinationConfig, Endpoint, MIB, Mirror, Plan, SourceConfig, assert_says, binary, create_file,
    finish, free_port, pattern, refused,
};

/// A source's configuration whose files are all its own, beside a running one of the same folder.
fn second_source(plan: &Plan) -> SourceConfig {
    let mut config = SourceConfig::new(plan.dir.path(), "second");
    let volume = plan.path("second.volume");
    create_file(&volume, 8 * MIB);
    config.volumes.push(("vol0".to_owned(), volume));
    config
}

/// A destination's configuration whose files are all its own, beside a running one of the same folder.
fn second_destination(plan: &Plan) -> DestinationConfig {
    let mut config = DestinationConfig::new(plan.dir.path());
    config.name = "second-destination".to_owned();
    config.journal_dir = plan.path("second-journals");
    let image = plan.path("second.image");
    create_file(&image, 8 * MIB);
    config.sources.push(("beta".to_owned(), vec![("vol0".to_owned(), image)]));
    config
}

#[track_caller]
fn assert_source_refused(config: &SourceConfig, nouns: &[&str]) {
    assert_says(&refused("source", &config.write()), nouns);
}

#[track_caller]
fn assert_destination_refused(config: &DestinationConfig, nouns: &[&str]) {
    assert_says(&refused("destination", &config.write()), nouns);
}

/// The last part of a path, which a message that names the path has to contain.
fn name(path: &Path) -> &str {
    path.file_name().unwrap().to_str().unwrap()
}

#[test]
fn a_misspelt_key_is_named_with_its_line() {
    let mut plan = Plan::new(&[8 * MIB]);
    plan.source.extra = "[metric]\nlisten = \"127.0.0.1:1\"\n".to_owned();
    let text = fs::read_to_string(plan.source.write()).unwrap();
    let line = text.lines().position(|line| line == "[metric]").unwrap() + 1;
    assert_source_refused(&plan.source, &["metric", &format!("line {line}|:{line}"), "alpha.toml"]);
    plan.source.extra = String::new();
    let path = plan.source.write();
    let text = fs::read_to_string(&path).unwrap().replace("max_age", "max_aeg");
    fs::write(&path, &text).unwrap();
    let line = text.lines().position(|line| line.starts_with("max_aeg")).unwrap() + 1;
    assert_says(&refused("source", &path), &["max_aeg", &format!("line {line}|:{line}"), "max_age"]);
    let path = plan.destination.write();
    let text = fs::read_to_string(&path).unwrap().replace("journal_dir", "journal_folder");
    fs::write(&path, &text).unwrap();
    assert_says(&refused("destination", &path), &["journal_folder", "line 2|:2", "journal_dir"]);
}

#[test]
fn values_that_make_no_sense() {
    let plan = Plan::new(&[8 * MIB]);
    for (from, to, nouns) in [
        ("\"always\"", "\"sometimes\"", vec!["sometimes", "always", "flush"]),
        ("\"32MiB\"", "\"32 parsecs\"", vec!["32 parsecs", "size|bytes|MiB"]),
        ("\"32MiB\"", "\"1KiB\"", vec!["journal", "1KiB|1 KiB|1024", "MiB"]),
        ("\"10s\"", "\"soon\"", vec!["soon", "duration|10s"]),
    ] {
        let path = plan.source.write();
        let text = fs::read_to_string(&path).unwrap().replacen(from, to, 1);
        fs::write(&path, text).unwrap();
        assert_says(&refused("source", &path), &nouns);
    }
}

#[test]
fn a_missing_configuration() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("nowhere.toml");
    assert_says(&refused("source", &path), &["nowhere.toml", "no such file"]);
    assert_says(&refused("destination", &path), &["nowhere.toml", "no such file"]);
}

#[test]
fn a_missing_device_or_image() {
    let plan = Plan::new(&[8 * MIB]);
    fs::remove_file(plan.volume(0)).unwrap();
    assert_source_refused(&plan.source, &["vol0.volume", "no such file|missing|not exist"]);
    assert!(!plan.volume(0).exists(), "a missing device must not be made");
    fs::remove_file(plan.image(0)).unwrap();
    assert_destination_refused(&plan.destination, &["vol0.image", "no such file|missing|not exist"]);
    assert!(!plan.image(0).exists(), "a missing image must not be made");
}

#[test]
fn a_device_that_is_a_folder() {
    let mut plan = Plan::new(&[8 * MIB]);
    let folder = plan.path("folder");
    fs::create_dir(&folder).unwrap();
    plan.source.volumes[0].1 = folder.clone();
    plan.destination.sources[0].1[0].1 = folder;
    assert_source_refused(&plan.source, &["folder", "directory|folder|regular"]);
    assert_destination_refused(&plan.destination, &["folder", "directory|folder|regular"]);
}

#[test]
fn a_journal_of_another_source() {
    let mut plan = Plan::new(&[8 * MIB]);
    plan.source.destination = None;
    let mut source = Daemon::source(&plan.source);
    let mut client = Client::go(&Endpoint::Unix(plan.source.unix()), "vol0").unwrap();
    client.write(0, &pattern(1, 4096)).unwrap();
    source.kill();
    let mut other = plan.source.clone();
    other.name = "beta".to_owned();
    assert_source_refused(&other, &["alpha.journal", "alpha", "beta"]);
    // Its owner still finds everything in it.
    source.restart();
    let mut client = Client::go(&Endpoint::Unix(plan.source.unix()), "vol0").unwrap();
    assert!(client.read(0, 4096).unwrap() == pattern(1, 4096));
}

#[test]
fn a_journal_whose_volumes_are_others() {
    let mut plan = Plan::new(&[8 * MIB]);
    plan.source.destination = None;
    let mut source = Daemon::source(&plan.source);
    let mut client = Client::go(&Endpoint::Unix(plan.source.unix()), "vol0").unwrap();
    client.write(0, &pattern(2, 4096)).unwrap();
    source.kill();
    // The journal holds an unflushed write of vol0: another volume must not get it.
    let mut other = plan.source.clone();
    other.volumes[0].0 = "vol9".to_owned();
    assert_source_refused(&other, &["vol0|vol9", "journal|volume"]);
    plan.source.write();
    source.restart();
    let mut client = Client::go(&Endpoint::Unix(plan.source.unix()), "vol0").unwrap();
    assert!(client.read(0, 4096).unwrap() == pattern(2, 4096));
}

#[test]
fn another_journal_size_loses_nothing() {
    let mut plan = Plan::new(&[8 * MIB]);
    plan.source.destination = None;
    let mut source = Daemon::source(&plan.source);
    let unix = Endpoint::Unix(plan.source.unix());
    Client::go(&unix, "vol0").unwrap().write(0, &pattern(3, 65_536)).unwrap();
    source.kill();
    plan.source.journal_size = "64MiB".to_owned();
    plan.source.write();
    source.spawn(&[]);
    let mut ended = false;
    crate::harness::wait_until("the source serves or refuses", Duration::from_secs(20), || {
        ended = !source.runs();
        ended || Client::go(&unix, "vol0").is_ok()
    });
    if ended {
        assert_says(&source.log(), &["journal", "size|MiB|bytes"]);
        plan.source.journal_size = "32MiB".to_owned();
        source = Daemon::source(&plan.source);
    }
    assert!(Client::go(&unix, "vol0").unwrap().read(0, 65_536).unwrap() == pattern(3, 65_536));
    source.kill();
}

#[test]
fn foreign_content_where_the_journal_should_be() {
    let foreign = [
        pattern(4, 64 * 1024),
        pattern(5, 40 * MIB as usize),
        // Some formats leave the start free: btrfs begins at 64 KiB.
        [vec![0; 8192], vec![1; 100]].concat(),
        [vec![0; 65_536 + 64], b"_BHRfS_M".to_vec(), vec![0; 4096]].concat(),
    ];
    for foreign in foreign {
        let plan = Plan::new(&[8 * MIB]);
        fs::write(&plan.source.journal, &foreign).unwrap();
        assert_source_refused(&plan.source, &["alpha.journal", "--init"]);
        assert!(fs::read(&plan.source.journal).unwrap() == foreign, "a refusal touches nothing");
        let destination = Daemon::destination(&plan.destination);
        let source = Daemon::source_with(&plan.source, &["--init"]);
        let mut mirror = Mirror { source, destination, plan };
        Client::go(&mirror.unix(), "vol0").unwrap().write(0, &pattern(6, 4096)).unwrap();
        mirror.source.kill();
        mirror.source.restart();
        assert!(Client::go(&mirror.unix(), "vol0").unwrap().read(0, 4096).unwrap() == pattern(6, 4096));
        mirror.assert_in_step();
    }
}

/// Flips a bit in each of these blocks of a file, or writes something else over them.
fn spoil(path: &Path, blocks: &[usize], with: Option<&[u8]>) {
    let mut bytes = fs::read(path).unwrap();
    for at in blocks.iter().map(|block| block * 4096) {
        match with {
            Some(foreign) => bytes[at..at + 4096].copy_from_slice(foreign),
            None => bytes[at + 50] ^= 1,
        }
    }
    fs::write(path, bytes).unwrap();
}

/// A source that runs alone and was killed with an answered write in its journal.
fn killed_alone() -> (Plan, Daemon) {
    let mut plan = Plan::new(&[8 * MIB]);
    plan.source.destination = None;
    let mut source = Daemon::source(&plan.source);
    Client::go(&Endpoint::Unix(plan.source.unix()), "vol0").unwrap().write(0, &pattern(8, 4096)).unwrap();
    source.kill();
    (plan, source)
}

#[track_caller]
fn assert_still_served(plan: &Plan, seed: u64) {
    let mut client = Client::go(&Endpoint::Unix(plan.source.unix()), "vol0").unwrap();
    assert!(client.read(0, 4096).unwrap() == pattern(seed, 4096));
}

#[test]
fn either_copy_of_the_superblock_may_be_damaged_but_not_both() {
    let (plan, mut source) = killed_alone();
    // The third copy that is spoilt shows that a start makes two whole ones of one.
    for block in [0, 1, 0] {
        spoil(&plan.source.journal, &[block], None);
        source.restart();
        source.wait_for_log(&[&format!("copy {block}"), "checksum"]);
        assert_still_served(&plan, 8);
        source.kill();
    }
    spoil(&plan.source.journal, &[0, 1], None);
    let before = fs::read(&plan.source.journal).unwrap();
    assert_source_refused(&plan.source, &["alpha.journal", "neither copy", "copy 0", "copy 1", "checksum", "--init"]);
    assert!(fs::read(&plan.source.journal).unwrap() == before, "a refusal touches nothing");
}

#[test]
fn a_superblock_that_something_else_has_half_overwritten() {
    let (plan, _killed) = killed_alone();
    let foreign = pattern(9, 4096);
    spoil(&plan.source.journal, &[0], Some(&foreign));
    assert_source_refused(&plan.source, &["alpha.journal", "overwritten", "--init"]);
    assert!(fs::read(&plan.source.journal).unwrap()[..4096] == foreign[..], "a refusal touches nothing");
    // What is ours in it isn't lost by that.
    let _source = Daemon::source_with(&plan.source, &["--init"]);
    assert_still_served(&plan, 8);
}

#[test]
fn a_journal_that_another_version_has_used() {
    let (plan, _killed) = killed_alone();
    let mut bytes = fs::read(&plan.source.journal).unwrap();
    bytes[8] = 9;
    fs::write(&plan.source.journal, &bytes).unwrap();
    assert_source_refused(&plan.source, &["alpha.journal", "version 9", "Run that version"]);
    assert!(fs::read(&plan.source.journal).unwrap() == bytes, "a refusal touches nothing");
}

#[test]
fn a_making_that_was_cut_off_is_begun_again() {
    let mut plan = Plan::new(&[8 * MIB]);
    plan.source.destination = None;
    // The claim, and of the first version behind it a torn half.
    let claim = nbd_mirror::format::superblock::encode_claim("alpha");
    let torn = [vec![0; 512], pattern(10, 1024), vec![0; 2560]].concat();
    fs::write(&plan.source.journal, [&claim[..], &torn].concat()).unwrap();
    let mut other = plan.source.clone();
    other.name = "beta".to_owned();
    assert_source_refused(&other, &["alpha.journal", "alpha", "beta"]);
    let mut source = Daemon::source(&plan.source);
    Client::go(&Endpoint::Unix(plan.source.unix()), "vol0").unwrap().write(0, &pattern(11, 4096)).unwrap();
    source.kill();
    source.restart();
    assert_still_served(&plan, 11);
}

#[test]
fn foreign_content_where_the_destinations_state_should_be() {
    let mut mirror = Mirror::start("always", 8 * MIB);
    mirror.assert_in_step();
    mirror.source.stop(Signal::SIGTERM);
    mirror.destination.stop(Signal::SIGTERM);
    let files = files_below(&mirror.plan.destination.journal_dir);
    assert!(!files.is_empty(), "the destination keeps its state in the journal folder");
    for file in &files {
        let len = fs::metadata(file).unwrap().len() as usize;
        fs::write(file, pattern(7, len.max(8192))).unwrap();
    }
    let said = refused("destination", &mirror.plan.destination.write());
    assert!(files.iter().any(|file| said.contains(name(file))), "no file of {files:?} is named:\n{said}");
    assert_says(&said, &["--init"]);
    for file in &files {
        let len = fs::metadata(file).unwrap().len() as usize;
        assert!(fs::read(file).unwrap() == pattern(7, len), "a refusal touches nothing: {}", file.display());
    }
}

fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files_below(&path));
        } else {
            found.push(path);
        }
    }
    found
}

#[test]
fn a_second_source_on_the_same_journal_or_volume() {
    let mirror = Mirror::start("always", 8 * MIB);
    let mut config = second_source(&mirror.plan);
    config.journal = mirror.plan.source.journal.clone();
    config.name = "alpha".to_owned();
    config.dir = mirror.plan.path("elsewhere");
    fs::create_dir(&config.dir).unwrap();
    assert_source_refused(&config, &["alpha.journal", "in use|use by|used by|another process|locked"]);
    let mut config = second_source(&mirror.plan);
    config.volumes[0].1 = mirror.plan.volume(0).to_owned();
    assert_source_refused(&config, &["vol0.volume", "in use|use by|used by|another process|locked"]);
    // By another name it is still the same file.
    let link = mirror.plan.path("link");
    std::os::unix::fs::symlink(mirror.plan.volume(0), &link).unwrap();
    config.volumes[0].1 = link;
    assert_source_refused(&config, &["link|vol0.volume", "in use|use by|used by|another process|locked"]);
    mirror.assert_in_step();
}

#[test]
fn a_second_destination_on_the_same_journals_or_image() {
    let mirror = Mirror::start("always", 8 * MIB);
    mirror.assert_in_step();
    let mut config = second_destination(&mirror.plan);
    config.journal_dir = mirror.plan.destination.journal_dir.clone();
    config.sources[0].0 = "alpha".to_owned();
    assert_destination_refused(&config, &["journals", "in use|use by|used by|another process|locked"]);
    let mut config = second_destination(&mirror.plan);
    config.sources[0].1[0].1 = mirror.plan.image(0).to_owned();
    assert_destination_refused(&config, &["vol0.image", "in use|use by|used by|another process|locked"]);
    // A source on a file that is an image.
    let mut config = second_source(&mirror.plan);
    config.volumes[0].1 = mirror.plan.image(0).to_owned();
    assert_source_refused(&config, &["vol0.image", "in use|use by|used by|another process|locked"]);
    mirror.assert_in_step();
}

#[test]
fn one_file_for_two_purposes() {
    let mut plan = Plan::new(&[8 * MIB, 8 * MIB]);
    let (first, second) = (plan.volume(0).to_owned(), plan.image(0).to_owned());
    // Under two names, so that comparing the texts alone doesn't find it.
    let (volume, image) = (plan.path("same.volume"), plan.path("same.image"));
    fs::hard_link(&first, &volume).unwrap();
    fs::hard_link(&second, &image).unwrap();
    plan.source.volumes[1].1 = volume;
    plan.destination.sources[0].1[1].1 = image;
    assert_source_refused(&plan.source, &["same.volume|vol0.volume"]);
    assert_destination_refused(&plan.destination, &["same.image|vol0.image"]);
}

#[test]
fn addresses_that_others_listen_on() {
    let mirror = Mirror::start("always", 8 * MIB);
    let mut config = second_source(&mirror.plan);
    config.tcp = mirror.plan.source.tcp;
    assert_source_refused(&config, &[&mirror.plan.source.tcp.to_string(), "in use"]);
    let mut config = second_destination(&mirror.plan);
    config.listen = mirror.plan.destination.listen;
    assert_destination_refused(&config, &[&mirror.plan.destination.listen.to_string(), "in use"]);
    mirror.assert_in_step();
}

#[test]
fn a_socket_path_that_is_a_file() {
    let plan = Plan::new(&[8 * MIB]);
    fs::write(plan.source.unix(), b"precious").unwrap();
    assert_source_refused(&plan.source, &["alpha.nbd"]);
    assert_eq!(fs::read(plan.source.unix()).unwrap(), b"precious");
}

#[test]
fn io_uring_disabled() {
    let plan = Plan::new(&[8 * MIB]);
    let launcher = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/e2e/without_io_uring.py");
    for (role, config) in [("source", plan.source.write()), ("destination", plan.destination.write())] {
        let mut command = Command::new("/usr/bin/python3");
        command.arg(launcher).arg(binary()).args([role, "--config"]).arg(config);
        let finished = finish(command, Duration::from_secs(20));
        assert!(
            finished.status.code().is_some_and(|code| code != 0),
            "{role}: {}\n{}",
            finished.status,
            finished.stderr
        );
        assert_says(&finished.stderr, &["io_uring", "kernel.io_uring_disabled", "seccomp|container|sysctl"]);
        assert!(!finished.stderr.contains("panicked"), "{}", finished.stderr);
    }
}

#[test]
fn a_refused_start_leaves_no_sockets_behind() {
    let mut plan = Plan::new(&[8 * MIB]);
    plan.source.tcp = free_port();
    fs::remove_file(plan.volume(0)).unwrap();
    refused("source", &plan.source.write());
    assert!(!plan.source.unix().exists() && !plan.source.admin().exists());
}

#[test]
fn a_volume_that_does_not_end_with_a_sector() {
    // Bytes that no request can reach must not be left out silently.
    let mut plan = Plan::new(&[8 * MIB + 100]);
    plan.source.destination = None;
    plan.source.write();
    let finished = {
        let mut source = Daemon::unstarted_source(&plan.source);
        source.spawn(&[]);
        // Its last words may come a moment after its end.
        crate::harness::wait_until("the source serves or refuses", Duration::from_secs(20), || {
            let ended = !source.runs() && source.log().contains("vol0");
            ended || Client::go(&Endpoint::Unix(plan.source.unix()), "vol0").is_ok()
        });
        source.log()
    };
    assert_says(&finished, &["vol0", "multiple|512|sector|block"]);
}
