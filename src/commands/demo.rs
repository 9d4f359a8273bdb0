//! `waxwing demo`: the main job, end to end, with the time of every step.
//!
//! Everything runs as a user would run it: this binary starts a service on a port of its own, then itself again as two
//! people's commands, and compares the file that arrived with the one that was sent, byte for byte.

use std::fs::File;
use std::io::{BufReader, Read, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use serde_json::{Value, json};
use tokio::process::{Child, Command};

use super::own_service;
use crate::cli::DemoArgs;
use crate::output::{Output, bytes};

/// Bytes of the file that is made when none is given.
const MADE_FILE_BYTES: usize = 64 * 1024 * 1024;

/// Sends a file from one new account to another.
pub(crate) async fn run(args: DemoArgs, output: Output) -> anyhow::Result<()> {
    let dir =
        tempfile::Builder::new().prefix("waxwing-demo-").tempdir().context("cannot make a temporary directory")?;
    let file = match args.file {
        Some(file) => std::path::absolute(&file)?,
        None => make_file(&dir.path().join("noise.bin"))?,
    };
    let size = std::fs::metadata(&file).with_context(|| format!("cannot read {}", file.display()))?.len();
    let config = args.config.map(std::path::absolute).transpose()?;
    let service = Service::start(dir.path(), config.as_deref()).await?;
    for handle in ["alice", "bob"] {
        service.run(dir.path(), &["register", "--handle", handle, "--home", handle, "--server", &service.url]).await?;
    }

    let path = file.to_str().context("the demo needs a path that is UTF-8")?;
    let sent = service.run(dir.path(), &["send", path, "--to", "bob", "--home", "alice"]).await?;
    step(output, "seal", seconds(&sent, "seal_s")?, count(&sent, "file_bytes")?, "");
    step(output, "upload", seconds(&sent, "upload_s")?, count(&sent, "sealed_bytes")?, "");
    step(output, "message", seconds(&sent, "message_s")?, 0, "");

    let received = service.run(dir.path(), &["watch", "--once", "--save", "inbox", "--home", "bob"]).await?;
    fetched(output, "cold", &received)?;
    let saved = dir.path().join(text(&received, "saved")?);
    compare(&file, &saved)?;

    let blob = text(&received, "blob")?;
    let again = service.run(dir.path(), &["get", blob, "-o", "again.bin", "--home", "bob"]).await?;
    fetched(output, "warm", &again)?;
    compare(&file, &dir.path().join("again.bin"))?;
    service.stop().await?;
    output.result(
        format_args!("identical  {} arrived as they were sent, twice", bytes(size)),
        &json!({ "identical": true, "bytes": size }),
    );
    Ok(())
}

/// A service of its own, as a child process.
struct Service {
    program: PathBuf,
    child: Child,
    url: String,
}

impl Service {
    async fn start(dir: &Path, config: Option<&Path>) -> anyhow::Result<Self> {
        let program = std::env::current_exe()?;
        let (child, address) = match config {
            Some(config) => own_service::start_with(Command::new(&program), dir, config).await?,
            None => own_service::start(Command::new(&program), dir).await?,
        };
        Ok(Self { program, child, url: format!("http://{address}") })
    }

    /// Runs a command in `dir` and gives the last JSON line it printed.
    async fn run(&self, dir: &Path, args: &[&str]) -> anyhow::Result<Value> {
        let done = Command::new(&self.program).arg("--json").args(args).current_dir(dir).output().await?;
        ensure!(done.status.success(), "waxwing {} failed: {}", args.join(" "), String::from_utf8_lossy(&done.stderr));
        let stdout = String::from_utf8(done.stdout)?;
        let last = stdout.lines().last().with_context(|| format!("waxwing {} printed nothing", args.join(" ")))?;
        Ok(serde_json::from_str(last)?)
    }

    async fn stop(mut self) -> anyhow::Result<()> {
        let pid = self.child.id().context("the service ended by itself")?;
        let pid = rustix::process::Pid::from_raw(i32::try_from(pid)?).context("process ids are positive")?;
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        let status = self.child.wait().await?;
        ensure!(status.success(), "the service did not stop cleanly: {status}");
        Ok(())
    }
}

fn step(output: Output, name: &str, took_s: f64, moved: u64, remark: &str) {
    let ms = took_s * 1000.0;
    #[allow(clippy::cast_precision_loss, reason = "a rate for a person")]
    let rate = moved as f64 / 1e6 / took_s.max(1e-6);
    let amount = if moved == 0 { String::new() } else { format!("{:>10}  {rate:>7.0} MB/s", bytes(moved)) };
    output.result(
        format!("{name:<26}{ms:>9.1} ms  {amount}  {remark}").trim_end(),
        &json!({ "step": name, "seconds": took_s, "bytes": moved, "remark": remark }),
    );
}

fn fetched(output: Output, temperature: &str, line: &Value) -> anyhow::Result<()> {
    let remark = line["cache_status"].as_str().unwrap_or_default();
    step(output, &format!("first byte, {temperature}"), seconds(line, "first_byte_s")?, 0, remark);
    step(output, &format!("download and open, {temperature}"), seconds(line, "total_s")?, count(line, "bytes")?, "");
    Ok(())
}

fn seconds(line: &Value, key: &str) -> anyhow::Result<f64> {
    line[key].as_f64().with_context(|| format!("no `{key}` in {line}"))
}

fn count(line: &Value, key: &str) -> anyhow::Result<u64> {
    line[key].as_u64().with_context(|| format!("no `{key}` in {line}"))
}

fn text<'a>(line: &'a Value, key: &str) -> anyhow::Result<&'a str> {
    line[key].as_str().with_context(|| format!("no `{key}` in {line}"))
}

/// A file that does not compress and is the same each time: BLAKE3 as a stream of noise would need a dependency, a
/// linear congruential generator (Knuth, MMIX) does not.
fn make_file(path: &Path) -> anyhow::Result<PathBuf> {
    let mut noise = Vec::with_capacity(MADE_FILE_BYTES);
    let mut state: u64 = 1;
    while noise.len() < MADE_FILE_BYTES {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        noise.extend_from_slice(&(state >> 32).to_le_bytes()[..4]);
    }
    File::create(path)?.write_all(&noise)?;
    Ok(path.to_owned())
}

/// Compares two files byte for byte.
fn compare(sent: &Path, received: &Path) -> anyhow::Result<()> {
    let open = |path: &Path| File::open(path).with_context(|| format!("cannot read {}", path.display()));
    let (mut a, mut b) = (BufReader::new(open(sent)?), BufReader::new(open(received)?));
    let (mut left, mut right) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    let mut offset = 0;
    loop {
        let (n, m) = (fill(&mut a, &mut left)?, fill(&mut b, &mut right)?);
        if left[..n] != right[..m] {
            bail!("{} differs from {} after byte {offset}", received.display(), sent.display());
        }
        if n == 0 {
            return Ok(());
        }
        offset += n;
    }
}

/// Reads until the buffer is full or the file ends.
fn fill(from: &mut impl Read, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match from.read(&mut buffer[filled..])? {
            0 => break,
            n => filled += n,
        }
    }
    Ok(filled)
}
