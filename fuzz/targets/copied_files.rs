//! Archives of the files that a template build copies.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| firkin_runtime::fuzzing::copied_files(data));
