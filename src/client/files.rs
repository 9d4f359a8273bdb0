//! Files that come from others: names made safe, and saving without writing over anything.
//!
//! The name of a received file is whatever its sender typed. Taken as it is, `../.bashrc` would leave the directory it
//! is saved to, a right-to-left override would make `exe.jpg` of `gpj.exe`, and `photo.jpg` would replace last year's.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

/// Bytes of a safe name at most: file systems allow 255, and ` (999)` or an ending for parts may be added.
const NAME_BYTES_MAX: usize = 200;

/// The name of a file that has none.
const NAMELESS: &str = "file";

/// Names that are devices on Windows, whatever ending they have.
const RESERVED: [&str; 22] = [
    "con", "prn", "aux", "nul", "com1", "com2", "com3", "com4", "com5", "com6", "com7", "com8", "com9", "lpt1", "lpt2",
    "lpt3", "lpt4", "lpt5", "lpt6", "lpt7", "lpt8", "lpt9",
];

/// How many ` (1)`, ` (2)` are tried before giving up.
const NUMBERS_MAX: u32 = 99_999;

/// A file name from a stranger's text: one path component, visible, not hidden, valid on every system, never empty.
pub(crate) fn safe_name(text: &str) -> String {
    let last = text.rsplit(['/', '\\']).next().unwrap_or_default();
    let visible = last.chars().filter(|c| !c.is_control() && !is_direction(*c));
    let valid: String =
        visible.map(|c| if matches!(c, '<' | '>' | ':' | '"' | '|' | '?' | '*') { '_' } else { c }).collect();
    let name = valid.trim_start_matches(|c: char| c == '.' || c.is_whitespace());
    let name = shorten(name).trim_end_matches(|c: char| c == '.' || c.is_whitespace()).to_owned();
    let stem = name.split('.').next().unwrap_or_default().trim_end().to_ascii_lowercase();
    if name.is_empty() {
        NAMELESS.to_owned()
    } else if RESERVED.contains(&stem.as_str()) {
        format!("_{name}")
    } else {
        name
    }
}

/// Characters that turn the direction of writing or show nothing (Unicode UAX #9 and format characters).
const fn is_direction(c: char) -> bool {
    matches!(c, '\u{200B}'..='\u{200F}' | '\u{2028}'..='\u{202E}' | '\u{2060}'..='\u{2069}' | '\u{FEFF}' | '\u{061C}')
}

/// Cuts a long name in its middle, so that its ending stays.
fn shorten(name: &str) -> String {
    if name.len() <= NAME_BYTES_MAX {
        return name.to_owned();
    }
    let (stem, ending) = split_ending(name);
    // An ending as long as a name is none.
    let ending = if ending.len() <= 16 { ending } else { "" };
    let mut cut = NAME_BYTES_MAX - ending.len();
    while !stem.is_char_boundary(cut.min(stem.len())) {
        cut -= 1;
    }
    format!("{}{ending}", &stem[..cut.min(stem.len())])
}

/// `photo.jpg` as `photo` and `.jpg`.
fn split_ending(name: &str) -> (&str, &str) {
    match name.rfind('.') {
        Some(dot) if dot > 0 => name.split_at(dot),
        _ => (name, ""),
    }
}

/// Moves the complete file `from` to `wanted` or, when that exists, to `wanted (1)` and so on, in the same directory.
/// Gives the name it got. Durable when it returns.
pub(crate) fn save_new(from: &Path, wanted: &Path) -> io::Result<PathBuf> {
    let dir = parent_dir(wanted);
    for number in 0..=NUMBERS_MAX {
        let target = numbered(wanted, number);
        match move_new(from, &target) {
            Ok(()) => {
                sync_dir(dir)?;
                return Ok(target);
            }
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::new(ErrorKind::AlreadyExists, "a thousand files of that name exist already"))
}

/// Moves a file to a name that must be free.
fn move_new(from: &Path, target: &Path) -> io::Result<()> {
    match std::fs::hard_link(from, target) {
        Ok(()) => std::fs::remove_file(from),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Err(error),
        // A file system without hard links: take the name with an empty file, and replace that.
        Err(_) => {
            OpenOptions::new().write(true).create_new(true).open(target)?;
            std::fs::rename(from, target)
        }
    }
}

/// `photo.jpg`, `photo (1).jpg`, `photo (2).jpg`.
fn numbered(path: &Path, number: u32) -> PathBuf {
    if number == 0 {
        return path.to_owned();
    }
    let mut name = path.file_stem().unwrap_or_default().to_owned();
    name.push(format!(" ({number})"));
    if let Some(ending) = path.extension() {
        name.push(".");
        name.push(ending);
    }
    path.with_file_name(name)
}

/// The directory a path is in.
pub(crate) fn parent_dir(path: &Path) -> &Path {
    match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    }
}

/// Makes the names in a directory durable, where the system can.
pub(crate) fn sync_dir(dir: &Path) -> io::Result<()> {
    if cfg!(unix) { File::open(dir)?.sync_all() } else { Ok(()) }
}

/// The media type that a file's ending promises; empty when it promises none known.
pub(crate) fn media_type(path: &Path) -> &'static str {
    let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default().to_ascii_lowercase();
    match ending.as_str() {
        "jpg" | "jpeg" => "image/jpeg",
        "png" => "image/png",
        "gif" => "image/gif",
        "webp" => "image/webp",
        "avif" => "image/avif",
        "heic" => "image/heic",
        "mp4" | "m4v" => "video/mp4",
        "mov" => "video/quicktime",
        "webm" => "video/webm",
        "mkv" => "video/matroska",
        "mp3" => "audio/mpeg",
        "m4a" => "audio/mp4",
        "ogg" | "opus" => "audio/ogg",
        "wav" => "audio/vnd.wave",
        "pdf" => "application/pdf",
        "txt" => "text/plain",
        "zip" => "application/zip",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_from_others_stay_where_they_are_put() {
        for (given, safe) in [
            ("photo.jpg", "photo.jpg"),
            ("../../.bashrc", "bashrc"),
            ("/etc/passwd", "passwd"),
            ("C:\\Windows\\system.ini", "system.ini"),
            ("a/..", "file"),
            ("..", "file"),
            ("", "file"),
            ("  .hidden", "hidden"),
            ("tab\there\0\n.txt", "tabhere.txt"),
            ("pic\u{202E}gpj.exe", "picgpj.exe"),
            ("a:b?.txt", "a_b_.txt"),
            ("nul", "_nul"),
            ("Con.txt", "_Con.txt"),
            ("com1 .txt", "_com1 .txt"),
            ("trailing. ", "trailing"),
            ("фото.jpg", "фото.jpg"),
        ] {
            assert_eq!(safe_name(given), safe, "{given:?}");
        }
    }

    #[test]
    fn a_long_name_keeps_its_ending() {
        let name = safe_name(&format!("{}.jpeg", "ж".repeat(300)));
        assert!(name.len() <= NAME_BYTES_MAX && name.ends_with("ж.jpeg"), "{name}");
        assert!(safe_name(&"x".repeat(5000)).len() <= NAME_BYTES_MAX);
        assert!(safe_name(&format!("a.{}", "x".repeat(5000))).len() <= NAME_BYTES_MAX);
    }

    #[test]
    fn saving_never_writes_over_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let wanted = dir.path().join("photo.jpg");
        for (content, name) in [("1", "photo.jpg"), ("2", "photo (1).jpg"), ("3", "photo (2).jpg")] {
            let part = dir.path().join("part");
            std::fs::write(&part, content).unwrap();
            let saved = save_new(&part, &wanted).unwrap();
            assert_eq!(saved, dir.path().join(name));
            assert_eq!(std::fs::read_to_string(saved).unwrap(), content);
            assert!(!part.exists());
        }
    }
}
