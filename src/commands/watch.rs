//! `waxwing watch`: messages as they come, files as they are saved.

use anyhow::ensure;
use serde_json::json;
use waxwing_client::{Client, MessageSummary, PresenceView, Tick, WatchEvent, WatchOptions};
use waxwing_protocol::{Handle, MsgId};

use super::channels::print_post;
use super::groups::{label, print_news};
use super::transfers::print_fetched;
use crate::cli::WatchArgs;
use crate::output::{Output, bytes, visible};

/// Receives until Ctrl-C, or with `--once` until what waits is received and saved.
pub(crate) async fn watch(args: WatchArgs, output: Output) -> anyhow::Result<()> {
    let client = Client::open(&args.profile.home)?;
    let options =
        WatchOptions { once: args.once, save: args.save, background: args.background, presence: args.presence };
    let on = |event: WatchEvent| print_event(&client, event, output);
    tokio::select! {
        done = client.watch(options, &on) => {
            let report = done?;
            ensure!(report.lost == 0, "{} of the files received can never be saved", report.lost);
            ensure!(report.unreadable == 0, "{} of the messages received cannot be read", report.unreadable);
        }
        // What is acknowledged is stored; what is not comes again.
        pressed = tokio::signal::ctrl_c() => pressed?,
    }
    Ok(())
}

fn print_event(client: &Client, event: WatchEvent, output: Output) {
    match event {
        WatchEvent::Connected { pending } if pending > 0 => {
            output.note(format_args!("connected; about {pending} waiting"));
        }
        WatchEvent::Connected { .. } => output.note("connected"),
        WatchEvent::Message { from, msg_id, content, group: Some(group), .. } => {
            let (text, value) = shape(&content);
            let value = json!({ "message": msg_id, "from": from, "group": group, "content": value });
            output.result(format_args!("{} / {from}: {text}", label(client, group)), &value);
        }
        WatchEvent::Message { from, msg_id, content, request, group: None } => {
            print_message(&from, msg_id, &content, request, output);
        }
        WatchEvent::Group(news) => print_news(client, &news, output),
        WatchEvent::GroupReceipts { group, conv_seq, delivered, read } => {
            if output.is_json() {
                let value = json!({ "group": group, "conv_seq": conv_seq, "delivered": delivered, "read": read });
                output.result("", &value);
            } else {
                output.note(format_args!("{}: {delivered} have it, {read} have seen it", label(client, group)));
            }
        }
        WatchEvent::GroupForged { group, reason } => {
            output
                .warn(format_args!("the server shows a change of group {group} that is not to be believed: {reason}"));
        }
        WatchEvent::ChannelPost(post) => print_post(client, &post, output),
        WatchEvent::ChannelRefused { error } => output.warn(visible(&error.to_string())),
        WatchEvent::ChannelInvite { channel, from, followed } => {
            let by = from.as_ref().map_or("somebody", Handle::as_str);
            let text = if followed {
                format!("channel {channel} has a new key")
            } else {
                format!("{by} invites you to a channel: `waxwing channel follow {channel}`")
            };
            output.result(text, &json!({ "channel": channel, "invited_by": from, "followed": followed }));
        }
        WatchEvent::Saved { from, file, .. } => print_fetched(&file, Some(from.as_str()), output),
        WatchEvent::SaveFailed { from, blob, error, retry_in, .. } => {
            let retry =
                retry_in.map_or_else(String::new, |pause| format!("; next try in {:.0} s", pause.as_secs_f64()));
            output.warn(format_args!("cannot save blob {blob} from {from}: {}{retry}", visible(&error.to_string())));
        }
        WatchEvent::SentElsewhere { to, msg_id, content } => {
            let (text, value) = shape(&content);
            output.result(
                format_args!("to {to}, from another device: {text}"),
                &json!({ "message": msg_id, "to": to, "content": value }),
            );
        }
        WatchEvent::DevicesChanged { who, devices, own } => print_devices(&who, devices, own, output),
        WatchEvent::IdentityChanged { who } => {
            output.warn(format_args!(
                "{who} is not who they were: the account key changed. Nothing of them is believed until you have asked \
                 them in person and `waxwing contacts accept {who}`"
            ));
        }
        WatchEvent::Unreadable { from, msg_id, reason } => {
            let reason = visible(&reason);
            output.warn(format_args!("message {msg_id} of account {from} cannot be read: {reason}"));
        }
        WatchEvent::Presence { who, presence } => print_presence(&who, presence, output),
        WatchEvent::Typing { who, .. } if output.is_json() => output.result("", &json!({ "typing": who })),
        WatchEvent::Typing { who, .. } => output.note(format_args!("{who} is typing")),
        WatchEvent::Ticked { to, msg_ids, tick } => print_ticks(&to, &msg_ids, tick, output),
        WatchEvent::SendFailed { msg_id, error } => {
            output.warn(format_args!("message {msg_id} was not sent: {}", visible(&error.to_string())));
        }
        WatchEvent::Disconnected { error, retry_in } => {
            let error = visible(&error.to_string());
            output.note(format_args!("{error}; connecting again in {:.1} s", retry_in.as_secs_f64()));
        }
        _ => {}
    }
}

fn print_presence(who: &Handle, presence: PresenceView, output: Output) {
    let (state, last_seen) = match presence {
        PresenceView::Online => ("online", None),
        PresenceView::Offline(last_seen) => ("offline", last_seen),
        _ => ("hidden", None),
    };
    if output.is_json() {
        output.result("", &json!({ "presence": state, "of": who, "last_seen": last_seen }));
        return;
    }
    let seen = last_seen.map_or_else(String::new, |seen| format!(", last seen about {seen}"));
    output.note(format_args!("{who} is {state}{seen}"));
}

fn print_ticks(to: &Handle, msg_ids: &[MsgId], tick: Tick, output: Output) {
    if output.is_json() {
        output.result("", &json!({ "to": to, "tick": tick, "messages": msg_ids }));
        return;
    }
    let word = if tick == Tick::Read { "read" } else { "delivered" };
    output.note(format_args!("{} {word} to {to}: {}", super::messages::mark(tick), msg_ids.len()));
}

fn print_devices(who: &Handle, devices: usize, own: bool, output: Output) {
    if output.is_json() {
        output.result("", &json!({ "devices_of": who, "devices": devices, "own": own }));
    } else if own {
        output.warn(format_args!("this account has {devices} devices now; `waxwing devices list` says which"));
    } else {
        output.note(format_args!("{who} has {devices} devices now"));
    }
}

fn print_message(from: &Handle, msg_id: MsgId, content: &MessageSummary, request: bool, output: Output) {
    let (text, value) = shape(content);
    let mark = if request { "  (message request)" } else { "" };
    let value = json!({ "message": msg_id, "from": from, "content": value, "request": request });
    output.result(format_args!("{from}: {text}{mark}"), &value);
}

/// What a message says, for a person and for a program.
fn shape(content: &MessageSummary) -> (String, serde_json::Value) {
    match content {
        MessageSummary::Text(text) => (visible(text), json!({ "text": text })),
        MessageSummary::File { blob, name, bytes: size, media_type } => {
            let name = name.as_deref().unwrap_or("a file");
            let value = json!({ "blob": blob, "name": name, "bytes": size, "media_type": media_type });
            (format!("{}  {}  blob {blob}", visible(name), bytes(*size)), value)
        }
        _ => ("something that a newer version would show".to_owned(), json!(null)),
    }
}
