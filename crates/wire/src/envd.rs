//! envd's messages and Connect services, generated from `proto/`.
#![expect(missing_docs, missing_debug_implementations, reason = "generated code")]

connectrpc::include_generated!("_envd.rs");
