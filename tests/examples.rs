//! The configurations in `examples/` are what the daemons read, and fit each other.

use std::path::{Path, PathBuf};

use nbd_mirror::control::config::{DestinationConfig, SourceConfig};

fn example(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples").join(name)
}

#[test]
fn the_examples_are_valid_and_fit_each_other() {
    let source = SourceConfig::load(&example("source.toml")).unwrap();
    let destination = DestinationConfig::load(&example("destination.toml")).unwrap();
    let standby = DestinationConfig::of_source(&source).unwrap();
    assert_eq!(source.destination.as_ref().unwrap().address, destination.listen);
    let mirrored = destination.sources.iter().find(|s| s.name == source.name).unwrap();
    let volumes: Vec<_> = source.volumes.iter().map(|v| &v.name).collect();
    let images: Vec<_> = mirrored.volumes.iter().map(|v| &v.name).collect();
    assert_eq!(volumes, images);
    assert_eq!(mirrored.peer.as_ref(), Some(&standby.listen));
}
