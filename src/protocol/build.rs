//! Compiles the frames' schema with protox, so that building needs no protoc, and writes its description for programs.

#[cfg(feature = "json")]
#[path = "frames/asyncapi.rs"]
mod asyncapi;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let schema = "waxwing.v1.proto";
    println!("cargo::rerun-if-changed={schema}");
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=frames/asyncapi.rs");
    let files = protox::compile([schema], ["."])?;
    #[cfg(feature = "json")]
    {
        // A field that an older server does not know is no error, as in protobuf.
        let descriptors = prost::Message::encode_to_vec(&files);
        let mut json = pbjson_build::Builder::new();
        json.register_descriptors(&descriptors)?.ignore_unknown_fields().build(&[".waxwing.v1"])?;
        let file = files.file.iter().find(|file| file.name() == schema).ok_or("the schema was not compiled")?;
        let out = std::path::PathBuf::from(std::env::var("OUT_DIR")?).join("asyncapi.json");
        std::fs::write(out, serde_json::to_string_pretty(&asyncapi::document(file)?)?)?;
    }
    // Bodies become `Bytes`, so that a frame is decoded without copying them.
    prost_build::Config::new().bytes(["."]).compile_fds(files)?;
    Ok(())
}
