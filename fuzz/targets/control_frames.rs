//! The control channel: what a guest that was taken over writes to its host.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| firkin_wire::fuzzing::control_frames(data));
