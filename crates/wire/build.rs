//! Generates the envd messages and services from our own definitions; no protoc needed.

use std::{env, fs, path::PathBuf};

#[expect(clippy::disallowed_methods, reason = "a build script needs no error that names its own output")]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = ["proto/process.proto", "proto/filesystem.proto"];
    for file in files {
        println!("cargo:rerun-if-changed={file}");
    }
    let mut compiler = protox::Compiler::new(["proto"])?;
    compiler.include_imports(true).include_source_info(true);
    compiler.open_files(files)?;
    let descriptors = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?).join("envd.fds.bin");
    fs::write(&descriptors, compiler.encode_file_descriptor_set())?;

    connectrpc_build::Config::new()
        .descriptor_set(&descriptors)
        .files(&["process.proto", "filesystem.proto"])
        .emit_rerun_directives(false)
        .gate_client_feature(true)
        .include_file("_envd.rs")
        .compile()?;
    Ok(())
}
