//! A disk that fails to sync: strace lets `fdatasync` and `fsync` of the running node fail with an I/O error.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use libtest_mimic::{Failed, Trial};

use super::scene::{Scene, trial};
use crate::support::{terminate, wait_for};

/// Bytes of an upload with a file of its own.
const LARGE: u64 = 3 << 20;

/// Where strace may attach.
pub fn trials() -> Vec<Trial> {
    let missing = unavailable();
    let trial = |name: &str, fault: fn(&mut Scene, &str) -> Option<u16>| {
        trial(name, missing.as_deref(), move || a_failed_sync(fault))
    };
    vec![
        trial("a_failed_sync_of_bytes_acknowledges_nothing", |scene, unfinished| {
            scene.append(unfinished, 500_000, None)
        }),
        trial("a_failed_sync_of_records_acknowledges_nothing", |scene, _| {
            scene.create(100, LARGE, false).map(|created| created.err().unwrap_or(201))
        }),
        trial("a_failed_sync_of_a_pack_acknowledges_nothing", |scene, _| {
            // Its record is there already: what fails is the pack.
            let small = scene.told.iter().find(|(_, told)| told.len == 1000).map(|(url, _)| url.clone());
            scene.append(&small.expect("it was created"), 1000, None)
        }),
    ]
}

fn unavailable() -> Option<String> {
    let tried = Command::new("strace").args(["-o", "/dev/null", "-e", "inject=fdatasync:error=EIO", "true"]).output();
    match tried {
        Ok(output) if output.status.success() => None,
        Ok(output) => Some(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        Err(error) => Some(format!("strace: {error}")),
    }
}

fn a_failed_sync(fault: fn(&mut Scene, &str) -> Option<u16>) -> Result<(), Failed> {
    let mut scene = Scene::start(tempfile::tempdir()?, None, 0);
    let whole = scene.create(1, LARGE, false).ok_or("no answer")??;
    assert_eq!(scene.append(&whole, u64::MAX, None), Some(204));
    let unfinished = scene.create(2, LARGE, false).ok_or("no answer")??;
    assert_eq!(scene.append(&unfinished, 1_500_000, None), Some(204));
    scene.create(3, 1000, false).ok_or("no answer")??;
    assert!(scene.is_ready());

    let log = tempfile::NamedTempFile::new()?;
    let strace = Strace::attach(scene.service.as_ref().expect("it runs").pid(), log.path());
    let answered = fault(&mut scene, &unfinished);
    assert!(answered.is_some_and(|status| status >= 500), "answered {answered:?}");
    let injected = strace.injected();
    assert!(injected > 0, "no sync failed");
    eprintln!("{injected} syncs failed");

    // A second sync would succeed and tell nothing: there is none, whatever is asked.
    for seed in 10..15 {
        let refused = scene.create(seed, 100, false).ok_or("no answer")?;
        assert!(refused.as_ref().is_err_and(|status| *status >= 500), "{refused:?}");
    }
    let refused = scene.append(&unfinished, 10, None);
    assert!(refused.is_some_and(|status| status >= 500), "answered {refused:?}");
    assert_eq!(strace.injected(), injected, "a sync was tried again");
    assert!(!scene.is_ready(), "a store that cannot write says so");

    // Reading goes on.
    scene.check_blob(&whole)?;
    let offset = scene.head(&unfinished).ok_or("no answer")??;
    assert_eq!(offset, 1_500_000, "what was not acknowledged is not told");

    // Also after a restart, everything acknowledged is there, and the store writes again.
    drop(strace);
    scene.restart(&[]);
    assert!(scene.is_ready());
    scene.check_all()?;
    scene.finish_all()
}

/// strace on a running process; let go of it when dropped.
struct Strace {
    child: Child,
    log: PathBuf,
}

impl Strace {
    /// From here on every sync of process `pid` fails.
    fn attach(pid: u32, log: &Path) -> Self {
        let mut command = Command::new("strace");
        command.args(["-f", "-e", "trace=fdatasync,fsync", "-e", "inject=fdatasync,fsync:error=EIO"]);
        command.arg("-o").arg(log).arg("-p").arg(pid.to_string());
        let mut child = command.stderr(Stdio::piped()).spawn().expect("it worked when availability was checked");
        let mut said = BufReader::new(child.stderr.take().expect("stderr is piped")).lines();
        let attached = said.find(|line| line.as_ref().is_ok_and(|line| line.contains("attached")));
        assert!(attached.is_some(), "strace does not attach");
        // Whatever else it says has somewhere to go.
        std::thread::spawn(move || said.for_each(drop));
        Self { child, log: log.to_owned() }
    }

    /// How many syncs have failed. What strace saw is in its log a moment later.
    fn injected(&self) -> usize {
        let count = || std::fs::read_to_string(&self.log).expect("the log is there").matches("(INJECTED)").count();
        wait_for("strace to write its log", || {
            let before = count();
            std::thread::sleep(std::time::Duration::from_millis(200));
            (count() == before).then_some(before)
        })
    }
}

impl Drop for Strace {
    fn drop(&mut self) {
        terminate(&self.child);
        let _ = self.child.wait();
    }
}
