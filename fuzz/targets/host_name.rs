//! The host of a request: who is answered at all.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| firkin_server::fuzzing::host_name(data));
