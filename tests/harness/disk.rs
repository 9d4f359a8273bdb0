//! A disk whose power can be cut: ext4 on a loop device, shut down without flushing its journal.
//!
//! `EXT4_IOC_SHUTDOWN` with `EXT4_GOING_FLAGS_NOLOGFLUSH` makes the file system drop whatever was not forced to the
//! device, as a power cut does. It needs root, a loop device and e2fsprogs; where those are missing, [`unavailable`]
//! says so, and the tests say that they did not run.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Bytes of the file system: room for everything the workers upload in a run, on a fast machine too; what is not written
/// takes no space. A full disk would look like uploads that cannot be completed.
const DISK_BYTES: u64 = 16 << 30;

/// Bytes that must stay free on the disk that holds the image: where its blocks find no room, ext4's recovery loses what
/// was durable.
const ROOM_BENEATH: u64 = 1 << 30;

/// The ioctl by way of perl, which Debian always has: no `unsafe` in this workspace, and no helper to compile.
const SHUTDOWN: &str = r#"open(my $dir, "<", $ARGV[0]) or die "open: $!"; my $flags = pack("L", 2); ioctl($dir, 0x8004587d, $flags) or die "ioctl: $!""#;

/// Why power cannot be cut here, if it cannot.
pub fn unavailable() -> Option<String> {
    if !rustix::process::getuid().is_root() {
        return Some("mounting needs root".into());
    }
    let dir = tempfile::tempdir().ok()?;
    Disk::try_mount(dir.path()).and_then(|disk| disk.cut()).err()
}

/// A mounted disk.
pub struct Disk {
    image: PathBuf,
    mount: PathBuf,
}

impl Disk {
    /// Makes and mounts a disk at `dir/disk`.
    pub fn mount(dir: &Path) -> Self {
        Self::try_mount(dir).expect("it worked when availability was checked")
    }

    fn try_mount(dir: &Path) -> Result<Self, String> {
        let disk = Self { image: dir.join("disk.img"), mount: dir.join("disk") };
        let text = |error: std::io::Error| error.to_string();
        std::fs::create_dir_all(&disk.mount).map_err(text)?;
        let image = std::fs::File::create(&disk.image).map_err(text)?;
        image.set_len(DISK_BYTES).map_err(text)?;
        run("mkfs.ext4", &["-q".as_ref(), &disk.image])?;
        disk.attach()?;
        Ok(disk)
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.mount
    }

    /// Cuts the power: from here on, writes fail, and what was not synced never happened.
    pub fn cut(&self) -> Result<(), String> {
        run("perl", &["-e".as_ref(), SHUTDOWN.as_ref(), &self.mount])
    }

    /// Power again, after [`Self::cut`] and the end of every process that had files open.
    pub fn restore(&self) {
        run("umount", &[&self.mount]).expect("nobody uses the dead disk");
        self.attach().expect("ext4 recovers its journal");
        let beneath = rustix::fs::statvfs(&self.image).expect("the image is there");
        assert!(
            beneath.f_bavail * beneath.f_frsize > ROOM_BENEATH,
            "the disk that holds the test's disk is full: what was lost would be its doing"
        );
    }

    /// A mount that failed left nothing to unmount.
    fn is_mounted(&self) -> bool {
        let mounts = std::fs::read_to_string("/proc/mounts").unwrap_or_default();
        mounts.lines().any(|line| line.split(' ').nth(1).is_some_and(|place| Path::new(place) == self.mount))
    }

    fn attach(&self) -> Result<(), String> {
        run("mount", &["-o".as_ref(), "loop".as_ref(), &self.image, &self.mount])
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if let Err(error) = run("umount", &[&self.mount])
            && self.is_mounted()
        {
            eprintln!("a test's disk stays mounted: {error}");
        }
    }
}

fn run(program: &str, args: &[&Path]) -> Result<(), String> {
    let output = Command::new(program).args(args).output().map_err(|error| format!("{program}: {error}"))?;
    let error = || format!("{program}: {}", String::from_utf8_lossy(&output.stderr).trim());
    output.status.success().then_some(()).ok_or_else(error)
}
