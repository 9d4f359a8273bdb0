//! `waxwing admin edge`: what an operator asks of an edge.

use reqwest::Method;
use serde_json::{Value, json};

use super::Node;
use crate::cli::AdminEdge;
use crate::output::{Output, bytes};

pub(super) async fn run(command: AdminEdge, output: Output) -> anyhow::Result<()> {
    match command {
        AdminEdge::Stats { node } => {
            let told = Node::at(&node.admin)?.ask(Method::GET, "edge/stats").await?;
            print_stats(output, &told);
        }
        AdminEdge::Ls { memory, node } => {
            let tier = if memory { "memory" } else { "disk" };
            Node::at(&node.admin)?
                .list("edge/held", &format!("&tier={tier}"), |held| print_held(output, tier, held))
                .await?;
        }
        AdminEdge::Purge { id, node } => {
            Node::at(&node.admin)?.ask(Method::DELETE, &format!("edge/blobs/{id}")).await?;
            output.result(format_args!("forgot {id}"), &json!({ "purged": id }));
        }
        AdminEdge::Drain { end, node } => {
            let method = if end { Method::DELETE } else { Method::POST };
            Node::at(&node.admin)?.ask(method, "edge/drain").await?;
            let text = if end { "takes requests again" } else { "drains: not ready, and answers whoever still asks" };
            output.result(text, &json!({ "draining": !end }));
        }
    }
    Ok(())
}

fn print_stats(output: Output, told: &Value) {
    if output.is_json() {
        return output.result("", told);
    }
    output.result(if told["ready"] == true { "ready" } else { "draining" }, &Value::Null);
    for (name, value) in told["stats"].as_object().into_iter().flatten() {
        let count = value.as_u64().unwrap_or(0);
        let text = if name.ends_with("_bytes") { bytes(count) } else { count.to_string() };
        output.result(format_args!("{name:<20} {text:>12}"), &Value::Null);
    }
}

fn print_held(output: Output, tier: &str, held: &Value) {
    let part = match &held["part"] {
        Value::String(part) => part.clone(),
        part => format!("slice {}", part["slice"]),
    };
    let taken = bytes(held["bytes"].as_u64().unwrap_or(0));
    let line = format!("{}  {tier:<6}  {taken:>9}  {part}", held["blob"].as_str().unwrap_or("-"));
    output.result(line, held);
}
