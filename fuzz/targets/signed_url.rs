//! Signed URLs that name no sandbox: whose file they mean.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| firkin_server::fuzzing::signed_url(data));
