//! The engine: one thread with one io_uring per journal.
