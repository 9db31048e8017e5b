//! The first bytes of a connection: what a client calls its host.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| firkin_egress::fuzzing::greeting(data));
