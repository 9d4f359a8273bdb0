//! `waxwing bench channel`: a hundred thousand followers, who cost nothing, and a thousand who hear at once.

use crate::cli::BenchChannelArgs;
use crate::output::Output;

use super::figure::{Figure, percentile};
use super::group::bytes_under;
use super::load::{Channeling, Fanned, Generator, Job};
use super::server::Server;
use super::{as_f64, scratch};

/// Runs it.
pub(super) async fn run(args: BenchChannelArgs, output: Output) -> anyhow::Result<()> {
    let dir = scratch(&args.dir)?;
    let server = Server::start_messaging(dir.path()).await?;
    let (followers, live, posts) = (args.followers.max(1), args.live, args.posts.max(1));
    let job = Channeling { address: server.address.clone(), followers, live, posts };
    let mut generator = Generator::start(&Job::Channel(job)).await?;
    generator.told::<String>().await?;
    let data = dir.path().join("data");
    let (before, memory) = (bytes_under(&data)?, server.process()?.resident_bytes()?);
    generator.go().await?;
    let took: f64 = generator.told().await?;
    let grown = bytes_under(&data)?.saturating_sub(before);
    let memory = server.process()?.resident_bytes()?.saturating_sub(memory);

    let figure = |metric, unit| Figure::new("channel", metric, unit, "waxwing");
    figure("followers", "1").worth(f64::from(followers), &[f64::from(followers)]).print(output);
    let grown = as_f64(usize::try_from(grown)?);
    figure("disk_bytes_of_followers", "B").worth(grown, &[grown]).print(output);
    let memory = as_f64(usize::try_from(memory)?) / f64::from(followers);
    figure("memory_bytes_per_follower", "B").worth(memory, &[memory]).print(output);
    let rate = f64::from(followers) / took;
    figure("followers_answered_per_s", "1/s").worth(rate, &[rate]).print(output);

    let cpu = server.process()?.cpu()?;
    generator.go().await?;
    let mut fanned: Fanned = generator.told().await?;
    let cpu = server.process()?.cpu()? - cpu;
    figure("live", "1").worth(f64::from(live), &[f64::from(live)]).print(output);
    let share = percentile(&mut fanned.each_ms.clone(), 99);
    figure("fanout_p99_ms", "ms").worth(share, &fanned.each_ms).print(output);
    let median = percentile(&mut fanned.each_ms, 50);
    figure("fanout_p50_ms", "ms").worth(median, &fanned.each_ms).print(output);
    let last = percentile(&mut fanned.last_ms, 99);
    figure("fanout_last_p99_ms", "ms").worth(last, &fanned.last_ms).print(output);
    let answer = percentile(&mut fanned.answer_ms, 99);
    figure("answer_p99_ms", "ms").worth(answer, &fanned.answer_ms).print(output);
    let each = cpu.as_secs_f64() * 1000.0 / f64::from(posts);
    figure("server_cpu_ms_per_post", "ms").worth(each, &[each]).print(output);
    Ok(())
}
