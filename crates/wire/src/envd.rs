//! envd's messages and Connect services, generated from `proto/`.
#![expect(missing_docs, missing_debug_implementations, reason = "generated code")]
#![expect(clippy::allow_attributes, clippy::allow_attributes_without_reason, clippy::too_many_lines, reason = "generated code")]
// In tests the lint lets glob imports pass.
#![cfg_attr(not(test), expect(clippy::wildcard_imports, reason = "generated code"))]

connectrpc::include_generated!("_envd.rs");
