//! A promote: refused or begun, once the connection is over.

use super::{Engine, Waiting};
use crate::engine::command::Promoted;
use crate::format::superblock::Phase;

impl Engine {
    pub(super) fn promote(&mut self, force: bool, done: Waiting) {
        let warrant = Box::new(self.warrant());
        let under_way = Some("a promote is under way already".to_owned());
        let refusal = match (self.promotes(), force) {
            (true, _) => under_way,
            (false, true) => None,
            (false, false) => warrant.refusal.clone(),
        };
        match refusal {
            Some(reason) => drop(done.send(Promoted { warrant, outcome: Err(reason) })),
            None => {
                if let Some(old) = self.old_image() {
                    tracing::warn!("source {}: a promote serves {old}", self.core.superblock().name);
                }
                self.promote = Some((done, warrant));
            }
        }
    }

    /// Whether a promote was asked for: by an operator, or by a source that hands over.
    pub(super) fn promotes(&self) -> bool {
        self.promote.is_some() || self.handed_over
    }

    /// What a promote would serve while a resync goes on, in words.
    pub(super) fn old_image(&self) -> Option<String> {
        let base = self.core.base()?;
        let since = match self.lacking_since_unix_s {
            0 => String::new(),
            since => format!(", which lacks writes that were answered since {since} s after 1970"),
        };
        Some(format!("the image as of record {}{since}: a resync isn't complete", base.seq))
    }

    pub(super) fn no_whole_copy(&self) -> String {
        let why = match self.core.superblock().staging.phase {
            Phase::Draining => "a resync isn't complete, and it found no room beside the image",
            Phase::Direct | Phase::Staging => {
                "the first sync, or a resync that found no room beside the image, never finished"
            }
        };
        format!("the image isn't a whole copy: {why}. Let it finish, or give --force to serve what is there")
    }

    /// A promote begins when nothing of the connection is under way any more; until then nothing new is acknowledged.
    pub(super) fn begin_promote(&mut self) {
        if !self.promotes() || self.promote_begun {
            return;
        }
        self.fence_peer();
        if self.peer.is_none() {
            self.promote_begun = true;
            self.core.handle_promote(&mut self.effects);
        }
    }
}
