//! `waxwing admin`: what an operator does on a node's machine.

mod edge;

use std::time::{Duration, SystemTime};

use anyhow::{Context as _, bail, ensure};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use waxwing_protocol::Timestamp;

use crate::cli::{AdminBlob, AdminCommand, AdminGrant};
use crate::output::{Output, bytes};

/// How long a node may take to answer: a collection looks at every record.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(300);

/// How long a node may take to be reached; it is on this machine.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// Runs an operator's command.
pub(crate) async fn run(command: AdminCommand, output: Output) -> anyhow::Result<()> {
    match command {
        AdminCommand::Grant(AdminGrant::Edge { node, days, data }) => {
            let lifetime = Duration::from_secs(u64::from(days) * 24 * 60 * 60);
            let grant = waxwing_messaging::mint_edge_grant(&data.join("messaging"), &node, lifetime)?;
            output.result(&grant.text, &json!({ "grant": grant.text, "expires_at": grant.expires }));
            Ok(())
        }
        AdminCommand::Invite { count, days, data } => {
            let lifetime = Duration::from_secs(u64::from(days) * 24 * 60 * 60);
            for _ in 0..count {
                let invite = waxwing_messaging::mint_invite(&data.join("messaging"), lifetime)?;
                output.result(&invite.code, &json!({ "invite": invite.code, "expires_at": invite.expires_at }));
            }
            Ok(())
        }
        AdminCommand::Uploads { state, node } => {
            let filter = state.map(|state| format!("&state={}", state.name())).unwrap_or_default();
            Node::at(&node.admin)?.list("uploads", &filter, |upload| print_upload(output, upload)).await
        }
        AdminCommand::Gc { dry_run, node } => {
            let collected = Node::at(&node.admin)?.ask(Method::POST, &format!("gc?dry_run={dry_run}")).await?;
            let would = if dry_run { "would free" } else { "freed" };
            let text = format!(
                "{would}: {} unfinished uploads that expired, {} finished ones, bytes of {} uploads that a crash left, \
                 {} blobs' owners whose time is over, {} of packs",
                collected["unfinished"],
                collected["finished"],
                collected["leftovers"],
                collected["owners_expired"],
                bytes(collected["compacted_bytes"].as_u64().unwrap_or(0)),
            );
            output.result(text, &collected);
            Ok(())
        }
        AdminCommand::Quota { owner: Some(owner), set, unset, node } => {
            let (method, path) = match set {
                Some(bytes) => (Method::PUT, format!("owners/{owner}/quota?bytes={bytes}")),
                None if unset => (Method::DELETE, format!("owners/{owner}/quota")),
                None => (Method::GET, format!("owners/{owner}")),
            };
            let held = Node::at(&node.admin)?.ask(method, &path).await?;
            print_owner(output, &held);
            Ok(())
        }
        AdminCommand::Quota { owner: None, node, .. } => {
            Node::at(&node.admin)?.list("owners", "", |owner| print_owner(output, owner)).await
        }
        AdminCommand::Purge { owner, node } => {
            let (node, mut blobs, mut after) = (Node::at(&node.admin)?, 0, String::new());
            loop {
                let page = node.ask(Method::DELETE, &format!("owners/{owner}/blobs{after}")).await?;
                blobs += page["blobs"].as_u64().unwrap_or(0);
                let Some(next) = page["next"].as_str() else { break };
                after = format!("?after={next}");
            }
            output.result(
                format_args!("{owner} has none of {blobs} blobs any more"),
                &json!({ "owner": owner, "blobs": blobs }),
            );
            Ok(())
        }
        AdminCommand::Edge(command) => edge::run(command, output).await,
        AdminCommand::Accounts { node } => {
            Node::at(&node.admin)?.list("accounts", "", |account| print_account(output, account)).await
        }
        AdminCommand::Devices { account, node } => {
            let devices = Node::at(&node.admin)?.devices(&account).await?;
            devices.iter().for_each(|device| print_device(output, device));
            Ok(())
        }
        AdminCommand::Mailbox { account, device, node } => {
            let devices = Node::at(&node.admin)?.devices(&account).await?;
            let wanted = devices.iter().filter(|it| device.is_none_or(|device| it["device"] == device));
            wanted.for_each(|device| print_mailbox(output, device));
            Ok(())
        }
        AdminCommand::Limits { node } => {
            let limits = Node::at(&node.admin)?.ask(Method::GET, "limits").await?;
            limits["limits"].as_array().into_iter().flatten().for_each(|limit| print_limit(output, limit));
            Ok(())
        }
        AdminCommand::Blob(AdminBlob::Rm { id, node }) => {
            Node::at(&node.admin)?.ask(Method::DELETE, &format!("blobs/{id}")).await?;
            output.result(format_args!("removed {id}"), &json!({ "removed": id }));
            Ok(())
        }
    }
}

fn print_upload(output: Output, upload: &Value) {
    let text = |key: &str| upload[key].as_str().unwrap_or("-").to_owned();
    let length = upload["length"].as_u64().map_or_else(|| "?".to_owned(), bytes);
    let left = upload["expires"]
        .as_u64()
        .map_or(Duration::ZERO, |expires| Timestamp::from_millis(expires).since(SystemTime::now().into()));
    let line = format!(
        "{}  {:<9}  {:>9} of {:>9}  expires in {:>5.1} h  owner {}{}",
        text("id"),
        text("state"),
        bytes(upload["offset"].as_u64().unwrap_or(0)),
        length,
        left.as_secs_f64() / 3600.0,
        text("owner"),
        upload["blob"].as_str().map(|blob| format!("  blob {blob}")).unwrap_or_default(),
    );
    output.result(line, upload);
}

fn print_owner(output: Output, owner: &Value) {
    let held = owner["held_bytes"].as_u64().unwrap_or(0);
    let set = owner["quota_bytes"].as_u64().map(|quota| format!("  of {} that an operator set", bytes(quota)));
    let (tag, set) = (owner["owner"].as_str().unwrap_or("-"), set.unwrap_or_default());
    output.result(format_args!("{tag}  {:>9}{set}", bytes(held)), owner);
}

fn print_account(output: Output, account: &Value) {
    let text = |key: &str| account[key].as_str().unwrap_or("-").to_owned();
    let line = format!(
        "{}  {:<32}  {} devices, {} connected here",
        text("account"),
        text("handle"),
        account["devices"],
        account["connected"]
    );
    output.result(line, account);
}

fn print_device(output: Output, device: &Value) {
    let state = if device["connected"] == true { "connected" } else { "away" };
    let line = format!("device {}  {state:<9}  connections so far {}", device["device"], device["connections"]);
    output.result(line, device);
}

/// A line a lane.
fn print_mailbox(output: Output, device: &Value) {
    for (name, lane) in ["normal", "urgent"].into_iter().zip(device["lanes"].as_array().into_iter().flatten()) {
        let waits =
            lane["oldest"].as_u64().map(|at| Timestamp::from(SystemTime::now()).since(Timestamp::from_millis(at)));
        let since =
            waits.map_or_else(String::new, |waits| format!(", the oldest for {:.1} h", waits.as_secs_f64() / 3600.0));
        let line = format!(
            "device {}  {name}  {} wait, {}{since}  (seq {}, acked {})",
            device["device"],
            lane["waiting"],
            bytes(lane["bytes"].as_u64().unwrap_or(0)),
            lane["last"],
            lane["acked"]
        );
        output.result(line, &json!({ "device": device["device"], "lane": name, "mailbox": lane }));
    }
}

fn print_limit(output: Output, limit: &Value) {
    let name = limit["name"].as_str().unwrap_or("-");
    let line = format!("{name:<18} {:>10} in {:>5} s  refused {}", limit["count"], limit["period_s"], limit["refused"]);
    output.result(line, limit);
}

/// A running node's admin address.
struct Node {
    base: String,
    client: reqwest::Client,
}

impl Node {
    fn at(base: &str) -> anyhow::Result<Self> {
        // Never by way of a proxy: the node is on this machine.
        let client =
            reqwest::Client::builder().no_proxy().connect_timeout(CONNECT_TIMEOUT).timeout(ANSWER_TIMEOUT).build()?;
        Ok(Self { base: base.trim_end_matches('/').to_owned(), client })
    }

    async fn ask(&self, method: Method, path: &str) -> anyhow::Result<Value> {
        let url = format!("{}/admin/v1/{path}", self.base);
        let answer = self.client.request(method, &url).send().await.with_context(|| {
            format!(
                "no node answers at {}; is it running, is `admin_listen` set, and is this its address (--admin)?",
                self.base
            )
        })?;
        let status = answer.status();
        if status == StatusCode::NO_CONTENT {
            return Ok(Value::Null);
        }
        let body: Value =
            answer.json().await.with_context(|| format!("{} is no admin address of waxwing", self.base))?;
        if !status.is_success() {
            bail!("the node refused: {}", body["detail"].as_str().unwrap_or(status.as_str()));
        }
        Ok(body)
    }

    /// The devices of an account.
    async fn devices(&self, account: &str) -> anyhow::Result<Vec<Value>> {
        // It stands in a path: what no handle or id has would ask for something else.
        ensure!(
            account.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte)),
            "{account} is neither a handle nor an account's id"
        );
        let answer = self.ask(Method::GET, &format!("accounts/{account}/devices")).await?;
        Ok(answer["devices"].as_array().cloned().unwrap_or_default())
    }

    /// Hands `each` every entry of list `name`, page by page.
    async fn list(&self, name: &str, filter: &str, each: impl Fn(&Value)) -> anyhow::Result<()> {
        let (mut after, key) = (String::new(), name.rsplit('/').next().unwrap_or(name));
        loop {
            let page = self.ask(Method::GET, &format!("{name}?{after}{filter}")).await?;
            page[key].as_array().into_iter().flatten().for_each(&each);
            let Some(next) = page["next"].as_str() else { return Ok(()) };
            after = format!("after={next}");
        }
    }
}
