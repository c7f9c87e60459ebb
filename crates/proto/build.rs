//! Compiles the .proto files without protoc.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = ["laredo/replication/v1/replication.proto", "laredo/v1/oam.proto", "laredo/v1/query.proto"];
    println!("cargo:rerun-if-changed=proto");
    let mut compiler = protox::Compiler::new(["proto"])?;
    compiler.include_imports(true).include_source_info(true).open_files(files)?;
    let out = std::path::PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("laredo.bin"), compiler.encode_file_descriptor_set())?;
    let mut prost = tonic_prost_build::Config::new();
    prost.bytes([".laredo.replication.v1.RowBatch.entries"]);
    let services = std::env::var_os("CARGO_FEATURE_SERVICES").is_some();
    tonic_prost_build::configure()
        .build_client(services)
        .build_server(services)
        .compile_fds_with_config(compiler.file_descriptor_set(), prost)?;
    Ok(())
}
