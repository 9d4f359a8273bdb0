//! `waxwing messages` and `waxwing settings`: what was said, and what others are told of it.

use serde_json::{Value, json};
use waxwing_client::{Client, Content, Tick};
use waxwing_protocol::Timestamp;
use waxwing_protocol::api::Visibility;

use super::groups::label;
use crate::cli::{MessagesArgs, PresenceTo, SettingsArgs};
use crate::output::{Output, visible};

/// A line of the history.
struct Line {
    at: Timestamp,
    text: String,
    value: Value,
}

/// Prints everything received and sent, in the order in which the server took it.
pub(crate) fn messages(args: &MessagesArgs, output: Output) -> anyhow::Result<()> {
    let client = Client::open(&args.profile.home)?;
    let mut lines = Vec::new();
    for message in client.messages()? {
        let from = client.handle_of(message.from)?;
        let name = from.as_ref().map_or_else(|| message.from.to_string(), ToString::to_string);
        let (words, said) = match &message.content {
            Ok(content) => told(content),
            Err(reason) => (format!("(cannot be read: {})", visible(reason)), json!({ "unreadable": reason })),
        };
        lines.push(Line {
            at: message.server_ts,
            text: match message.group {
                Some(group) => format!("{} / {name}: {words}", label(&client, group)),
                None => format!("{name}: {words}"),
            },
            value: json!({
                "message": message.msg_id, "from": from, "group": message.group, "at": message.server_ts,
                "content": said, "read": message.read,
            }),
        });
    }
    for message in client.sent_messages()? {
        let (words, said) = told(&message.content);
        let (to, tick) = (&message.handle, message.tick);
        lines.push(Line {
            at: message.server_ts,
            text: format!("{} to {to}: {words}", mark(tick)),
            value: json!({
                "message": message.msg_id, "to": to, "at": message.server_ts, "content": said, "tick": tick,
            }),
        });
    }
    for message in client.sent_to_groups()? {
        let (words, said) = told(&message.content);
        let group = message.group;
        lines.push(Line {
            at: message.server_ts,
            text: format!("{} to {}: {words}", mark(Tick::Sent), label(&client, group)),
            value: json!({ "message": message.msg_id, "group": group, "at": message.server_ts, "content": said }),
        });
    }
    lines.sort_by_key(|line| line.at);
    for line in lines {
        output.result(&line.text, &line.value);
    }
    Ok(())
}

/// What a message says, for a person and for a program.
pub(crate) fn told(content: &Content) -> (String, Value) {
    match content {
        Content::Text(text) => (visible(text), json!({ "text": text })),
        Content::File(file) => {
            let name = file.file_name.as_deref().unwrap_or("a file");
            let value = json!({ "blob": file.id, "name": file.file_name, "bytes": file.true_bytes });
            (format!("{}  blob {}", visible(name), file.id), value)
        }
        _ => ("something that a newer version would show".to_owned(), Value::Null),
    }
}

/// The marks that people know: one for the server, two for a device, two full ones for a person.
pub(crate) fn mark(tick: Tick) -> &'static str {
    match tick {
        Tick::Read => "✔✔",
        Tick::Delivered => "✓✓",
        _ => "✓",
    }
}

/// Changes what was asked for and prints what stands.
pub(crate) async fn settings(args: SettingsArgs, output: Output) -> anyhow::Result<()> {
    let client = Client::open(&args.profile.home)?;
    if let Some(tell) = args.read_receipts {
        client.set_read_receipts(tell)?;
    }
    let before = client.preferences().await?;
    let mut preferences = before;
    if let Some(tell) = args.delivery_receipts {
        preferences.delivery_receipts = tell;
    }
    if let Some(to) = args.presence {
        preferences.presence = match to {
            PresenceTo::Everyone => Visibility::Everyone,
            PresenceTo::Contacts => Visibility::Contacts,
            PresenceTo::Nobody => Visibility::Nobody,
        };
    }
    if preferences != before {
        client.set_preferences(preferences).await?;
    }
    let read = client.read_receipts()?;
    let word = |on| if on { "on" } else { "off" };
    let presence = match preferences.presence {
        Visibility::Everyone => "everyone",
        Visibility::Contacts => "contacts",
        Visibility::Nobody => "nobody",
    };
    output.result(
        format_args!(
            "read receipts {}  delivery receipts {}  presence to {presence}",
            word(read),
            word(preferences.delivery_receipts)
        ),
        &json!({
            "read_receipts": read,
            "delivery_receipts": preferences.delivery_receipts,
            "presence": preferences.presence,
        }),
    );
    Ok(())
}
