#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| nbd_mirror_fuzz::nbd_requests::run(data));
