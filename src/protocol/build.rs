//! Compiles the frames' schema with protox, so that building needs no protoc.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let schema = "waxwing.v1.proto";
    println!("cargo::rerun-if-changed={schema}");
    let files = protox::compile([schema], ["."])?;
    #[cfg(feature = "json")]
    {
        // A field that an older server does not know is no error, as in protobuf.
        let descriptors = prost::Message::encode_to_vec(&files);
        let mut json = pbjson_build::Builder::new();
        json.register_descriptors(&descriptors)?.ignore_unknown_fields().build(&[".waxwing.v1"])?;
    }
    // Bodies become `Bytes`, so that a frame is decoded without copying them.
    prost_build::Config::new().bytes(["."]).compile_fds(files)?;
    Ok(())
}
