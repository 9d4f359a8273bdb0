//! `waxwing doctor`: why messages or files do not get through.

use anyhow::bail;
use waxwing_client::{Client, Finding, Verdict};

use crate::cli::ProfileArgs;
use crate::output::{Output, visible};

/// Looks at every step between a profile and its service; an error when one of them does not work.
pub(crate) async fn doctor(profile: ProfileArgs, output: Output) -> anyhow::Result<()> {
    let client = Client::open(&profile.home)?;
    let findings = Box::pin(client.examine()).await;
    for finding in &findings {
        let Finding { check, verdict, detail, took_ms } = finding;
        let mark = match verdict {
            Verdict::Good => "ok",
            Verdict::Warning => "warning",
            Verdict::Bad => "FAILED",
        };
        output.result(format_args!("{mark:<8} {check:<10} {}  ({took_ms} ms)", visible(detail)), finding);
    }
    match findings.iter().filter(|finding| finding.verdict == Verdict::Bad).count() {
        0 => Ok(()),
        bad => bail!("{bad} of {} checks failed", findings.len()),
    }
}
