//! `waxwing group` and `waxwing send --group`: groups, and what is sent to them.

use std::path::Path;

use anyhow::Context as _;
use serde_json::{Value, json};
use waxwing_client::{BlobRef, Client, GroupInfo, GroupNews};
use waxwing_protocol::group::{Role, What};
use waxwing_protocol::{AccountId, GroupId, Handle};

use crate::cli::{GroupArgs, GroupCommand};
use crate::output::{Output, visible};

/// Does something about groups.
pub(crate) async fn group(args: GroupArgs, output: Output) -> anyhow::Result<()> {
    let client = Client::open(&args.profile.home)?;
    match args.command {
        GroupCommand::Create { title, with, picture } => {
            let picture = uploaded(&client, picture.as_deref()).await?;
            let group = Box::pin(client.create_group(&title, picture, &with)).await?;
            let text = format!("{} is group {group}", visible(&title));
            output.result(text, &json!({ "group": group, "title": title }));
        }
        GroupCommand::Add { group, handle } => {
            let group = found(&client, &group).await?;
            Box::pin(client.add_to_group(group, &handle)).await?;
            done(group, format_args!("let in: {}", names(&handle)), &json!({ "added": handle }), output);
        }
        GroupCommand::Rm { group, handle } => {
            let group = found(&client, &group).await?;
            Box::pin(client.remove_from_group(group, &handle)).await?;
            done(group, format_args!("removed: {}", names(&handle)), &json!({ "removed": handle }), output);
        }
        GroupCommand::Admin { group, handle, off } => {
            let group = found(&client, &group).await?;
            Box::pin(client.set_group_admin(group, &handle, !off)).await?;
            let word = if off { "no admin any more" } else { "an admin" };
            done(group, format_args!("{handle} is {word}"), &json!({ "of": handle, "admin": !off }), output);
        }
        GroupCommand::Title { group, title, picture } => {
            let group = found(&client, &group).await?;
            let picture = uploaded(&client, picture.as_deref()).await?;
            Box::pin(client.set_group_profile(group, &title, picture)).await?;
            done(group, format_args!("called {}", visible(&title)), &json!({ "title": title }), output);
        }
        GroupCommand::Receipts { group, off } => {
            let group = found(&client, &group).await?;
            Box::pin(client.set_group_receipts(group, !off)).await?;
            let word = if off { "not told" } else { "told" };
            done(group, format_args!("everybody is {word} of receipts"), &json!({ "receipts": !off }), output);
        }
        GroupCommand::Link { group, off: true } => {
            let group = found(&client, &group).await?;
            Box::pin(client.end_group_link(group)).await?;
            done(group, format_args!("its link lets nobody in any more"), &json!({ "link": null }), output);
        }
        GroupCommand::Link { group, off: false } => {
            let group = found(&client, &group).await?;
            let link = Box::pin(client.group_link(group)).await?.to_string();
            output.result(&link, &json!({ "group": group, "link": link }));
        }
        GroupCommand::Join { link } => {
            let group = Box::pin(client.join_group(&link)).await?;
            done(group, format_args!("joined"), &json!({ "joined": true }), output);
        }
        GroupCommand::Leave { group } => {
            let group = found(&client, &group).await?;
            Box::pin(client.leave_group(group)).await?;
            done(group, format_args!("left"), &json!({ "left": true }), output);
        }
        GroupCommand::Ls => {
            // What the server does not tell now is told another time.
            if let Err(error) = Box::pin(client.sync_groups()).await {
                output.note(format_args!("as far as this device knows: {error}"));
            }
            for info in client.groups()? {
                print_info(&info, output);
            }
        }
        GroupCommand::Send { group, words } => send_text(&client, &group, &words, output).await?,
    }
    Ok(())
}

/// Sends words to a group.
pub(crate) async fn send_text(client: &Client, group: &str, words: &str, output: Output) -> anyhow::Result<()> {
    let group = found(client, group).await?;
    let msg_id = Box::pin(client.send_text_to_group(group, words)).await?;
    output.result(format_args!("sent to {}", label(client, group)), &json!({ "message": msg_id, "group": group }));
    Ok(())
}

/// The group that is meant; one that this device has not heard of is asked for.
pub(crate) async fn found(client: &Client, named: &str) -> anyhow::Result<GroupId> {
    if let Ok(group) = client.find_group(named) {
        return Ok(group);
    }
    Box::pin(client.sync_groups()).await?;
    Ok(client.find_group(named)?)
}

/// What a group is called, for a line of text.
pub(crate) fn label(client: &Client, group: GroupId) -> String {
    match client.group_title(group) {
        Ok(Some(title)) if !title.is_empty() => visible(&title),
        _ => format!("group {group}"),
    }
}

/// Tells of a change.
pub(crate) fn print_news(client: &Client, news: &GroupNews, output: Output) {
    let name = |account: AccountId| match client.handle_of(account) {
        Ok(Some(handle)) => handle.to_string(),
        _ => account.to_string(),
    };
    let (word, whom): (_, Vec<AccountId>) = match &news.what {
        What::Found { members, .. } => ("founded", members.iter().map(|member| member.account).collect()),
        What::Add(members) => ("added", members.iter().map(|member| member.account).collect()),
        What::Remove(accounts) => ("removed", accounts.clone()),
        What::Leave => ("left", Vec::new()),
        What::Role(account, Role::Admin) => ("made an admin", vec![*account]),
        What::Role(account, Role::Member) => ("made no admin any more", vec![*account]),
        What::Link(Some(_)) => ("made a link", Vec::new()),
        What::Link(None) => ("ended the link", Vec::new()),
        What::Receipts(true) => ("turned receipts on", Vec::new()),
        What::Receipts(false) => ("turned receipts off", Vec::new()),
        What::Profile(_) => ("changed title or picture", Vec::new()),
        What::Join { .. } => ("joined by the link", Vec::new()),
    };
    let whom: Vec<_> = whom.into_iter().map(name).collect();
    let by = name(news.by);
    if output.is_json() {
        let (group, epoch, left) = (news.group, news.epoch, news.left);
        let value = json!({ "group": group, "epoch": epoch, "by": by, "change": word, "whom": whom, "left": left });
        output.result("", &value);
        return;
    }
    let end = if news.left { "; you are in it no more" } else { "" };
    output.note(format_args!("{}: {by} {word} {}{end}", label(client, news.group), whom.join(", ")));
}

fn print_info(info: &GroupInfo, output: Output) {
    let members: Vec<Value> = info
        .members
        .iter()
        .map(|member| json!({ "account": member.account, "handle": member.handle, "admin": member.admin }))
        .collect();
    let value = json!({
        "group": info.group, "title": info.title, "epoch": info.epoch, "left": info.left, "members": members,
    });
    let named = info.members.iter().map(|member| {
        let name = member.handle.as_ref().map_or_else(|| member.account.to_string(), ToString::to_string);
        if member.admin { format!("{name} (admin)") } else { name }
    });
    let title = if info.title.is_empty() { "(no title)".to_owned() } else { visible(&info.title) };
    let left = if info.left { "  (left)" } else { "" };
    output.result(format_args!("{}  {title}{left}  {}", info.group, named.collect::<Vec<_>>().join(", ")), &value);
}

fn done(group: GroupId, text: std::fmt::Arguments<'_>, value: &Value, output: Output) {
    let mut value = value.clone();
    value["group"] = json!(group);
    output.result(text, &value);
}

fn names(handles: &[Handle]) -> String {
    handles.iter().map(Handle::as_str).collect::<Vec<_>>().join(", ")
}

/// A picture, uploaded for whoever gets its reference.
async fn uploaded(client: &Client, picture: Option<&Path>) -> anyhow::Result<Option<BlobRef>> {
    let Some(picture) = picture else { return Ok(None) };
    let (reference, _) = Box::pin(client.upload_file(picture, &|_| {})).await.context("the picture")?;
    Ok(Some(reference))
}
