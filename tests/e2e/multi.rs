//! Several sources at one destination, each with several volumes.

use std::sync::Arc;

use crate::harness::{
    Client, Daemon, DestinationConfig, Endpoint, Image, Ledger, Load, MIB, SourceConfig, assert_same, create_file,
    pattern, run,
};

/// Sources of these names, each with volumes "vol0" and "vol1", at one destination.
struct Site {
    sources: Vec<(SourceConfig, Daemon)>,
    destination: Daemon,
    config: DestinationConfig,
    _dir: tempfile::TempDir,
}

const SIZES: [u64; 2] = [16 * MIB, 24 * MIB];

fn site(names: [(&str, &str); 2]) -> Site {
    let dir = tempfile::Builder::new().prefix("nbd-mirror-").tempdir().unwrap();
    let mut config = DestinationConfig::new(dir.path());
    let mut sources = Vec::new();
    for (name, durability) in names {
        let mut source = SourceConfig::new(dir.path(), name);
        source.durability = durability.to_owned();
        source.destination = Some(config.listen);
        let mut images = Vec::new();
        for (at, size) in SIZES.iter().enumerate() {
            let (volume, image) = (format!("{name}{at}.volume"), format!("{name}{at}.image"));
            create_file(&dir.path().join(&volume), *size);
            create_file(&dir.path().join(&image), *size);
            source.volumes.push((format!("vol{at}"), dir.path().join(volume)));
            images.push((format!("vol{at}"), dir.path().join(image)));
        }
        config.sources.push((name.to_owned(), images));
        sources.push(source);
    }
    let destination = Daemon::destination(&config);
    let sources = sources.into_iter().map(|source| (source.clone(), Daemon::source(&source))).collect();
    Site { sources, destination, config, _dir: dir }
}

impl Site {
    #[track_caller]
    fn assert_in_step(&self) {
        for (at, (config, daemon)) in self.sources.iter().enumerate() {
            daemon.wait_for_first_copy();
            daemon.sync();
            for (volume, size) in SIZES.iter().enumerate() {
                assert_same(&config.volumes[volume].1, &self.config.sources[at].1[volume].1, *size);
            }
        }
    }
}

#[test]
fn two_sources_with_two_volumes_each() {
    let site = site([("alpha", "always"), ("beta", "flush")]);
    std::thread::scope(|scope| {
        for (source, _) in &site.sources {
            for volume in ["vol0", "vol1"] {
                let uri = format!("--uri={}", Endpoint::Unix(source.unix()).uri(volume));
                scope.spawn(move || {
                    run(
                        "fio",
                        [
                            "--name=job",
                            "--ioengine=nbd",
                            &uri,
                            "--rw=randwrite",
                            "--bsrange=4k-256k",
                            "--iodepth=8",
                            "--size=16m",
                            "--verify=crc32c",
                            "--verify_fatal=1",
                            "--verify_state_save=0",
                        ],
                    )
                });
            }
        }
    });
    site.assert_in_step();
    // The four volumes are four: each holds what was written to it alone.
    for (at, (source, _)) in site.sources.iter().enumerate() {
        for volume in 0..2u64 {
            let mut client = Client::go(&Endpoint::Unix(source.unix()), &format!("vol{volume}")).unwrap();
            client.write(4096, &pattern(at as u64 * 2 + volume, 4096)).unwrap();
        }
    }
    site.assert_in_step();
    for (at, (_, images)) in site.config.sources.iter().enumerate() {
        for volume in 0..2u64 {
            let bytes = std::fs::read(&images[volume as usize].1).unwrap();
            assert!(bytes[4096..8192] == pattern(at as u64 * 2 + volume, 4096), "source {at}, volume {volume}");
        }
    }
}

#[test]
fn a_promote_of_one_source_leaves_the_other_alone() {
    let mut site = site([("alpha", "always"), ("beta", "always")]);
    let start = |config: &SourceConfig| {
        let ledger = Arc::new(Ledger::new(2, 1024, true));
        let exports: Vec<_> = (0..2).map(|at| (Endpoint::Unix(config.unix()), format!("vol{at}"))).collect();
        let load = Load::start(&ledger, &exports, 1);
        (ledger, load)
    };
    let (alpha_ledger, alpha_load) = start(&site.sources[0].0);
    let (beta_ledger, beta_load) = start(&site.sources[1].0);
    alpha_load.wait_for_answers(500);
    site.destination.wait_for_status("the first sync of alpha ends", |status| {
        status["sources"][0]["warrant"]["missing_writes"] == 0
    });
    site.sources[0].1.kill();
    alpha_load.stop();
    crate::promote::promote_when_noticed(&site.destination, "alpha");
    beta_load.wait_for_answers(500);
    beta_load.stop();
    site.sources[1].1.sync();
    let images =
        |at: usize| -> Vec<Image> { site.config.sources[at].1.iter().map(|(_, path)| Image::file(path)).collect() };
    let done = |alpha: &serde_json::Value| alpha["unapplied_fills"] == 0;
    site.destination.wait_for_mirror("all is on alpha's images", done);
    alpha_ledger.check("the promoted source's images", &images(0));
    beta_ledger.check("the other source's images", &images(1));
    for (volume, size) in SIZES.iter().enumerate() {
        assert_same(&site.sources[1].0.volumes[volume].1, &site.config.sources[1].1[volume].1, *size);
    }
}
