//! Disks with a volatile cache, and what is under way on them.

use crate::content::{Word, torn};
use crate::rng::Rng;

/// What a crash does to a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Crash {
    /// The process is killed: what was written stays, what is under way may arrive or not, sector by sector.
    Kill,
    /// Power fails: of what no completed sync covers each sector may be lost as well.
    Power,
}

/// A sector that was written, and whether that write alone made it stable.
#[derive(Debug, Clone, Copy)]
struct Cached {
    sector: u32,
    word: Word,
    stable: bool,
}

/// One disk: what reads see, what is on stable storage, and the writes in between, in order.
#[derive(Debug, Clone, Default)]
pub struct Disk {
    view: Vec<Word>,
    stable: Vec<Word>,
    cache: Vec<Cached>,
    /// Writes that have left the cache, of all time.
    settled: u64,
    /// A file that becomes longer where it is written beyond its end.
    grows: bool,
    /// Persistent memory: a store ends with a fence, so what is complete is stable. What isn't is torn between any two of its
    /// words of 8 bytes, not only between sectors.
    pub persistent: bool,
}

impl Disk {
    pub fn new(words: Vec<Word>) -> Disk {
        Disk { stable: words.clone(), view: words, ..Disk::default() }
    }

    /// An empty file, which becomes longer as it is written.
    pub fn file() -> Disk {
        Disk { grows: true, ..Disk::default() }
    }

    /// Its contents are given up.
    pub fn truncate(&mut self) {
        self.settled += self.cache.len() as u64;
        self.cache.clear();
        self.view.clear();
        self.stable.clear();
    }

    fn grow(&mut self, sectors: usize) {
        if self.grows && self.view.len() < sectors {
            self.view.resize(sectors, 0);
            self.stable.resize(sectors, 0);
        }
    }

    /// What reads see.
    pub fn words(&self) -> &[Word] {
        &self.view
    }

    pub fn words_mut(&mut self) -> &mut [Word] {
        &mut self.view
    }

    /// What is left after a power cut that loses everything it can.
    pub fn stable(&self) -> &[Word] {
        &self.stable
    }

    fn write(&mut self, at: usize, words: &[Word], stable: bool) {
        self.view[at..at + words.len()].copy_from_slice(words);
        if (stable || self.persistent) && self.cache.is_empty() {
            self.stable[at..at + words.len()].copy_from_slice(words);
        } else {
            let cached = |(index, word): (usize, &Word)| Cached { sector: (at + index) as u32, word: *word, stable };
            self.cache.extend(words.iter().enumerate().map(cached));
        }
    }

    /// All that a sync which starts now makes stable.
    fn now(&self) -> u64 {
        self.settled + self.cache.len() as u64
    }

    fn settle(&mut self, until: u64) {
        let count = until.saturating_sub(self.settled) as usize;
        // What comes next and was stable by itself is so on the medium, too, now that nothing before it is on its way.
        let more = self.cache[count..].iter().take_while(|cached| cached.stable).count();
        for cached in self.cache.drain(..count + more) {
            self.stable[cached.sector as usize] = cached.word;
        }
        self.settled += (count + more) as u64;
    }

    /// Each sector that isn't stable stays, is lost, or falls back to an earlier write that isn't stable either.
    fn lose_cache(&mut self, rng: &mut Rng) {
        if self.cache.is_empty() {
            return;
        }
        let lost_per_mille = rng.pick(&[0, 100, 500, 900, 1000]);
        self.settled += self.cache.len() as u64;
        for cached in self.cache.drain(..) {
            if cached.stable || !rng.chance(lost_per_mille) {
                self.stable[cached.sector as usize] = cached.word;
            }
        }
        self.view.copy_from_slice(&self.stable);
    }
}

/// How an operation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    Well,
    /// The disk says EIO or ENOSPC.
    Failed,
}

/// The faults of a machine's disks, per mille of the operations.
#[derive(Debug, Clone, Copy, Default)]
pub struct Faults {
    pub short: u64,
    pub failed: u64,
    /// A staging log's file system has no room.
    pub full: u64,
}

#[derive(Debug, Clone)]
enum Work {
    Write { disk: usize, at: usize, words: Vec<Word>, stable: bool },
    Sync(Vec<(usize, u64)>),
    Read,
}

/// A machine's disks, with what is under way on them. `Op` names an operation for its driver.
#[derive(Debug, Clone)]
pub struct Io<Op> {
    pub disks: Vec<Disk>,
    under_way: Vec<(Op, Work)>,
    spare: Vec<Vec<Word>>,
    pub short_writes: u64,
}

impl<Op: Copy> Io<Op> {
    pub fn new(disks: Vec<Disk>) -> Io<Op> {
        Io { disks, under_way: Vec::new(), spare: Vec::new(), short_writes: 0 }
    }

    /// An empty list of words whose memory was used before.
    pub fn words(&mut self) -> Vec<Word> {
        self.spare.pop().unwrap_or_default()
    }

    /// Starts a write at a sector; `stable`: it is on stable storage when it completes.
    pub fn write(&mut self, op: Op, disk: usize, at: usize, words: Vec<Word>, stable: bool) {
        self.disks[disk].grow(at + words.len());
        assert!(at + words.len() <= self.disks[disk].view.len(), "a write beyond the end of disk {disk}");
        self.under_way.push((op, Work::Write { disk, at, words, stable }));
    }

    pub fn sync(&mut self, op: Op, disks: &[usize]) {
        let now = disks.iter().map(|disk| (*disk, self.disks[*disk].now())).collect();
        self.under_way.push((op, Work::Sync(now)));
    }

    pub fn read(&mut self, op: Op) {
        self.under_way.push((op, Work::Read));
    }

    /// Whether such an operation is under way.
    pub fn any(&self, is: impl Fn(&Op) -> bool) -> bool {
        self.under_way.iter().any(|(op, _)| is(op))
    }

    pub fn idle(&self) -> bool {
        self.under_way.is_empty()
    }

    /// Any of the operations goes on, and mostly completes.
    pub fn step(&mut self, faults: Faults, rng: &mut Rng) -> Option<(Op, Ended)> {
        if self.under_way.is_empty() {
            return None;
        }
        let index = rng.below(self.under_way.len());
        let failed = faults.failed > 0 && rng.chance(faults.failed);
        if let Work::Write { disk, at, words, stable } = &mut self.under_way[index].1
            && words.len() > 1
            && (failed || (faults.short > 0 && rng.chance(faults.short)))
        {
            // The disk takes a part; the engine's ring submits the rest again.
            let part = rng.below(words.len());
            self.disks[*disk].write(*at, &words[..part], *stable);
            *at += part;
            words.drain(..part);
            self.short_writes += 1;
            if !failed {
                return None;
            }
        }
        let (op, work) = self.under_way.swap_remove(index);
        if failed {
            if let Work::Sync(disks) = work {
                // Nobody knows what a failed sync has left in the cache: often nothing.
                disks.into_iter().for_each(|(disk, _)| self.disks[disk].lose_cache(rng));
            }
            return Some((op, Ended::Failed));
        }
        match work {
            Work::Write { disk, at, mut words, stable } => {
                self.disks[disk].write(at, &words, stable);
                words.clear();
                self.spare.push(words);
            }
            Work::Sync(disks) => disks.into_iter().for_each(|(disk, until)| self.disks[disk].settle(until)),
            Work::Read => {}
        }
        Some((op, Ended::Well))
    }

    /// A sync that is complete before anything else happens: at a start.
    pub fn sync_now(&mut self, disk: usize) {
        let now = self.disks[disk].now();
        self.disks[disk].settle(now);
    }

    /// What is under way arrives or not, sector by sector; then the power may go.
    pub fn crash(&mut self, how: Crash, rng: &mut Rng) {
        let arrived_per_mille = rng.pick(&[0, 500, 950, 1000]);
        for (_, work) in self.under_way.drain(..) {
            if let Work::Write { disk, at, words, .. } = work {
                let persistent = self.disks[disk].persistent;
                for (index, word) in words.iter().enumerate() {
                    if persistent && rng.chance(100) {
                        self.disks[disk].write(at + index, &[torn(rng)], false);
                    } else if rng.chance(arrived_per_mille) {
                        self.disks[disk].write(at + index, &[*word], false);
                    }
                }
            }
        }
        if how == Crash::Power {
            self.disks.iter_mut().for_each(|disk| disk.lose_cache(rng));
        }
    }
}
