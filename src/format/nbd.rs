//! The NBD protocol in bytes.
