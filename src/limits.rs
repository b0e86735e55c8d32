//! Every bound in one place, with the relations between them checked at compile time.

/// The unit of frames, headers and payload alignment, in bytes.
pub const BLOCK_BYTES: usize = 4096;
/// Records that fit into one frame's header block.
pub const MAX_RECORDS_PER_FRAME: usize = 124;
/// The largest payload of one record, and the unit in which memory is handed out, in bytes.
pub const CHUNK_BYTES: usize = 128 << 10;
/// The largest payload of one frame, in bytes.
pub const MAX_FRAME_PAYLOAD_BYTES: usize = 1 << 20;
/// The largest frame with its header block, in bytes.
pub const MAX_FRAME_BYTES: usize = BLOCK_BYTES + MAX_FRAME_PAYLOAD_BYTES;
/// Frames that may be under way (not yet stored on both sides) at once. It bounds by how many frames two sides that crashed
/// can differ with durability `always`; with `flush` a power cut can take any number from a cache.
pub const MAX_FRAMES_IN_FLIGHT: usize = 16;
/// The last frame boundaries that a destination names when a source connects.
pub const MAX_BOUNDARIES: usize = 64;
/// Of these, the newest that are named without a gap. The simulator's sides differ by fewer frames.
pub const BOUNDARIES_IN_A_ROW: usize = if cfg!(feature = "canary") { 2 } else { MAX_BOUNDARIES / 2 };
/// Volumes of one source.
pub const MAX_VOLUMES: usize = 32;
/// Longest name of a source or a volume, in bytes.
pub const MAX_NAME_BYTES: usize = 64;
/// Smallest half of a journal that can be configured, in bytes.
pub const MIN_HALF_BYTES: u64 = 8 << 20;
/// Largest half of a journal, in bytes.
pub const MAX_HALF_BYTES: u64 = 32 << 30;
/// Where the first half starts in a journal, in bytes: room for the superblock's copies and to spare.
pub const JOURNAL_DATA_OFFSET: u64 = 64 << 10;
/// Largest payload of an NBD request, in bytes.
pub const MAX_REQUEST_BYTES: usize = 32 << 20;
/// Bytes of written payload that may wait for room in the journal before clients' sockets are left unread.
pub const MAX_WAITING_BYTES: usize = 16 << 20;
/// Records that may wait for room in the journal before clients' sockets are left unread.
pub const MAX_WAITING_RECORDS: usize = 8192;
/// Memory for replies to reads, in bytes.
pub const READ_MEMORY_BYTES: usize = 96 << 20;
/// Memory for payloads that are being received, beyond the two halves themselves, in bytes.
pub const RECEIVE_MEMORY_BYTES: usize = 64 << 20;
/// NBD connections of one engine.
pub const MAX_CLIENTS: usize = 256;
/// NBD connections that read one source's images while they are mirrored.
pub const MAX_LIVE_CLIENTS: usize = 64;
/// Memory for replies to them, in bytes.
pub const LIVE_READ_BYTES: usize = 40 << 20;
/// The receive buffer of one NBD connection, in bytes.
pub const CLIENT_BUFFER_BYTES: usize = 64 << 10;
/// Requests under way over all connections of one engine.
pub const MAX_REQUESTS: usize = 16384;
/// Window of a resync or a verify, in bytes.
pub const COPY_WINDOW_BYTES: u64 = 1 << 20;
/// Windows of a resync or a verify under way at once.
pub const MAX_COPY_WINDOWS: usize = 8;
/// Bytes of a volume that one bit of the dirty bitmap stands for, where the configuration doesn't say.
pub const GRAIN_BYTES: u32 = 64 << 10;
/// Largest grain of the dirty bitmap, in bytes.
pub const MAX_GRAIN_BYTES: u32 = COPY_WINDOW_BYTES as u32;
/// Boundaries beyond its journal that a source remembers.
pub const MAX_KNOWN_MARKS: usize = 40;
/// Bytes for which one checksum is exchanged before a resync sends them.
pub const SUM_GRAIN_BYTES: u64 = BLOCK_BYTES as u64;
/// Checksums of one window.
pub const MAX_SUMS: usize = (COPY_WINDOW_BYTES / SUM_GRAIN_BYTES) as usize;
/// Memory through which a destination's staging log goes to the images, in bytes. The simulator's logs are shorter.
pub const DRAIN_BYTES: u64 = if cfg!(feature = "canary") { 9 << 18 } else { 16 << 20 };
/// A slot of the destination's shared log, in bytes: what is moved to a journal file by one write.
pub const NVRAM_SLOT_BYTES: u64 = 4 << 20;
/// Smallest shared log, in bytes.
pub const MIN_NVRAM_BYTES: u64 = 64 << 20;
/// One device write of a flush or an apply, in bytes. A promote waits for those under way.
pub const MAX_FLUSH_BYTES: u64 = 512 << 10;
/// Pieces of memory that one device write may gather.
pub const MAX_FLUSH_PIECES: usize = 64;

const _: () = {
    assert!(128 + MAX_RECORDS_PER_FRAME * 32 == BLOCK_BYTES);
    assert!(CHUNK_BYTES.is_multiple_of(BLOCK_BYTES));
    assert!(MAX_FRAME_PAYLOAD_BYTES >= CHUNK_BYTES);
    // A frame with its header always fits into an empty half.
    assert!(MAX_FRAME_BYTES as u64 <= MIN_HALF_BYTES);
    // Beside those that a source asks for, the few that are always named, and the newest.
    assert!(MAX_KNOWN_MARKS + 4 < MAX_BOUNDARIES);
    // Whole requests wait for memory; so the largest must fit beside another.
    assert!(READ_MEMORY_BYTES >= 2 * MAX_REQUEST_BYTES);
    assert!(LIVE_READ_BYTES >= MAX_REQUEST_BYTES + 8 * CHUNK_BYTES);
    assert!(MAX_GRAIN_BYTES as u64 <= COPY_WINDOW_BYTES && GRAIN_BYTES <= MAX_GRAIN_BYTES);
    // A slot holds any frame behind its head.
    assert!(NVRAM_SLOT_BYTES >= (BLOCK_BYTES + MAX_FRAME_BYTES) as u64);
    // A segment of the staging log holds a frame at least.
    assert!(DRAIN_BYTES >= 2 * MAX_FRAME_BYTES as u64);
    assert!(MAX_WAITING_BYTES + MAX_CLIENTS * CHUNK_BYTES + 8 * MAX_FRAME_PAYLOAD_BYTES <= RECEIVE_MEMORY_BYTES);
};
