//! Generates the client of the proxies' contract over the messages that `postern-config` owns, for the light clients.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=../config/proto");
    let files = protox::compile(["../config/proto/control.proto"], ["../config/proto"])?;
    tonic_prost_build::configure()
        .build_server(false)
        .build_client(true)
        .build_transport(false)
        .extern_path(".postern.control.v1", "::postern_config::wire::v1")
        .compile_fds(files)?;
    Ok(())
}
