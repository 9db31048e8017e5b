//! Signed URLs: what admits a request that carries no token.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| firkin_guest::fuzzing::url_signature(data));
