//! What can be typed: commands, their flags and their help.

mod channels;
mod groups;
mod push;

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use waxwing_client::{LinkCode, TransferId};
use waxwing_protocol::{BlobId, DeviceId, Handle, OwnerTag};

pub(crate) use self::channels::{BenchChannelArgs, ChannelArgs, ChannelCommand};
pub(crate) use self::groups::{BenchGroupArgs, GroupArgs, GroupCommand};
pub(crate) use self::push::PushCommand;
use crate::commands::{BenchPushArgs, BenchRestartArgs, BenchSoakArgs, BlobArgs, Broker, EdgePeer, Peer};

/// The address `waxwing dev` listens on and clients talk to unless told otherwise.
pub(crate) const DEV_ADDRESS: &str = "127.0.0.1:8460";

/// The admin address of `waxwing dev`, the port beside; operators' commands ask there unless told otherwise.
pub(crate) const DEV_ADMIN_ADDRESS: &str = "127.0.0.1:8461";

/// Moves sealed photos, videos and files between people: end-to-end encrypted, resumable, cached at the edge.
#[derive(Debug, Parser)]
#[command(name = "waxwing", version, propagate_version = true, max_term_width = 100)]
pub(crate) struct Cli {
    /// Print results as JSON lines on stdout.
    #[arg(long, global = true)]
    pub json: bool,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Serve every role on one address, with open registration: for trying things out. Metrics and `waxwing admin` are
    /// on loopback, at the next port.
    Dev(DevArgs),
    /// Serve the roles that a configuration file names.
    Serve(ServeArgs),
    /// Make an account, with this machine as its first device.
    Register(RegisterArgs),
    /// Make this machine a further device of an account: shows a code to type on a device that the account has.
    Link(LinkArgs),
    /// Add, list, name or remove the account's devices.
    #[command(subcommand)]
    Devices(DevicesCommand),
    /// Look at every step between a profile and its service, and say what does not work and why.
    Doctor {
        #[command(flatten)]
        profile: ProfileArgs,
    },
    /// Show the safety number with somebody, to compare by voice or by camera.
    Verify(VerifyArgs),
    /// List the people this profile knows.
    Contacts(ContactsArgs),
    /// Change what this profile's account is called, or delete it.
    #[command(subcommand)]
    Account(AccountCommand),
    /// Seal a file, upload it, and send it to somebody.
    Send(SendArgs),
    /// Receive messages and save the files they bring.
    Watch(WatchArgs),
    /// Print what was received and sent, with what became of it.
    Messages(MessagesArgs),
    /// Show or change what others are told: receipts, presence.
    Settings(SettingsArgs),
    /// Hear nothing more of somebody, who is not told.
    Block(BlockArgs),
    /// Hear of somebody again.
    Unblock(BlockArgs),
    /// List who is blocked.
    Blocks {
        #[command(flatten)]
        profile: ProfileArgs,
    },
    /// Found channels that many read, write in them, follow and read them.
    Channel(ChannelArgs),
    /// Make groups, change who is in them, and write to them.
    Group(GroupArgs),
    /// Have this device woken by a push service when something waits for it.
    #[command(subcommand)]
    Push(PushCommand),
    /// Download a file by share link, or by the id of a blob this profile has sent or received.
    Get(GetArgs),
    /// Have a blob kept by the service from now on, or for the whole time again. It counts towards your quota.
    Keep(BlobArgs),
    /// Let go of a blob: it goes from the service when nobody else has it.
    Drop(BlobArgs),
    /// Print a link that opens one file for whoever has it.
    Share(ShareArgs),
    /// Go on with what was interrupted.
    Resume(ResumeArgs),
    /// Print a grant, so that curl and tus clients can be used.
    Grant(GrantArgs),
    /// Show or check a configuration.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Operate a service.
    #[command(subcommand)]
    Admin(AdminCommand),
    /// Send a file from one new account to another on a server of its own, and show the time of every step.
    Demo(DemoArgs),
    /// Measure this binary on this machine.
    #[command(subcommand)]
    Bench(BenchCommand),
}

#[derive(Debug, Args)]
pub(crate) struct DevArgs {
    /// Address to listen on; port 0 picks a free one.
    #[arg(long, env = "WAXWING_LISTEN", default_value = DEV_ADDRESS)]
    pub listen: SocketAddr,
    /// Directory that holds all state; made when missing.
    #[arg(long, env = "WAXWING_DATA", default_value = "waxwing-data", value_name = "DIR")]
    pub data: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct ServeArgs {
    /// Configuration file (TOML); `waxwing config show` prints one with the defaults.
    #[arg(long, env = "WAXWING_CONFIG", value_name = "FILE")]
    pub config: PathBuf,
    /// Address to listen on, instead of the file's.
    #[arg(long, env = "WAXWING_LISTEN")]
    pub listen: Option<SocketAddr>,
    /// Directory that holds all state, instead of the file's.
    #[arg(long, env = "WAXWING_DATA", value_name = "DIR")]
    pub data: Option<PathBuf>,
}

/// Which profile a client command acts as.
#[derive(Debug, Args)]
pub(crate) struct ProfileArgs {
    /// Directory of the profile: its keys, its messages, its unfinished transfers.
    #[arg(long, global = true, env = "WAXWING_HOME", default_value = "waxwing-profile", value_name = "DIR")]
    pub home: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct RegisterArgs {
    #[command(flatten)]
    pub profile: ProfileArgs,
    /// The name that others write to: 2 to 32 of a-z 0-9 . _ -, a letter first.
    #[arg(long)]
    pub handle: Handle,
    /// The service.
    #[arg(long, env = "WAXWING_SERVER", default_value_t = format!("http://{DEV_ADDRESS}"), value_name = "URL")]
    pub server: String,
    /// Invite code, where the service asks for one.
    #[arg(long)]
    pub invite: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct BlockArgs {
    #[command(flatten)]
    pub profile: ProfileArgs,
    /// Whom.
    pub handle: Handle,
}

#[derive(Debug, Args)]
pub(crate) struct LinkArgs {
    #[command(flatten)]
    pub profile: ProfileArgs,
    /// The service.
    #[arg(long, env = "WAXWING_SERVER", default_value_t = format!("http://{DEV_ADDRESS}"), value_name = "URL")]
    pub server: String,
    /// What to call this device; only the account's devices learn it.
    #[arg(long, default_value = "a further device")]
    pub name: String,
}

#[derive(Debug, Subcommand)]
pub(crate) enum DevicesCommand {
    /// Make the device that shows this code one of the account's: it gets the account key, contacts and messages.
    Link {
        #[command(flatten)]
        profile: ProfileArgs,
        /// The code, as `waxwing link` shows it there.
        #[arg(value_parser = link_code)]
        code: LinkCode,
        /// Leave contacts and messages here.
        #[arg(long)]
        no_history: bool,
    },
    /// List the account's devices.
    List {
        #[command(flatten)]
        profile: ProfileArgs,
    },
    /// Give a device another name.
    Name {
        #[command(flatten)]
        profile: ProfileArgs,
        /// Its number.
        device: DeviceId,
        /// The name.
        name: String,
    },
    /// Remove a device: its token, its keys and what waits for it go, and nobody writes to it any more.
    Rm {
        #[command(flatten)]
        profile: ProfileArgs,
        /// Its number.
        device: DeviceId,
    },
}

/// A code as it is typed, or the text of its QR code.
fn link_code(text: &str) -> Result<LinkCode, String> {
    let text = text.strip_prefix(LINK_SCHEME).unwrap_or(text);
    text.parse::<LinkCode>().map_err(|error| error.to_string())
}

/// What stands before the code in a QR code.
pub(crate) const LINK_SCHEME: &str = "waxwing-link:";

#[derive(Debug, Args)]
pub(crate) struct VerifyArgs {
    #[command(flatten)]
    pub profile: ProfileArgs,
    /// With whom.
    #[arg(value_name = "HANDLE")]
    pub with: Handle,
    /// The numbers are equal: take note of it.
    #[arg(long)]
    pub equal: bool,
    /// Forget that they were compared.
    #[arg(long, conflicts_with = "equal")]
    pub undo: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ContactsArgs {
    #[command(flatten)]
    pub profile: ProfileArgs,
    #[command(subcommand)]
    pub command: Option<ContactsCommand>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ContactsCommand {
    /// Trust who the service says somebody is now, after their account key changed. Ask them in person first.
    Accept {
        /// Who.
        handle: Handle,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum AccountCommand {
    /// Take another handle; the one it had is free for others at once.
    Handle {
        #[command(flatten)]
        profile: ProfileArgs,
        /// The new one.
        handle: Handle,
    },
    /// Delete the account at the service, with everything that waits for it. There is no way back.
    Delete {
        #[command(flatten)]
        profile: ProfileArgs,
        /// Do not ask.
        #[arg(long, required = true)]
        yes: bool,
    },
}

#[derive(Debug, Args)]
pub(crate) struct SendArgs {
    #[command(flatten)]
    pub profile: ProfileArgs,
    /// The file to send.
    #[arg(required_unless_present = "text")]
    pub file: Option<PathBuf>,
    /// Words to send instead of a file.
    #[arg(long, value_name = "WORDS", conflicts_with = "file")]
    pub text: Option<String>,
    /// Whom to.
    #[arg(long, value_name = "HANDLE", required_unless_present = "group")]
    pub to: Option<Handle>,
    /// To everybody in a group instead: its id, or its title.
    #[arg(long, value_name = "GROUP", conflicts_with = "to")]
    pub group: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct WatchArgs {
    #[command(flatten)]
    pub profile: ProfileArgs,
    /// Directory for received files; made when missing. Without it, files are announced but not fetched.
    #[arg(long, value_name = "DIR")]
    pub save: Option<PathBuf>,
    /// Stop once at least one message has come, the queue is empty and every file is saved.
    #[arg(long)]
    pub once: bool,
    /// Show who comes, goes and types, of the people this profile knows.
    #[arg(long)]
    pub presence: bool,
    /// Nobody is looking: do not appear online, and do not tell that messages were read.
    #[arg(long)]
    pub background: bool,
}

#[derive(Debug, Args)]
pub(crate) struct MessagesArgs {
    #[command(flatten)]
    pub profile: ProfileArgs,
}

#[derive(Debug, Args)]
pub(crate) struct SettingsArgs {
    #[command(flatten)]
    pub profile: ProfileArgs,
    /// Tell people that their messages were read.
    #[arg(long, value_name = "on|off", value_parser = on_or_off)]
    pub read_receipts: Option<bool>,
    /// Let the service tell people you have written to that a device of yours has their message.
    #[arg(long, value_name = "on|off", value_parser = on_or_off)]
    pub delivery_receipts: Option<bool>,
    /// Whom the service tells when you are online and when you were last seen.
    #[arg(long, value_enum)]
    pub presence: Option<PresenceTo>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum PresenceTo {
    /// Whoever asks.
    Everyone,
    /// People you have written to.
    Contacts,
    /// Nobody.
    Nobody,
}

fn on_or_off(text: &str) -> Result<bool, &'static str> {
    match text {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err("on or off"),
    }
}

#[derive(Debug, Args)]
pub(crate) struct GetArgs {
    #[command(flatten)]
    pub profile: ProfileArgs,
    /// A share link, or a blob id.
    #[arg(value_name = "LINK|ID")]
    pub source: String,
    /// Where to write the file.
    #[arg(short, long, value_name = "FILE")]
    pub output: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct ShareArgs {
    #[command(flatten)]
    pub profile: ProfileArgs,
    /// A file to upload, or the id of a blob this profile has sent or received.
    #[arg(value_name = "FILE|ID")]
    pub source: String,
}

#[derive(Debug, Args)]
pub(crate) struct ResumeArgs {
    #[command(flatten)]
    pub profile: ProfileArgs,
    /// Only say what is unfinished, each with its id.
    #[arg(long)]
    pub list: bool,
    /// Give up one transfer instead: what the server holds of its upload is freed, and its message is not sent.
    #[arg(long, value_name = "ID", conflicts_with = "list")]
    pub drop: Option<TransferId>,
}

#[derive(Debug, Args)]
pub(crate) struct GrantArgs {
    #[command(flatten)]
    pub profile: ProfileArgs,
    #[command(subcommand)]
    pub kind: GrantKind,
}

#[derive(Debug, Subcommand)]
pub(crate) enum GrantKind {
    /// To upload blobs, for an hour.
    Upload,
    /// To download any blob whose id one knows, for a quarter of an hour.
    Media,
    /// To let whoever holds it download one blob.
    Share {
        /// The blob.
        blob: BlobId,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Print the configuration in effect, every key with its value.
    Show(ConfigArgs),
    /// Say whether a configuration is sound.
    Check(ConfigArgs),
}

#[derive(Debug, Args)]
pub(crate) struct ConfigArgs {
    /// Configuration file; without it, the defaults.
    #[arg(long, env = "WAXWING_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum AdminCommand {
    /// Print a grant for another part of the service.
    #[command(subcommand)]
    Grant(AdminGrant),
    /// Make invite codes, each for one registration; the node may be running.
    Invite {
        /// How many.
        #[arg(long, default_value_t = 1)]
        count: u32,
        /// How many days each is good for.
        #[arg(long, default_value_t = 7)]
        days: u32,
        /// Data directory of the messaging node, which holds the key of invites.
        #[arg(long, env = "WAXWING_DATA", value_name = "DIR")]
        data: PathBuf,
    },
    /// List the uploads that a running node remembers.
    Uploads {
        /// Only those in this state.
        #[arg(long)]
        state: Option<UploadState>,
        #[command(flatten)]
        node: AdminNode,
    },
    /// Forget expired uploads and blobs whose time is over, free what a crash left, and compact packs: now rather than at
    /// the next sweep.
    Gc {
        /// Only say what would be freed.
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        node: AdminNode,
    },
    /// Say how much owners hold: their blobs and what they are uploading. Or set how much one may.
    Quota {
        /// Only this owner.
        owner: Option<OwnerTag>,
        /// Let the owner hold this many bytes, more or less than their grants say. What they hold beyond stays.
        #[arg(long, value_name = "BYTES", requires = "owner", conflicts_with = "unset")]
        set: Option<u64>,
        /// Let the owner hold what their grants say again.
        #[arg(long, requires = "owner")]
        unset: bool,
        #[command(flatten)]
        node: AdminNode,
    },
    /// End that an owner has any blob. Those that nobody else has go, from edges too. What the owner is uploading is not
    /// touched: set their quota to 0 first, so that none of it becomes a blob meanwhile.
    Purge {
        /// Whose, as `quota` lists them.
        #[arg(long, value_name = "TAG")]
        owner: OwnerTag,
        #[command(flatten)]
        node: AdminNode,
    },
    /// Do something to a blob.
    #[command(subcommand)]
    Blob(AdminBlob),
    /// Ask an edge what it holds, or tell it to let go.
    #[command(subcommand)]
    Edge(AdminEdge),
    /// List the accounts of a messaging node.
    Accounts {
        #[command(flatten)]
        node: AdminNode,
    },
    /// List an account's devices, and whether they are connected.
    Devices {
        /// Its handle or id.
        account: String,
        #[command(flatten)]
        node: AdminNode,
    },
    /// Say what waits in an account's mailboxes: how much, and since when. Not what, nor from whom.
    Mailbox {
        /// Its handle or id.
        account: String,
        /// Only of this device.
        #[arg(long)]
        device: Option<u32>,
        #[command(flatten)]
        node: AdminNode,
    },
    /// List the limits of a messaging node, and what each has refused since the start.
    Limits {
        #[command(flatten)]
        node: AdminNode,
    },
}

/// Which node a command of an operator asks.
#[derive(Debug, Args)]
pub(crate) struct AdminNode {
    /// The node's admin address (`admin_listen` in its configuration).
    #[arg(long, env = "WAXWING_ADMIN", default_value_t = format!("http://{DEV_ADMIN_ADDRESS}"), value_name = "URL")]
    pub admin: String,
}

/// How far an upload is.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum UploadState {
    /// It takes bytes.
    Receiving,
    /// It became a blob.
    Complete,
}

impl UploadState {
    /// Its name on the wire.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Receiving => "receiving",
            Self::Complete => "complete",
        }
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum AdminBlob {
    /// Remove a blob, whoever has it; edges learn of it from the origin.
    Rm {
        /// The blob.
        id: BlobId,
        #[command(flatten)]
        node: AdminNode,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum AdminEdge {
    /// Say what it has done since it started, and what it holds.
    Stats {
        #[command(flatten)]
        node: AdminNode,
    },
    /// List what it holds: blobs, outboards and slices, with the bytes they take.
    Ls {
        /// In memory rather than on disk.
        #[arg(long)]
        memory: bool,
        #[command(flatten)]
        node: AdminNode,
    },
    /// Forget a blob here and now; the origin still has it (`admin blob rm` removes it everywhere).
    Purge {
        /// The blob.
        id: BlobId,
        #[command(flatten)]
        node: AdminNode,
    },
    /// Be not ready, so that load balancers and other edges ask somebody else; whoever asks is still answered.
    Drain {
        /// Be ready again.
        #[arg(long)]
        end: bool,
        #[command(flatten)]
        node: AdminNode,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum AdminGrant {
    /// What an edge shows its origin.
    Edge {
        /// The edge's name, for logs.
        #[arg(long)]
        node: String,
        /// How many days it lasts.
        #[arg(long, default_value_t = 365)]
        days: u32,
        /// Data directory of the messaging node, which holds the signing key.
        #[arg(long, env = "WAXWING_DATA", value_name = "DIR")]
        data: PathBuf,
    },
}

#[derive(Debug, Args)]
pub(crate) struct DemoArgs {
    /// The file to send; 64 MiB of noise when none is given.
    pub file: Option<PathBuf>,
    /// What the server is configured with, such as a bucket; its addresses and its data directory are its own.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum BenchCommand {
    /// Uploads to a server of its own, beside what the disk does by itself: rates, CPU, memory, takeover, latency.
    Upload(BenchUploadArgs),
    /// Hits of an edge of its own, small and large: rates, CPU, memory, first bytes when cold, hit ratios.
    Edge(BenchEdgeArgs),
    /// Messages a second that are durably stored, delivered and acked, over real sockets.
    Messages(BenchMessagesArgs),
    /// Times of a send and of a delivery at a steady rate, half of what `messages` reaches unless told otherwise.
    Latency(BenchLatencyArgs),
    /// Memory of the server for each connection that idles.
    Connections(BenchConnectionsArgs),
    /// Time and server memory that it takes to drain mailboxes, and how long a call waits meanwhile.
    Drain(BenchDrainArgs),
    /// What a hundred thousand followers of a channel cost, and times of a post to those who are connected.
    Channel(BenchChannelArgs),
    /// Times of a message to a large group whose members are all connected, and what it takes on disk.
    Group(BenchGroupArgs),
    /// How many devices a second are woken, by a push provider on this machine that takes every wake.
    Push(BenchPushArgs),
    /// Memory that clients cost which do not read what is sent to them.
    Slow(BenchSlowArgs),
    /// What the store and the server's memory grow to while messages are sent and acked for minutes.
    Soak(BenchSoakArgs),
    /// Time after a kill -9 until a server with a million mailboxes serves again.
    Restart(BenchRestartArgs),
    /// The load generator of the others: a job on stdin, figures on stdout.
    #[command(hide = true)]
    Load,
}

#[derive(Debug, Args)]
pub(crate) struct BenchMessagesArgs {
    /// Directory on the disk to measure; what is written there is removed at the end.
    #[arg(long, default_value_os_t = std::env::temp_dir(), value_name = "DIR")]
    pub dir: PathBuf,
    /// Pairs, of each of which one sends and the other receives.
    #[arg(long, default_value_t = 64)]
    pub pairs: u32,
    /// Messages of a pair that are sent and not answered yet.
    #[arg(long, default_value_t = 16)]
    pub in_flight: u64,
    /// Seconds of a round.
    #[arg(long, default_value_t = 5.0)]
    pub seconds: f64,
    /// How often it is measured.
    #[arg(long, default_value_t = 5)]
    pub rounds: u32,
    /// A running MQTT broker to measure in the same rounds, unless this is `latency`: NAME=HOST:PORT,PID. Can be repeated.
    #[arg(long, value_name = "PEER")]
    pub mqtt: Vec<Broker>,
}

#[derive(Debug, Args)]
pub(crate) struct BenchLatencyArgs {
    #[command(flatten)]
    pub load: BenchMessagesArgs,
    /// Messages a second; half of what is reached without a pause when none are given.
    #[arg(long)]
    pub rate: Option<f64>,
}

#[derive(Debug, Args)]
pub(crate) struct BenchConnectionsArgs {
    /// Directory for the server's data; what is written there is removed at the end.
    #[arg(long, default_value_os_t = std::env::temp_dir(), value_name = "DIR")]
    pub dir: PathBuf,
    /// Connections to hold; as many as the server may open files for when none are given.
    #[arg(long)]
    pub count: Option<u32>,
}

#[derive(Debug, Args)]
pub(crate) struct BenchDrainArgs {
    /// Directory on the disk to measure; what is written there is removed at the end.
    #[arg(long, default_value_os_t = std::env::temp_dir(), value_name = "DIR")]
    pub dir: PathBuf,
    /// Messages that wait for the one client whose drain is timed.
    #[arg(long, default_value_t = 10_000)]
    pub pending: u64,
    /// How often it is measured.
    #[arg(long, default_value_t = 5)]
    pub rounds: u32,
    /// Clients that then drain at once, 100 messages each.
    #[arg(long, default_value_t = 1000)]
    pub clients: u32,
}

#[derive(Debug, Args)]
pub(crate) struct BenchEdgeArgs {
    /// Directory for the servers' data; what is written there is removed at the end.
    #[arg(long, default_value_os_t = std::env::temp_dir(), value_name = "DIR")]
    pub dir: PathBuf,
    /// Seconds that each size is asked for in a round.
    #[arg(long, default_value_t = 2.0)]
    pub seconds: f64,
    /// How often each rate is measured.
    #[arg(long, default_value_t = 5)]
    pub rounds: u32,
    /// A running server with files 4k-0 to 4k-15, 100k-0 to 100k-15, 1m-0 (of 64 MiB) and 64m-0, to measure in the same
    /// rounds: NAME=http://HOST:PORT/{},PID. Can be repeated.
    #[arg(long, value_name = "PEER")]
    pub peer: Vec<EdgePeer>,
    /// Measure this alone. Can be repeated.
    #[arg(long, value_name = "PART", value_enum)]
    pub only: Vec<EdgePart>,
}

/// What `bench edge` can measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum EdgePart {
    /// Hits of 4 KiB.
    #[value(name = "4k")]
    Small,
    /// Hits of 100 KiB.
    #[value(name = "100k")]
    Photo,
    /// Hits of 1 MiB out of 64 MiB.
    #[value(name = "1m")]
    Range,
    /// Hits of 64 MiB.
    #[value(name = "64m")]
    Film,
    /// Memory of a cached slice.
    Memory,
    /// What is fetched from the origin.
    Cold,
    /// Connections that idle.
    Idle,
    /// Hit ratios on a trace.
    Ratios,
}

#[derive(Debug, Args)]
pub(crate) struct BenchSlowArgs {
    /// Directory on the disk to measure; what is written there (200 KB a reader) is removed at the end.
    #[arg(long, default_value_os_t = std::env::temp_dir(), value_name = "DIR")]
    pub dir: PathBuf,
    /// Clients that do not read.
    #[arg(long, default_value_t = 10_000)]
    pub readers: u32,
}

#[derive(Debug, Args)]
pub(crate) struct BenchUploadArgs {
    /// Directory on the disk to measure; what is written there is removed at the end.
    #[arg(long, default_value_os_t = std::env::temp_dir(), value_name = "DIR")]
    pub dir: PathBuf,
    /// How often each rate is measured; every round writes about 4 GB, and as much for each peer.
    #[arg(long, default_value_t = 3)]
    pub rounds: usize,
    /// A running tus server to measure in the same rounds: NAME=URL,PID. Can be repeated.
    #[arg(long, value_name = "PEER")]
    pub peer: Vec<Peer>,
}
