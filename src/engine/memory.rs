//! The memory that the kernel reads and writes: one mapping for each engine, handed out in refcounted chunks.

use crate::core::Place;
use crate::limits::{BLOCK_BYTES, CHUNK_BYTES};
use std::io;
use std::ptr::NonNull;

/// One anonymous mapping, page-aligned, with huge pages and locked into memory where the system allows it.
/// It lives as long as anything may still be under way in it: the ring holds a reference.
#[derive(Debug)]
pub struct Memory {
    base: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the mapping is plain memory owned by this value; who may touch which part when is the contract of the
// unsafe methods below.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    /// Maps `bytes` bytes of zeros.
    pub fn map(bytes: usize) -> io::Result<Memory> {
        // SAFETY: a fresh anonymous mapping; no existing memory is involved.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        let base = if address == libc::MAP_FAILED { None } else { NonNull::new(address.cast::<u8>()) };
        let base = base.ok_or_else(io::Error::last_os_error)?;
        // SAFETY: the range is the mapping just made. Both calls are hints: without them all still works, slower.
        unsafe {
            libc::madvise(address, bytes, libc::MADV_HUGEPAGE);
            libc::madvise(address, bytes, libc::MADV_DONTFORK);
            if libc::syscall(libc::SYS_mlock2, address, bytes, libc::MLOCK_ONFAULT) != 0 {
                tracing::debug!("memory isn't locked ({}); raise LimitMEMLOCK", io::Error::last_os_error());
            }
        }
        Ok(Memory { base, bytes })
    }

    /// The address of a range, for the kernel. Panics where it exceeds the mapping: a bug, not an input.
    pub fn address(&self, place: Place, bytes: usize) -> *mut u8 {
        let start = place.0 as usize;
        assert!(start.checked_add(bytes).is_some_and(|end| end <= self.bytes), "range outside the mapping");
        // SAFETY: start..start+bytes is inside the mapping, as just asserted.
        unsafe { self.base.as_ptr().add(start) }
    }

    /// A range's bytes.
    ///
    /// # Safety
    /// Nobody, the kernel included, may write to the range while the slice lives.
    pub unsafe fn bytes(&self, place: Place, bytes: usize) -> &[u8] {
        // SAFETY: the range is inside the mapping; the caller promises the rest.
        unsafe { std::slice::from_raw_parts(self.address(place, bytes), bytes) }
    }

    /// A range's bytes, to be changed.
    ///
    /// # Safety
    /// Nobody else, the kernel included, may read or write the range while the slice lives.
    #[expect(clippy::mut_from_ref, reason = "the caller promises that the range is his alone")]
    pub unsafe fn bytes_mut(&self, place: Place, bytes: usize) -> &mut [u8] {
        // SAFETY: the range is inside the mapping; the caller promises the rest.
        unsafe { std::slice::from_raw_parts_mut(self.address(place, bytes), bytes) }
    }

    /// Copies within the mapping; the ranges may overlap.
    ///
    /// # Safety
    /// The source must not be written, the destination not be used by anybody else.
    pub unsafe fn copy(&self, from: Place, to: Place, bytes: usize) {
        // SAFETY: both ranges are inside the mapping; the caller promises the rest.
        unsafe { std::ptr::copy(self.address(from, bytes), self.address(to, bytes), bytes) }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and no operation is under way: the ring would hold a reference.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.bytes) };
    }
}

/// Hands out a part of the mapping. Small pieces are packed into chunks; a chunk is free again when all its pieces are.
#[derive(Debug)]
pub struct Pool {
    base: u64,
    users: Vec<u32>,
    free: Vec<u32>,
    packing: Option<(u32, usize)>,
}

impl Pool {
    /// A pool over `chunks` chunks from `base` on; all are free.
    pub fn new(base: Place, chunks: usize) -> Pool {
        Pool { base: base.0, users: vec![0; chunks], free: (0..chunks as u32).rev().collect(), packing: None }
    }

    /// A pool in which the given ranges are in use already.
    pub fn with(base: Place, chunks: usize, used: impl Iterator<Item = (Place, u64)>) -> Pool {
        let mut pool = Pool::new(base, chunks);
        for (place, bytes) in used {
            for chunk in pool.chunks(place, bytes) {
                pool.users[chunk] += 1;
            }
        }
        let users = &pool.users;
        pool.free.retain(|chunk| users[*chunk as usize] == 0);
        pool
    }

    /// Chunks that are wholly free.
    pub fn free_chunks(&self) -> usize {
        self.free.len()
    }

    /// Takes memory for up to `bytes` bytes: less where a chunk ends, whole blocks otherwise. Returns the place and
    /// for how many of the bytes it is; `None` while there is none.
    pub fn take(&mut self, bytes: usize) -> Option<(Place, usize)> {
        if bytes >= CHUNK_BYTES {
            let chunk = self.free.pop()?;
            self.users[chunk as usize] = 1;
            return Some((self.place(chunk, 0), CHUNK_BYTES));
        }
        let (chunk, used) = match self.packing {
            Some((chunk, used)) if used < CHUNK_BYTES => (chunk, used),
            full => {
                let chunk = self.free.pop()?;
                self.close_packing(full);
                (chunk, 0)
            }
        };
        let taken = bytes.min(CHUNK_BYTES - used);
        self.users[chunk as usize] += 1;
        self.packing = Some((chunk, used + taken.next_multiple_of(BLOCK_BYTES)));
        Some((self.place(chunk, used), taken))
    }

    /// The chunk that was packed may be free already.
    fn close_packing(&mut self, packing: Option<(u32, usize)>) {
        if let Some((chunk, _)) = packing
            && self.users[chunk as usize] == 0
        {
            self.free.push(chunk);
        }
        self.packing = None;
    }

    /// The chunk of this place has one more user: a piece was divided, and each part is given back by itself.
    pub fn share(&mut self, place: Place) {
        for chunk in self.chunks(place, 1) {
            self.users[chunk] += 1;
        }
    }

    /// Gives a range back.
    pub fn release(&mut self, place: Place, bytes: u64) {
        for chunk in self.chunks(place, bytes) {
            self.users[chunk] -= 1;
            if self.users[chunk] == 0 {
                match &mut self.packing {
                    Some((packing, used)) if *packing as usize == chunk => *used = 0,
                    _ => self.free.push(chunk as u32),
                }
            }
        }
    }

    fn place(&self, chunk: u32, offset: usize) -> Place {
        Place(self.base + chunk as u64 * CHUNK_BYTES as u64 + offset as u64)
    }

    fn chunks(&self, place: Place, bytes: u64) -> std::ops::RangeInclusive<usize> {
        let start = place.0 - self.base;
        let chunk = |at: u64| (at / CHUNK_BYTES as u64) as usize;
        chunk(start)..=chunk(start + bytes.max(1) - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_packed_and_chunks_come_back() {
        let mut pool = Pool::new(Place(8192), 2);
        let (a, _) = pool.take(512).unwrap();
        let (b, _) = pool.take(5000).unwrap();
        assert_eq!((a, b), (Place(8192), Place(8192 + 4096)));
        let (c, bytes) = pool.take(CHUNK_BYTES - 1).unwrap();
        assert_eq!((c, bytes), (Place(8192 + 3 * 4096), CHUNK_BYTES - 3 * 4096), "up to the chunk's end");
        let (d, whole) = pool.take(CHUNK_BYTES).unwrap();
        assert_eq!((d.0, whole), (8192 + CHUNK_BYTES as u64, CHUNK_BYTES));
        assert!(pool.take(512).is_none() && pool.take(CHUNK_BYTES).is_none());
        pool.release(d, CHUNK_BYTES as u64);
        pool.release(a, 512);
        pool.release(c, bytes as u64);
        assert_eq!(pool.free_chunks(), 1);
        pool.release(b, 5000);
        let (f, _) = pool.take(CHUNK_BYTES).unwrap();
        pool.share(f);
        pool.release(f, 4096);
        assert_eq!(pool.free_chunks(), 0);
        pool.release(Place(f.0 + 8192), 4096);
        assert_eq!(pool.free_chunks(), 1);
        let (e, _) = pool.take(4096).unwrap();
        assert_eq!(e, Place(8192), "the packed chunk starts over once it is empty");
    }

    #[test]
    fn ranges_in_use_at_the_start_are_respected() {
        let chunk = CHUNK_BYTES as u64;
        let mut pool = Pool::with(Place(0), 4, [(Place(chunk - 4096), 8192)].into_iter());
        assert_eq!(pool.free_chunks(), 2);
        pool.release(Place(chunk - 4096), 8192);
        assert_eq!(pool.free_chunks(), 4);
    }
}
