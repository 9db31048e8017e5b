//! Forms that bring files: where their parts begin and end is the client's word.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| firkin_guest::fuzzing::form_upload(data));
