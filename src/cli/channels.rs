//! `waxwing channel …`: what can be typed about channels.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use waxwing_protocol::Handle;

use super::ProfileArgs;

#[derive(Debug, Args)]
pub(crate) struct ChannelArgs {
    #[command(flatten)]
    pub profile: ProfileArgs,
    #[command(subcommand)]
    pub command: ChannelCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ChannelCommand {
    /// Found a channel, in which you write.
    Create {
        /// What it is called; only its readers see it.
        title: String,
    },
    /// Write in a channel.
    Post {
        /// Its id, or its title.
        channel: String,
        /// What to say.
        #[arg(required_unless_present = "file")]
        words: Option<String>,
        /// A file instead.
        #[arg(long, value_name = "FILE", conflicts_with = "words")]
        file: Option<PathBuf>,
    },
    /// Follow a channel, by its link or because its owner has invited you.
    Follow {
        /// The link, or the id of a channel that you were invited to.
        link: String,
    },
    /// Print what you have not read yet.
    Read {
        /// Its id, or its title.
        channel: String,
        /// What you have read before as well.
        #[arg(long)]
        all: bool,
        /// Save files into this directory.
        #[arg(long, value_name = "DIR")]
        save: Option<PathBuf>,
    },
    /// List the channels that you follow, own or write in, and those you were invited to.
    Ls,
    /// Print the link with which anybody can follow a channel until its key is replaced.
    Link {
        /// Its id, or its title.
        channel: String,
    },
    /// Let people write in it.
    Author {
        /// Its id, or its title.
        channel: String,
        /// Whom.
        #[arg(required = true)]
        handle: Vec<Handle>,
    },
    /// Give people its key, so that they can follow it and are given the next key too.
    Invite {
        /// Its id, or its title.
        channel: String,
        /// Whom.
        #[arg(required = true)]
        handle: Vec<Handle>,
    },
    /// Remove authors and followers: what is written from then on has another key. Prints the new link.
    Rm {
        /// Its id, or its title.
        channel: String,
        /// Whom; nobody to replace the key all the same, such as when the link got out.
        handle: Vec<Handle>,
    },
    /// Follow it no more.
    Unfollow {
        /// Its id, or its title.
        channel: String,
    },
}

#[derive(Debug, Args)]
pub(crate) struct BenchChannelArgs {
    /// Directory on the disk to measure; what is written there is removed at the end.
    #[arg(long, default_value_os_t = std::env::temp_dir(), value_name = "DIR")]
    pub dir: PathBuf,
    /// Everybody who follows.
    #[arg(long, default_value_t = 100_000)]
    pub followers: u32,
    /// Those of them who are connected.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=20_000))]
    pub live: u32,
    /// Posts that are timed, one after the other.
    #[arg(long, default_value_t = 100)]
    pub posts: u32,
}
