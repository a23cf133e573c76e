//! Generates the gRPC stubs over the messages that `postern-config` owns; no `protoc` is needed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=../config/proto");
    let files = protox::compile(["../config/proto/control.proto"], ["../config/proto"])?;
    tonic_prost_build::configure()
        .build_server(true)
        .build_client(true) // for this crate's own tests, which speak to a running server
        .build_transport(false)
        .extern_path(".postern.control.v1", "::postern_config::wire::v1")
        .compile_fds(files)?;
    Ok(())
}
