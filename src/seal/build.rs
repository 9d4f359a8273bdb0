//! Compiles the schemas of what travels encrypted, with protox, so that building needs no protoc.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let schemas = ["blob_ref.proto", "message.proto"];
    for schema in schemas {
        println!("cargo::rerun-if-changed={schema}");
    }
    prost_build::Config::new().compile_fds(protox::compile(schemas, ["."])?)?;
    Ok(())
}
