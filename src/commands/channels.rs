//! `waxwing channel`: channels, written in and read.

use std::path::Path;

use anyhow::Context as _;
use serde_json::{Value, json};
use waxwing_client::{ChannelInfo, ChannelLink, ChannelPost, ChannelRole, Client, ClientError, Content};
use waxwing_protocol::{ChannelId, Handle};

use super::messages::told;
use super::transfers::print_fetched;
use crate::cli::{ChannelArgs, ChannelCommand};
use crate::output::{Output, visible};

/// Does something about channels.
pub(crate) async fn channel(args: ChannelArgs, output: Output) -> anyhow::Result<()> {
    let client = Client::open(&args.profile.home)?;
    match args.command {
        ChannelCommand::Create { title } => {
            let channel = Box::pin(client.create_channel(&title)).await?;
            let link = Box::pin(client.channel_link(channel)).await?.to_string();
            let value = json!({ "channel": channel, "title": title, "link": link });
            output.result(format_args!("{} is channel {channel}\n{link}", visible(&title)), &value);
        }
        ChannelCommand::Post { channel, words, file } => {
            let channel = found(&client, &channel).await?;
            let content = match (words, file) {
                (_, Some(file)) => {
                    let (reference, _) = Box::pin(client.upload_file(&file, &|_| {})).await.context("the file")?;
                    Content::File(Box::new(reference))
                }
                (words, None) => Content::Text(words.unwrap_or_default()),
            };
            let (msg_id, seq) = Box::pin(client.post_to_channel(channel, content)).await?;
            let value = json!({ "channel": channel, "message": msg_id, "seq": seq });
            output.result(format_args!("posted to {} as number {seq}", label(&client, channel)), &value);
        }
        ChannelCommand::Follow { link } => {
            let channel = match (link.parse::<ChannelId>(), link.parse::<ChannelLink>()) {
                (Ok(channel), _) => {
                    Box::pin(client.accept_channel(channel)).await?;
                    channel
                }
                (Err(_), Ok(link)) => Box::pin(client.follow_channel(&link)).await?,
                (Err(_), Err(error)) => return Err(error.into()),
            };
            let title = title(&client, channel);
            let value = json!({ "channel": channel, "title": title, "followed": true });
            output.result(format_args!("following {}", label(&client, channel)), &value);
        }
        ChannelCommand::Read { channel, all, save } => {
            let channel = found(&client, &channel).await?;
            read(&client, channel, all, save.as_deref(), output).await?;
        }
        ChannelCommand::Ls => {
            for info in client.channels()? {
                print_info(&client, &info, output);
            }
            for (channel, owner) in client.channel_invites()? {
                let by = owner.as_ref().map_or("somebody", Handle::as_str);
                let value = json!({ "channel": channel, "invited_by": owner });
                output.result(format_args!("{channel}  invited by {by}: `waxwing channel follow {channel}`"), &value);
            }
        }
        ChannelCommand::Link { channel } => {
            let channel = found(&client, &channel).await?;
            print_link(&client, channel, output).await?;
        }
        ChannelCommand::Author { channel, handle } => {
            let channel = found(&client, &channel).await?;
            Box::pin(client.add_channel_authors(channel, &handle)).await?;
            done(channel, format_args!("may write: {}", names(&handle)), &json!({ "authors": handle }), output);
        }
        ChannelCommand::Invite { channel, handle } => {
            let channel = found(&client, &channel).await?;
            Box::pin(client.invite_to_channel(channel, &handle)).await?;
            done(channel, format_args!("invited: {}", names(&handle)), &json!({ "invited": handle }), output);
        }
        ChannelCommand::Rm { channel, handle } => {
            let channel = found(&client, &channel).await?;
            Box::pin(client.remove_from_channel(channel, &handle)).await?;
            print_link(&client, channel, output).await?;
        }
        ChannelCommand::Unfollow { channel } => {
            let channel = found(&client, &channel).await?;
            client.unfollow_channel(channel)?;
            done(channel, format_args!("not followed any more"), &json!({ "followed": false }), output);
        }
    }
    Ok(())
}

/// Prints what was not read yet, or everything; saves files.
async fn read(
    client: &Client,
    channel: ChannelId,
    all: bool,
    save: Option<&Path>,
    output: Output,
) -> anyhow::Result<()> {
    let mut files = Vec::new();
    let shown = Box::pin(client.read_channel(channel, all, |post| {
        print_post(client, post, output);
        if let Ok(Content::File(file)) = &post.content {
            files.push((post.handle.clone(), file.clone()));
        }
    }));
    let read = shown.await;
    if let Some(dir) = save {
        tokio::fs::create_dir_all(dir).await.with_context(|| dir.display().to_string())?;
        for (from, file) in files {
            let saved = Box::pin(client.save(&file, dir, &|_| {})).await?;
            print_fetched(&saved, from.as_ref().map(Handle::as_str), output);
        }
    }
    match read {
        Ok(0) => output.note("nothing new"),
        Ok(_) => {}
        Err(error) => return Err(error.into()),
    }
    Ok(())
}

/// The channel that is meant; one that this account was invited to is followed.
async fn found(client: &Client, named: &str) -> anyhow::Result<ChannelId> {
    let channel = client.find_channel(named)?;
    match Box::pin(client.accept_channel(channel)).await {
        Ok(()) => Ok(channel),
        Err(ClientError::UnknownChannel { .. }) => Err(ClientError::UnknownChannel { named: named.to_owned() }.into()),
        Err(error) => Err(error.into()),
    }
}

fn title(client: &Client, channel: ChannelId) -> String {
    let infos = client.channels().unwrap_or_default();
    infos.into_iter().find(|info| info.channel == channel).map_or_else(String::new, |info| info.title)
}

/// What a channel is called, for a line of text.
fn label(client: &Client, channel: ChannelId) -> String {
    let title = title(client, channel);
    if title.is_empty() { format!("channel {channel}") } else { visible(&title) }
}

/// Prints an entry.
pub(crate) fn print_post(client: &Client, post: &ChannelPost, output: Output) {
    let from = post.handle.as_ref().map_or_else(|| post.author.to_string(), ToString::to_string);
    let (text, content) = match &post.content {
        Ok(content) => told(content),
        Err(reason) => (format!("cannot be read: {}", visible(reason)), json!({ "unreadable": reason })),
    };
    let value = json!({
        "channel": post.channel, "seq": post.seq, "message": post.msg_id, "from": from, "at": post.written_at,
        "content": content,
    });
    output.result(format_args!("{} / {from}: {text}", label(client, post.channel)), &value);
}

fn print_info(client: &Client, info: &ChannelInfo, output: Output) {
    let role = match info.role {
        ChannelRole::Owner => "owner",
        ChannelRole::Author => "author",
        ChannelRole::Follower => "follower",
    };
    let owner = client.handle_of(info.owner).ok().flatten();
    let value = json!({
        "channel": info.channel, "title": info.title, "epoch": info.epoch, "role": role, "owner": owner,
        "read": info.seen_seq, "locked": info.locked,
    });
    let title = if info.title.is_empty() { "(no title)".to_owned() } else { visible(&info.title) };
    let locked = if info.locked { "  its key was replaced: ask for a new link" } else { "" };
    output.result(format_args!("{}  {title}  {role}{locked}", info.channel), &value);
}

async fn print_link(client: &Client, channel: ChannelId, output: Output) -> anyhow::Result<()> {
    let link = Box::pin(client.channel_link(channel)).await?.to_string();
    output.result(&link, &json!({ "channel": channel, "link": link }));
    Ok(())
}

fn done(channel: ChannelId, text: std::fmt::Arguments<'_>, value: &Value, output: Output) {
    let mut value = value.clone();
    value["channel"] = json!(channel);
    output.result(text, &value);
}

fn names(handles: &[Handle]) -> String {
    handles.iter().map(Handle::as_str).collect::<Vec<_>>().join(", ")
}
