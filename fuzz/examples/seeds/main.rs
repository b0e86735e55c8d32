//! Writes the seeds of all targets: `cargo run --example seeds` in `fuzz/`. Inputs that were found by fuzzing lie
//! beside them as `found-…` and stay as they are.

mod destinations;
mod negotiation;
mod recovery;
mod replication;
mod requests;
mod sources;

use nbd_mirror_fuzz::structured::{Encode, List};
use std::path::Path;

fn main() -> std::io::Result<()> {
    negotiation::write_all()?;
    requests::write_all()?;
    replication::write_all()?;
    recovery::write_all()?;
    sources::write_all()?;
    destinations::write_all()
}

fn write(target: &str, name: &str, seed: &impl Encode) -> std::io::Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds").join(target);
    let mut bytes = Vec::new();
    seed.encode(&mut bytes);
    std::fs::create_dir_all(&folder)?;
    std::fs::write(folder.join(name), bytes)
}

fn list<T: Clone>(items: &[T]) -> List<T> {
    List(items.to_vec())
}
