//! `waxwing group …`: what can be typed about groups.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use waxwing_client::GroupLink;
use waxwing_protocol::Handle;

use super::ProfileArgs;

#[derive(Debug, Args)]
pub(crate) struct GroupArgs {
    #[command(flatten)]
    pub profile: ProfileArgs,
    #[command(subcommand)]
    pub command: GroupCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum GroupCommand {
    /// Found a group, with yourself as its admin.
    Create {
        /// What it is called; only its members see it.
        title: String,
        /// Whom to let in at once; can be repeated.
        #[arg(long, value_name = "HANDLE")]
        with: Vec<Handle>,
        /// A picture of it.
        #[arg(long, value_name = "FILE")]
        picture: Option<PathBuf>,
    },
    /// Let people in. They read what is written from then on.
    Add {
        /// Its id, or its title.
        group: String,
        /// Whom.
        #[arg(required = true)]
        handle: Vec<Handle>,
    },
    /// Remove people. They read nothing that is written from then on.
    Rm {
        /// Its id, or its title.
        group: String,
        /// Whom.
        #[arg(required = true)]
        handle: Vec<Handle>,
    },
    /// Let somebody change the group as well.
    Admin {
        /// Its id, or its title.
        group: String,
        /// Whom.
        handle: Handle,
        /// No longer.
        #[arg(long)]
        off: bool,
    },
    /// Call the group something else.
    Title {
        /// Its id, or its title until now.
        group: String,
        /// The new one.
        title: String,
        /// A picture of it; without one, it has none.
        #[arg(long, value_name = "FILE")]
        picture: Option<PathBuf>,
    },
    /// Let everybody know how many have a message and how many have seen it.
    Receipts {
        /// Its id, or its title.
        group: String,
        /// No longer.
        #[arg(long)]
        off: bool,
    },
    /// Print a link that lets whoever has it in.
    Link {
        /// Its id, or its title.
        group: String,
        /// End the link instead.
        #[arg(long)]
        off: bool,
    },
    /// Come into a group by its link.
    Join {
        /// The link.
        link: GroupLink,
    },
    /// Leave a group.
    Leave {
        /// Its id, or its title.
        group: String,
    },
    /// List the groups that this account is in, with their members.
    Ls,
    /// Send words to everybody in a group.
    Send {
        /// Its id, or its title.
        group: String,
        /// What to say.
        words: String,
    },
}

#[derive(Debug, Args)]
pub(crate) struct BenchGroupArgs {
    /// Directory on the disk to measure; what is written there is removed at the end.
    #[arg(long, default_value_os_t = std::env::temp_dir(), value_name = "DIR")]
    pub dir: PathBuf,
    /// People in the group, with one device each.
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u32).range(2..=1024))]
    pub members: u32,
    /// Messages that are timed, one after the other.
    #[arg(long, default_value_t = 100)]
    pub messages: u32,
    /// Messages that are then stored for members who are away.
    #[arg(long, default_value_t = 200)]
    pub stored: u32,
    /// Groups that then talk all at once, with one member of each connected; 0 for none.
    #[arg(long, default_value_t = 100)]
    pub groups: u32,
    /// People in each of those.
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(2..=1024))]
    pub group_members: u32,
    /// Messages a second in each of those.
    #[arg(long, default_value_t = 10.0)]
    pub rate: f64,
    /// Seconds that they talk for.
    #[arg(long, default_value_t = 10)]
    pub seconds: u32,
}
