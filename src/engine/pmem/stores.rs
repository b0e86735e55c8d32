//! The processor's ways to write so that nothing stays in its caches.
//!
//! Whole units of 16 or 32 aligned bytes go past the caches (non-temporal stores). What is before the first one and
//! behind the last one is written as usual, and its cache lines are written back. Journals are written in blocks, at
//! places that are multiples of 512, so there is nothing of that there.

#[cfg(target_arch = "x86_64")]
pub use x86_64::Stores;

#[cfg(not(target_arch = "x86_64"))]
pub use elsewhere::Stores;

#[cfg(target_arch = "x86_64")]
mod x86_64 {
    use std::arch::asm;
    use std::arch::x86_64::{
        __cpuid_count, __get_cpuid_max, __m128i, __m256i, _mm_loadu_si128, _mm_sfence, _mm_stream_si128,
        _mm256_loadu_si256, _mm256_stream_si256,
    };
    use std::fmt;

    /// Bytes of a cache line.
    const LINE: usize = 64;

    /// What this processor has.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Stores {
        pub(super) past: Past,
        pub(super) back: Back,
    }

    /// How units go past the caches.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub(super) enum Past {
        Sse2,
        Avx,
    }

    /// How a cache line is written back; the later the cheaper.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub(super) enum Back {
        /// Each processor of x86_64 has it.
        Clflush,
        Clflushopt,
        Clwb,
    }

    impl Stores {
        /// Asks the processor.
        pub fn of_this_processor() -> Option<Stores> {
            let past = if is_x86_feature_detected!("avx") { Past::Avx } else { Past::Sse2 };
            // By the manuals: leaf 7, EBX bit 23 and bit 24.
            #[allow(unused_unsafe, reason = "safe functions in newer versions of Rust")]
            // SAFETY: each processor of x86_64 has the instruction, and it changes no memory.
            let features = unsafe { if __get_cpuid_max(0).0 >= 7 { __cpuid_count(7, 0).ebx } else { 0 } };
            let back = match (features & 1 << 24, features & 1 << 23) {
                (0, 0) => Back::Clflush,
                (0, _) => Back::Clflushopt,
                _ => Back::Clwb,
            };
            Some(Stores { past, back })
        }

        /// Copies bytes; they are stable behind the next [`Stores::fence`], and not before it may anybody else look at
        /// them.
        ///
        /// # Safety
        /// `to` is the beginning of as many bytes that may be written, apart from `from`.
        pub unsafe fn copy(self, from: &[u8], to: *mut u8) {
            let unit = match self.past {
                Past::Sse2 => size_of::<__m128i>(),
                Past::Avx => size_of::<__m256i>(),
            };
            let (head, rest) = from.split_at(to.align_offset(unit).min(from.len()));
            let (body, tail) = rest.split_at(rest.len() / unit * unit);
            // SAFETY: head, body and tail are `from` in three parts, so each goes to a part of what the caller gave. The
            // body begins at a multiple of the unit and is as long as some of them; AVX is there where it is named.
            unsafe {
                self.plain(head, to);
                match self.past {
                    Past::Sse2 => stream_sse2(body, to.add(head.len()).cast()),
                    Past::Avx => stream_avx(body, to.add(head.len()).cast()),
                }
                self.plain(tail, to.add(head.len() + body.len()));
            }
        }

        /// Waits until all stores before it have left the caches.
        pub fn fence(self) {
            // SAFETY: each processor of x86_64 has it, and it changes no memory.
            unsafe { _mm_sfence() };
        }

        /// Copies bytes through the cache, and has their lines written back.
        ///
        /// # Safety
        /// As of [`Stores::copy`].
        unsafe fn plain(self, from: &[u8], to: *mut u8) {
            if from.is_empty() {
                return;
            }
            // SAFETY: the caller's promise.
            unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to, from.len()) };
            let first = to.wrapping_sub(to.addr() % LINE);
            let lines = (to.addr() % LINE + from.len()).div_ceil(LINE);
            for line in (0..lines).map(|line| first.wrapping_add(line * LINE)) {
                // SAFETY: each line has a byte of the range, so it is mapped; writing it back changes no memory. What the
                // processor doesn't know isn't named.
                unsafe {
                    match self.back {
                        Back::Clflush => asm!("clflush [{}]", in(reg) line, options(nostack, preserves_flags)),
                        Back::Clflushopt => asm!("clflushopt [{}]", in(reg) line, options(nostack, preserves_flags)),
                        Back::Clwb => asm!("clwb [{}]", in(reg) line, options(nostack, preserves_flags)),
                    }
                }
            }
        }
    }

    /// # Safety
    /// `to` is aligned, and may be written for as many bytes as `from` has, which is whole units.
    unsafe fn stream_sse2(from: &[u8], to: *mut __m128i) {
        for (n, unit) in from.chunks_exact(size_of::<__m128i>()).enumerate() {
            // SAFETY: the load takes any alignment and a unit's bytes; the rest is the caller's promise.
            unsafe { _mm_stream_si128(to.add(n), _mm_loadu_si128(unit.as_ptr().cast())) };
        }
    }

    /// # Safety
    /// As of [`stream_sse2`], and the processor has AVX.
    #[target_feature(enable = "avx")]
    unsafe fn stream_avx(from: &[u8], to: *mut __m256i) {
        for (n, unit) in from.chunks_exact(size_of::<__m256i>()).enumerate() {
            // SAFETY: the load takes any alignment and a unit's bytes; the rest is the caller's promise.
            unsafe { _mm256_stream_si256(to.add(n), _mm256_loadu_si256(unit.as_ptr().cast())) };
        }
    }

    impl fmt::Display for Stores {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            let bytes = match self.past {
                Past::Sse2 => 16,
                Past::Avx => 32,
            };
            let back = match self.back {
                Back::Clflush => "clflush",
                Back::Clflushopt => "clflushopt",
                Back::Clwb => "clwb",
            };
            write!(f, "non-temporal stores of {bytes} bytes, and {back}")
        }
    }

    #[cfg(test)]
    impl Stores {
        /// This processor's, and all lesser ones.
        pub fn each() -> Vec<Stores> {
            let best = Stores::of_this_processor().expect("one of x86_64");
            let back = [Back::Clflush, Back::Clflushopt, Back::Clwb];
            let back: Vec<Back> = back.into_iter().filter(|back| *back as u8 <= best.back as u8).collect();
            let past = [Past::Sse2, Past::Avx].into_iter().filter(|past| *past as u8 <= best.past as u8);
            past.flat_map(|past| back.iter().map(move |back| Stores { past, back: *back })).collect()
        }
    }
}

#[cfg(not(target_arch = "x86_64"))]
mod elsewhere {
    use std::fmt;

    /// There are none.
    #[derive(Debug, Clone, Copy)]
    pub enum Stores {}

    impl Stores {
        /// Not written for this processor.
        pub fn of_this_processor() -> Option<Stores> {
            None
        }

        /// Never called.
        ///
        /// # Safety
        /// Nothing is asked.
        pub unsafe fn copy(self, _: &[u8], _: *mut u8) {
            match self {}
        }

        /// Never called.
        pub fn fence(self) {
            match self {}
        }
    }

    impl fmt::Display for Stores {
        fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
            match *self {}
        }
    }
}
