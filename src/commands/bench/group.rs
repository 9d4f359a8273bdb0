//! `waxwing bench group`: one message to a thousand people, connected or away.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use crate::cli::BenchGroupArgs;
use crate::output::Output;

use super::figure::{Figure, percentile};
use super::load::{Fanned, Generator, Grouping, Job, Talked, Talking};
use super::server::Server;
use super::{as_f64, scratch};

/// Bytes of a block as the kernel counts them.
const BLOCK_BYTES: u64 = 512;

/// Runs it.
pub(super) async fn run(args: BenchGroupArgs, output: Output) -> anyhow::Result<()> {
    let dir = scratch(&args.dir)?;
    let server = Server::start_messaging(dir.path()).await?;
    let (address, members, messages, stored) = (server.address.clone(), args.members, args.messages, args.stored);
    let job = Grouping { address, members, messages: messages.max(1), stored: stored.max(1) };
    let mut generator = Generator::start(&Job::Group(job)).await?;
    generator.told::<String>().await?;
    let cpu = server.process()?.cpu()?;
    generator.go().await?;
    let mut fanned: Fanned = generator.told().await?;
    let cpu = server.process()?.cpu()? - cpu;

    let figure = |metric, unit| Figure::new("group", metric, unit, "waxwing");
    let share = percentile(&mut fanned.each_ms.clone(), 99);
    figure("members", "1").worth(f64::from(members), &[f64::from(members)]).print(output);
    figure("fanout_p99_ms", "ms").worth(share, &fanned.each_ms).print(output);
    let median = percentile(&mut fanned.each_ms, 50);
    figure("fanout_p50_ms", "ms").worth(median, &fanned.each_ms).print(output);
    let last = percentile(&mut fanned.last_ms, 99);
    figure("fanout_last_p99_ms", "ms").worth(last, &fanned.last_ms).print(output);
    let answer = percentile(&mut fanned.answer_ms, 99);
    figure("answer_p99_ms", "ms").worth(answer, &fanned.answer_ms).print(output);
    let each = cpu.as_secs_f64() * 1000.0 / f64::from(messages.max(1));
    figure("server_cpu_ms_per_message", "ms").worth(each, &[each]).print(output);

    let before = bytes_under(&dir.path().join("data"))?;
    generator.go().await?;
    generator.told::<String>().await?;
    let grown = bytes_under(&dir.path().join("data"))?.saturating_sub(before);
    let each = as_f64(usize::try_from(grown)?) / f64::from(stored.max(1));
    figure("disk_bytes_per_message", "B").worth(each, &[each]).print(output);
    let row = each / f64::from(members - 1);
    figure("disk_bytes_per_recipient", "B").worth(row, &[row]).print(output);
    drop(generator);
    server.kill().await?;
    if args.groups > 0 { talk(&args, output).await } else { Ok(()) }
}

/// Many groups at a steady rate, on a server of their own.
async fn talk(args: &BenchGroupArgs, output: Output) -> anyhow::Result<()> {
    let dir = scratch(&args.dir)?;
    let server = Server::start_messaging(dir.path()).await?;
    let (address, groups, members) = (server.address.clone(), args.groups, args.group_members);
    let job = Talking { address, groups, members, per_s: args.rate, seconds: args.seconds };
    let mut generator = Generator::start(&Job::Groups(job)).await?;
    generator.told::<String>().await?;
    let cpu = server.process()?.cpu()?;
    generator.go().await?;
    let mut talked: Talked = generator.told().await?;
    let cpu = server.process()?.cpu()? - cpu;
    let figure = |metric, unit| Figure::new("groups", metric, unit, "waxwing");
    let single = |metric, unit, value: f64| figure(metric, unit).worth(value, &[value]).print(output);
    single("groups", "1", f64::from(groups));
    single("members", "1", f64::from(members));
    let per_s = f64::from(talked.sent) / talked.seconds;
    single("messages_per_s", "1/s", per_s);
    single("rows_per_s", "1/s", per_s * f64::from(members - 1));
    single("live_per_s", "1/s", as_f64(usize::try_from(talked.delivered)?) / talked.seconds);
    single("server_cpu_share", "1", cpu.as_secs_f64() / talked.seconds);
    let answer = percentile(&mut talked.answer_ms, 99);
    figure("answer_p99_ms", "ms").worth(answer, &talked.answer_ms).print(output);
    Ok(())
}

/// Bytes that the files under a directory take on disk.
pub(super) fn bytes_under(dir: &Path) -> std::io::Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let meta = entry.metadata()?;
        bytes += if meta.is_dir() { bytes_under(&entry.path())? } else { meta.blocks() * BLOCK_BYTES };
    }
    Ok(bytes)
}
