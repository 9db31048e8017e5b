//! Headers that are put into requests, and what clients send where values are put in.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| firkin_egress::fuzzing::filled_headers(data));
