//! A disk that is full: a tmpfs of a few megabytes, filled by uploads.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use libtest_mimic::{Failed, Trial};

use super::scene::{Scene, trial};

/// Bytes of the disk.
const DISK_BYTES: u64 = 256 << 20;

/// Bytes that the origin leaves free: records and messaging live on the same disk.
const RESERVE_BYTES: u64 = 96 << 20;

/// A file of somebody else's, which goes when somebody makes room.
const BALLAST_BYTES: u64 = 40 << 20;

/// Bytes of what fills the disk.
const UPLOAD_BYTES: u64 = 8 << 20;

/// Where there is root.
pub fn trials() -> Vec<Trial> {
    let missing = Tmpfs::unavailable();
    vec![trial("a_full_disk_keeps_prefixes_and_heals", missing.as_deref(), a_full_disk_keeps_prefixes_and_heals)]
}

fn a_full_disk_keeps_prefixes_and_heals() -> Result<(), Failed> {
    let dir = tempfile::tempdir()?;
    let disk = Tmpfs::mount(&dir.path().join("disk"))?;
    let ballast = File::create(disk.path().join("ballast"))?;
    rustix::fs::fallocate(&ballast, rustix::fs::FallocateFlags::empty(), 0, BALLAST_BYTES)?;
    let mut scene = Scene::start(dir, Some(&disk.path().join("data")), RESERVE_BYTES);

    // Whoever tells a length is told before the first byte whether there is room.
    let mut stored = 0;
    let (refused, status) = loop {
        let url = scene.create(stored, UPLOAD_BYTES, false).ok_or("no answer")??;
        match scene.append(&url, u64::MAX, None).ok_or("no answer")? {
            204 => stored += 1,
            status => break (url, status),
        }
        if stored * UPLOAD_BYTES > DISK_BYTES {
            return Err("the disk was never full".into());
        }
    };
    assert_eq!(status, 507);
    assert!(stored > 2, "{stored} uploads show nothing");
    assert_eq!(scene.head(&refused).ok_or("no answer")??, 0);
    assert!(scene.is_ready(), "a full store is not a broken one");

    // Whoever does not is told when it is used up, and what came before counts.
    ballast.set_len(BALLAST_BYTES - (5 << 20))?;
    let deferred = scene.create(1000, 3 * UPLOAD_BYTES, true).ok_or("no answer")??;
    assert_eq!(scene.append(&deferred, u64::MAX, None), Some(507));
    let kept = scene.head(&deferred).ok_or("no answer")??;
    assert!((1 << 20..3 * UPLOAD_BYTES).contains(&kept), "{kept} bytes were kept");
    let small = scene.create(1001, 1 << 20, false).ok_or("no answer")??;
    assert_eq!(scene.append(&small, u64::MAX, None), Some(507));
    assert!(scene.is_ready());

    // It heals by itself when somebody makes room, and nothing that was acknowledged is missing.
    ballast.set_len(0)?;
    scene.finish_all()?;
    scene.restart(&[]);
    scene.check_all()?;
    eprintln!("{} uploads on a disk that was full for 3 of them, {kept} bytes kept of one", scene.told.len());
    drop(scene);
    Ok(())
}

/// A file system in memory, unmounted when it is dropped; whoever uses it must have ended by then.
struct Tmpfs(PathBuf);

impl Tmpfs {
    fn unavailable() -> Option<String> {
        if !rustix::process::getuid().is_root() {
            return Some("mounting needs root".into());
        }
        let dir = tempfile::tempdir().ok()?;
        Self::mount(&dir.path().join("disk")).err()
    }

    fn mount(path: &Path) -> Result<Self, String> {
        std::fs::create_dir_all(path).map_err(|error| error.to_string())?;
        let size = format!("size={DISK_BYTES}");
        run(
            "mount",
            &["-t".as_ref(), "tmpfs".as_ref(), "-o".as_ref(), size.as_ref(), "none".as_ref(), path.as_os_str()],
        )?;
        Ok(Self(path.to_owned()))
    }

    fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        // Detached in any case, so that a test that failed leaves nothing mounted.
        let _ = run("umount", &["-l".as_ref(), self.0.as_os_str()]);
    }
}

fn run(program: &str, args: &[&std::ffi::OsStr]) -> Result<(), String> {
    let output = Command::new(program).args(args).output().map_err(|error| format!("{program}: {error}"))?;
    let error = || format!("{program}: {}", String::from_utf8_lossy(&output.stderr).trim());
    output.status.success().then_some(()).ok_or_else(error)
}
