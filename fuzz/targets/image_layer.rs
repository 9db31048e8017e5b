//! Layers of container images: compressed archives of strangers.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| firkin_image::fuzzing::image_layer(data));
