//! One source and one destination over files, ready to be used and broken.

use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::{Daemon, DestinationConfig, Endpoint, Image, SourceConfig, assert_same, create_file};

/// What a mirror is to look like, before it is started.
pub struct Plan {
    pub dir: TempDir,
    pub source: SourceConfig,
    pub destination: DestinationConfig,
    /// Bytes of each volume and of its image.
    pub sizes: Vec<u64>,
}

impl Plan {
    /// Source "alpha" with volumes "vol0", "vol1", … of these sizes, as empty files.
    pub fn new(sizes: &[u64]) -> Plan {
        let dir = tempfile::Builder::new().prefix("nbd-mirror-").tempdir().expect("make a temporary folder");
        let mut source = SourceConfig::new(dir.path(), "alpha");
        let mut destination = DestinationConfig::new(dir.path());
        source.destination = Some(destination.listen);
        let mut images = Vec::new();
        for (at, &size) in sizes.iter().enumerate() {
            let name = format!("vol{at}");
            let (volume, image) = (dir.path().join(format!("{name}.volume")), dir.path().join(format!("{name}.image")));
            create_file(&volume, size);
            create_file(&image, size);
            source.volumes.push((name.clone(), volume));
            images.push((name, image));
        }
        destination.sources.push(("alpha".to_owned(), images));
        Plan { dir, source, destination, sizes: sizes.to_vec() }
    }

    /// Starts the destination, then the source.
    #[track_caller]
    pub fn start(self) -> Mirror {
        let destination = Daemon::destination(&self.destination);
        let source = Daemon::source(&self.source);
        Mirror { plan: self, source, destination }
    }

    pub fn volume(&self, at: usize) -> &Path {
        &self.source.volumes[at].1
    }

    pub fn image(&self, at: usize) -> &Path {
        &self.destination.sources[0].1[at].1
    }

    /// A path in the temporary folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

/// A running mirror.
pub struct Mirror {
    // Before the folder, so that the daemons end first.
    pub source: Daemon,
    pub destination: Daemon,
    pub plan: Plan,
}

impl Mirror {
    /// One volume of `size` bytes, both daemons running.
    #[track_caller]
    pub fn start(durability: &str, size: u64) -> Mirror {
        let mut plan = Plan::new(&[size]);
        plan.source.durability = durability.to_owned();
        plan.start()
    }

    /// The source's Unix socket.
    pub fn unix(&self) -> Endpoint {
        Endpoint::Unix(self.plan.source.unix())
    }

    /// The source's TCP socket.
    pub fn tcp(&self) -> Endpoint {
        Endpoint::Tcp(self.plan.source.tcp)
    }

    /// The destination's NBD server.
    pub fn promoted(&self) -> Endpoint {
        Endpoint::Unix(self.plan.destination.unix())
    }

    /// Every volume with where it is served.
    pub fn exports(&self) -> Vec<(Endpoint, String)> {
        self.plan.source.volumes.iter().map(|(name, _)| (self.unix(), name.clone())).collect()
    }

    /// Every volume as the source serves it.
    pub fn volumes(&self) -> Vec<Image> {
        self.exports().iter().map(|(endpoint, name)| Image::export(endpoint, name)).collect()
    }

    /// Every volume as the promoted destination serves it.
    pub fn promoted_volumes(&self) -> Vec<Image> {
        self.plan.source.volumes.iter().map(|(name, _)| Image::export(&self.promoted(), name)).collect()
    }

    /// Every image file, once all that a promote left is on it.
    #[track_caller]
    pub fn promoted_images(&self) -> Vec<Image> {
        self.destination.wait_for_mirror("all is on the images", |mirror| mirror["unapplied_fills"] == 0);
        self.images()
    }

    /// Every image file.
    pub fn images(&self) -> Vec<Image> {
        (0..self.plan.sizes.len()).map(|at| Image::file(self.plan.image(at))).collect()
    }

    /// Waits for the first copy, syncs, and asserts that each volume and its image hold the same bytes.
    #[track_caller]
    pub fn assert_in_step(&self) {
        self.source.wait_for_first_copy();
        self.source.sync();
        for (at, &size) in self.plan.sizes.iter().enumerate() {
            assert_same(self.plan.volume(at), self.plan.image(at), size);
        }
    }
}
