//! A promote on the side: on a copy of what a killed destination left behind, while the real one goes on afterwards.
//! So each moment can be tried whether it could be promoted, and none ends the campaign.

use tempfile::TempDir;

use super::{Round, Site, keep};
use crate::harness::PromotedCopy;

/// Where the copy lies.
struct Folder(TempDir);

impl Drop for Folder {
    fn drop(&mut self) {
        self.0.disable_cleanup(keep());
    }
}

/// Promotes a copy of the destination, which isn't running, and checks what it serves. The source may live: with its
/// destination gone, it answers nothing, or nothing that the copy would have to hold.
#[track_caller]
pub fn promote_a_copy(round: &Round, site: &Site) {
    round.tell("a promote of a copy");
    let folder =
        Folder(tempfile::Builder::new().prefix("nbd-mirror-copy-").tempdir().expect("make a temporary folder"));
    let copy = PromotedCopy::of(&site.mirror.plan, folder.0.path());
    site.ledger.check_as_of(site.in_step, &round.what("the promoted exports of a copy"), &copy.exports());
}
