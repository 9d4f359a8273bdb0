//! Compiles the frames' schema with protox, so that building needs no protoc.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let schema = "waxwing.v1.proto";
    println!("cargo::rerun-if-changed={schema}");
    let files = protox::compile([schema], ["."])?;
    // Bodies become `Bytes`, so that a frame is decoded without copying them.
    prost_build::Config::new().bytes(["."]).compile_fds(files)?;
    Ok(())
}
