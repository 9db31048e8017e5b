//! The first line to who carries a guest's volumes, which anybody in its network may send.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| firkin_guest::fuzzing::volume_hello(data));
