//! What artifacts say of themselves, which may have been made on another host.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| firkin_runtime::fuzzing::sidecars(data));
