//! Clients of one source: what they ask for at random, over several connections, overlapping on purpose.

use crate::content::SECTOR;
use crate::context::Context;
use crate::model::Model;
use crate::rare::Rare;
use crate::source::SourceNode;
use nbd_mirror::format::frame::{Kind, RECORD_FUA, RECORD_NO_HOLE, Record};
use nbd_mirror::limits::CHUNK_BYTES;

/// Records that may be handed in at one go, though the source wants no more.
pub const MAX_BURST: usize = 600;

/// How clients behave in a world.
#[derive(Debug, Clone)]
pub struct Habits {
    /// Sectors of the largest request.
    pub largest: usize,
    /// Requests in one go.
    pub bursts: [usize; 4],
    /// Sectors around which requests gather; 0: anywhere.
    pub hot: usize,
    pub reads_per_mille: u64,
    pub flushes_per_mille: u64,
    pub zeroes_per_mille: u64,
}

impl Habits {
    pub fn choose(cx: &mut Context) -> Habits {
        Habits {
            largest: cx.rng.pick(&[1, 2, 8, 8, 64, 300]),
            bursts: cx.rng.pick(&[[1, 1, 1, 4], [1, 2, 4, 40], [1, 1, 8, 500]]),
            hot: cx.rng.pick(&[0, 0, 16, 128]),
            reads_per_mille: cx.rng.pick(&[50, 200, 400]),
            flushes_per_mille: cx.rng.pick(&[5, 40, 200]),
            zeroes_per_mille: cx.rng.pick(&[20, 100, 800]),
        }
    }

    /// Clients do one thing, or many at once. Returns how many.
    pub fn act(&self, node: &mut SourceNode, model: &mut Model, cx: &mut Context) -> usize {
        let burst = cx.rng.pick(&self.bursts);
        for done in 0..burst {
            let Some(core) = &node.core else { return done };
            // While writes get errors, clients have less to do.
            if !core.accepting() || core.fenced() || (core.failing() && cx.rng.chance(800)) {
                return done;
            }
            self.request(node, model, cx);
        }
        burst
    }

    fn request(&self, node: &mut SourceNode, model: &mut Model, cx: &mut Context) {
        let volume = cx.rng.below(model.now.len());
        let sectors = model.now[volume].len();
        let region = if self.hot > 0 && cx.rng.chance(700) { self.hot.min(sectors) } else { sectors };
        let mut length = 1 + cx.rng.below(self.largest.min(region));
        let mut offset = cx.rng.below(region - length + 1);
        if cx.rng.chance(500) {
            length = length.next_multiple_of(8).min(sectors);
            offset = (offset / 8 * 8).min(sectors - length);
        }
        let (volume, mut offset, mut length) = (volume as u16, (offset * SECTOR) as u64, length * SECTOR);
        if cx.rng.chance(self.reads_per_mille) {
            return node.read(volume, offset, length as u64, model, cx);
        }
        let fua = if cx.rng.chance(20) { RECORD_FUA } else { 0 };
        let flush = cx.rng.chance(self.flushes_per_mille);
        if flush && node.core.as_ref().is_some_and(|core| core.flush_is_free()) {
            // Answered at once: whatever was answered is stable already.
            return;
        }
        if flush {
            cx.met.count(Rare::FlushRecord);
            let record = Record { volume, kind: Kind::Flush, flags: 0, offset: 0, length: 0, checksum: 0 };
            return node.record(record, 0, model);
        }
        if cx.rng.chance(self.zeroes_per_mille) {
            let (kind, hole) =
                cx.rng.pick(&[(Kind::Trim, 0), (Kind::WriteZeroes, 0), (Kind::WriteZeroes, RECORD_NO_HOLE)]);
            let record = Record { volume, kind, flags: fua | hole, offset, length: length as u32, checksum: 0 };
            return node.record(record, 0, model);
        }
        cx.met.count_if(length > CHUNK_BYTES, Rare::LargeRequest);
        while length > 0 {
            let part = length.min(CHUNK_BYTES);
            let record = Record { volume, kind: Kind::Write, flags: fua, offset, length: part as u32, checksum: 0 };
            let word = cx.words;
            cx.words += (part / SECTOR) as u64;
            node.record(record, word, model);
            offset += part as u64;
            length -= part;
        }
    }
}
