//! A promote on the side: on a copy of what a killed destination left behind, while the real one goes on afterwards.
//! So each moment can be tried whether it could be promoted, and none ends the campaign.

use tempfile::TempDir;

use super::{Round, Site, VOLUMES, copy_folder, keep};
use crate::harness::{Daemon, DestinationConfig, Endpoint, Image};

/// Where the copy lies.
struct Folder(TempDir);

impl Drop for Folder {
    fn drop(&mut self) {
        self.0.disable_cleanup(keep());
    }
}

/// Promotes a copy of the destination, which isn't running, and checks what it serves. The source may live: with its
/// destination gone, it answers nothing.
#[track_caller]
pub fn promote_a_copy(round: &Round, site: &Site) {
    round.tell("a promote of a copy");
    let folder =
        Folder(tempfile::Builder::new().prefix("nbd-mirror-copy-").tempdir().expect("make a temporary folder"));
    let dir = folder.0.path();
    let mut config = DestinationConfig::new(dir);
    copy_folder(&site.mirror.plan.destination.journal_dir, &config.journal_dir);
    let mut images = Vec::new();
    for volume in 0..VOLUMES {
        let (name, to) = (format!("vol{volume}"), dir.join(format!("vol{volume}.image")));
        std::fs::copy(site.mirror.plan.image(volume), &to).expect("copy an image");
        images.push((name, to));
    }
    config.sources.push(("alpha".to_owned(), images));
    let destination = Daemon::destination(&config);
    destination.promote("alpha", false).success();
    let files: Vec<Image> = config.sources[0].1.iter().map(|(_, image)| Image::file(image)).collect();
    site.ledger.check(&round.what("the images of a copy"), &files);
    let endpoint = Endpoint::Unix(config.unix());
    let exports: Vec<Image> = config.sources[0].1.iter().map(|(name, _)| Image::export(&endpoint, name)).collect();
    site.ledger.check(&round.what("the promoted exports of a copy"), &exports);
}
