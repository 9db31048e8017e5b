//! Steps of template builds, and the variables in them.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| firkin_runtime::fuzzing::build_steps(data));
