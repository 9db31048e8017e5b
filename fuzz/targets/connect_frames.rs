//! Connect requests to envd: frames, encodings and messages of any client.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| firkin_guest::fuzzing::connect_frames(data));
