//! Layers of disks, written by an engine whose guest may have taken it over.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| firkin_engine::fuzzing::disk_layer(data));
