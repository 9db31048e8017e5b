//! Archives that are to be imported, which were made on another host.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| firkin_runtime::fuzzing::archives(data));
