//! What a guest's kernel asks about a volume.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| firkin_share::fuzzing::message(data));
