//! The house keeps its walls: who may depend on whom.

use std::path::Path;

use toml::Table;

/// A crate's dependencies on other crates of Waxwing, tests' included.
fn inner_dependencies(manifest: &str) -> Vec<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(manifest).join("Cargo.toml");
    let manifest: Table = std::fs::read_to_string(path).unwrap().parse().unwrap();
    let mut names = Vec::new();
    for section in ["dependencies", "dev-dependencies", "build-dependencies"] {
        let Some(table) = manifest.get(section).and_then(|table| table.as_table()) else { continue };
        names.extend(table.keys().filter(|name| name.starts_with("waxwing-")).cloned());
    }
    names.sort();
    names
}

/// Siblings meet only on the wire; what touches users' keys is out of every server's reach.
#[test]
fn crates_import_only_in_the_directions_drawn() {
    assert_eq!(inner_dependencies("src/protocol"), Vec::<String>::new());
    assert_eq!(inner_dependencies("src/seal"), ["waxwing-protocol"]);
    assert_eq!(inner_dependencies("src/client"), ["waxwing-protocol", "waxwing-seal"]);
    for server in ["origin", "edge", "messaging"] {
        assert_eq!(inner_dependencies(server), ["waxwing-protocol"], "{server}");
    }
}
