//! What programs in a sandbox write to a terminal: what of it comes to a browser.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| firkin_server::fuzzing::terminal_screen(data));
