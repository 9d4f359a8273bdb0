//! What can be typed after `waxwing push`.

use clap::{Args, Subcommand};
use waxwing_protocol::api::{PushTarget, Subscription};

use super::ProfileArgs;

#[derive(Debug, Subcommand)]
pub(crate) enum PushCommand {
    /// Say where this device is woken when something waits for it.
    Set {
        #[command(flatten)]
        profile: ProfileArgs,
        #[command(subcommand)]
        target: TargetArgs,
    },
    /// Show who the service can wake by, and who wakes this device.
    Show {
        #[command(flatten)]
        profile: ProfileArgs,
    },
    /// Wake this device now, and say what the provider answers.
    Test {
        #[command(flatten)]
        profile: ProfileArgs,
    },
    /// Wake this device no more.
    Rm {
        #[command(flatten)]
        profile: ProfileArgs,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum TargetArgs {
    /// By Apple.
    Apns {
        /// The device token, in hex.
        #[arg(long)]
        token: String,
        /// The app's bundle id.
        #[arg(long)]
        topic: String,
        /// The token is of Apple's development environment.
        #[arg(long)]
        sandbox: bool,
        /// PushKit's token, by which calls ring.
        #[arg(long)]
        voip_token: Option<String>,
    },
    /// By Firebase.
    Fcm {
        /// The registration token.
        #[arg(long)]
        token: String,
    },
    /// By a browser's push service.
    WebPush(SubscriptionArgs),
    /// By a UnifiedPush distributor.
    UnifiedPush(SubscriptionArgs),
}

#[derive(Debug, Args)]
pub(crate) struct SubscriptionArgs {
    /// Where wakes are posted.
    #[arg(long)]
    pub endpoint: String,
    /// The device's public key, in base64url.
    #[arg(long)]
    pub p256dh: String,
    /// Its authentication secret, in base64url.
    #[arg(long)]
    pub auth: String,
}

impl From<SubscriptionArgs> for Subscription {
    fn from(args: SubscriptionArgs) -> Self {
        Self { endpoint: args.endpoint, p256dh: args.p256dh, auth: args.auth }
    }
}

impl From<TargetArgs> for PushTarget {
    fn from(args: TargetArgs) -> Self {
        match args {
            TargetArgs::Apns { token, topic, sandbox, voip_token } => Self::Apns { token, topic, sandbox, voip_token },
            TargetArgs::Fcm { token } => Self::Fcm { token },
            TargetArgs::WebPush(subscription) => Self::WebPush(subscription.into()),
            TargetArgs::UnifiedPush(subscription) => Self::UnifiedPush(subscription.into()),
        }
    }
}
