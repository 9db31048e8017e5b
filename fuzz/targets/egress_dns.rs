//! What a client sends to the resolver, and what it is answered.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| firkin_egress::fuzzing::dns_message(data));
