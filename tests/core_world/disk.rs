//! Disks that lose what wasn't synced and tear what is under way.

/// What a disk writes or loses as a whole, in bytes.
pub const SECTOR: usize = 512;

/// A small random number generator: xorshift64*. The same seed gives the same world.
#[derive(Debug, Clone)]
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Rng {
        Rng(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 11
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    /// True in `per_mille` of 1000 cases.
    pub fn chance(&mut self, per_mille: u64) -> bool {
        self.below(1000) < per_mille
    }
}

/// What a crash does to a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Crash {
    /// The process is killed: what was written stays, what is under way may arrive or not, sector by sector.
    Kill,
    /// Power fails: of what wasn't synced each sector may be lost as well.
    Power,
}

/// One disk: what reads see, and what is on stable storage.
#[derive(Debug, Clone)]
pub struct Disk {
    view: Vec<u8>,
    stable: Vec<u8>,
    dirty: Vec<bool>,
}

type Snapshot = Vec<(usize, [u8; SECTOR])>;

impl Disk {
    pub fn new(bytes: Vec<u8>) -> Disk {
        assert!(bytes.len().is_multiple_of(SECTOR));
        Disk { dirty: vec![false; bytes.len() / SECTOR], stable: bytes.clone(), view: bytes }
    }

    pub fn bytes(&self) -> &[u8] {
        &self.view
    }

    /// What a power cut now would leave at least.
    pub fn stable(&self) -> &[u8] {
        &self.stable
    }

    fn write(&mut self, offset: u64, bytes: &[u8], stable: bool) {
        let at = offset as usize;
        assert!(at.is_multiple_of(SECTOR) && bytes.len().is_multiple_of(SECTOR));
        self.view[at..at + bytes.len()].copy_from_slice(bytes);
        if stable {
            self.stable[at..at + bytes.len()].copy_from_slice(bytes);
        }
        self.dirty[at / SECTOR..(at + bytes.len()) / SECTOR].fill(!stable);
    }

    /// What a sync that starts now will make stable.
    fn snapshot(&self) -> Snapshot {
        let dirty = (0..self.dirty.len()).filter(|sector| self.dirty[*sector]);
        dirty.map(|sector| (sector, self.view[sector * SECTOR..][..SECTOR].try_into().unwrap())).collect()
    }

    fn settle(&mut self, snapshot: Snapshot) {
        for (sector, bytes) in snapshot {
            // A stable write since then is newer.
            if self.dirty[sector] {
                self.stable[sector * SECTOR..][..SECTOR].copy_from_slice(&bytes);
                self.dirty[sector] = self.view[sector * SECTOR..][..SECTOR] != bytes;
            }
        }
    }

    fn power_cut(&mut self, rng: &mut Rng) {
        let lost_per_mille = [0, 100, 500, 900, 1000][rng.below(5) as usize];
        for sector in 0..self.dirty.len() {
            if std::mem::take(&mut self.dirty[sector]) {
                let range = sector * SECTOR..(sector + 1) * SECTOR;
                if !rng.chance(lost_per_mille) {
                    self.stable[range.clone()].copy_from_slice(&self.view[range]);
                }
            }
        }
        self.view.copy_from_slice(&self.stable);
    }
}

#[derive(Debug, Clone)]
enum Work {
    Write { disk: usize, offset: u64, bytes: Vec<u8>, stable: bool },
    Sync(Vec<(usize, Snapshot)>),
    Read,
}

/// A machine's disks, with what is under way on them. `Op` names an operation for its driver.
#[derive(Debug, Clone)]
pub struct Io<Op> {
    pub disks: Vec<Disk>,
    under_way: Vec<(Op, Work)>,
}

impl<Op> Io<Op> {
    pub fn new(disks: Vec<Disk>) -> Io<Op> {
        Io { disks, under_way: Vec::new() }
    }

    pub fn write(&mut self, op: Op, disk: usize, offset: u64, bytes: Vec<u8>, stable: bool) {
        self.under_way.push((op, Work::Write { disk, offset, bytes, stable }));
    }

    pub fn sync(&mut self, op: Op, disks: impl Iterator<Item = usize>) {
        let snapshots = disks.map(|disk| (disk, self.disks[disk].snapshot())).collect();
        self.under_way.push((op, Work::Sync(snapshots)));
    }

    pub fn read(&mut self, op: Op) {
        self.under_way.push((op, Work::Read));
    }

    pub fn idle(&self) -> bool {
        self.under_way.is_empty()
    }

    /// Completes any of the operations.
    pub fn complete(&mut self, rng: &mut Rng) -> Option<Op> {
        if self.under_way.is_empty() {
            return None;
        }
        let (op, work) = self.under_way.swap_remove(rng.below(self.under_way.len() as u64) as usize);
        match work {
            Work::Write { disk, offset, bytes, stable } => self.disks[disk].write(offset, &bytes, stable),
            Work::Sync(snapshots) => {
                snapshots.into_iter().for_each(|(disk, snapshot)| self.disks[disk].settle(snapshot))
            }
            Work::Read => {}
        }
        Some(op)
    }

    /// A write that is durable before anything else happens: at a start.
    pub fn write_now(&mut self, disk: usize, offset: u64, bytes: &[u8]) {
        self.disks[disk].write(offset, bytes, true);
    }

    /// A sync that is complete before anything else happens: at a start.
    pub fn sync_now(&mut self, disk: usize) {
        let snapshot = self.disks[disk].snapshot();
        self.disks[disk].settle(snapshot);
    }

    /// What is left after a crash.
    pub fn crash(self, how: Crash, rng: &mut Rng) -> Vec<Disk> {
        let mut disks = self.disks;
        let arrived_per_mille = [0, 500, 950, 1000][rng.below(4) as usize];
        for (_, work) in self.under_way {
            if let Work::Write { disk, offset, bytes, .. } = work {
                for (index, sector) in bytes.chunks_exact(SECTOR).enumerate() {
                    if rng.chance(arrived_per_mille) {
                        disks[disk].write(offset + (index * SECTOR) as u64, sector, false);
                    }
                }
            }
        }
        if how == Crash::Power {
            disks.iter_mut().for_each(|disk| disk.power_cut(rng));
        }
        disks
    }
}
