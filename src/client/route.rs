//! Which connection a message takes: the one that watches, when there is one, else one of its own.
//!
//! A device has one connection; a newer one displaces the older. An app that watches and sends would throw itself off
//! the server with every message, if sending opened a connection regardless.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use waxwing_protocol::frames::{Error, Send, SendResult, Window, close, frame::Body};

use crate::socket::{REPLY_TIMEOUT, Socket};
use crate::{Client, ClientError};

/// Messages on their way to the watching connection: the protocol allows 64 in flight.
const QUEUE: usize = 64;

/// Something for the watching connection.
pub(crate) enum Outgoing {
    /// A frame that asks for an answer, such as a message, and where the answer goes.
    Ask(Body, oneshot::Sender<Reply>),
    /// A frame that asks for no answer.
    Push(Body),
}

/// The server's answer to a Send or another frame.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Reply {
    /// Durably stored.
    Taken(SendResult),
    /// Done; of frames that are no messages.
    Done,
    /// Not stored, not done.
    Refused(Error),
}

/// A client's knowledge of its connections. Clones share it.
#[derive(Clone, Default)]
pub(crate) struct Route {
    watching: Arc<Mutex<Option<mpsc::Sender<Outgoing>>>>,
    turn: Arc<tokio::sync::Mutex<()>>,
}

/// What a watching connection holds: messages come through it until it is dropped.
pub(crate) struct Watching {
    pub(crate) outgoing: mpsc::Receiver<Outgoing>,
    watching: Arc<Mutex<Option<mpsc::Sender<Outgoing>>>>,
}

impl Route {
    /// Messages go through the caller from now on.
    pub(crate) fn watch(&self) -> Watching {
        let (sender, outgoing) = mpsc::channel(QUEUE);
        *self.watching.lock().unwrap_or_else(PoisonError::into_inner) = Some(sender);
        Watching { outgoing, watching: Arc::clone(&self.watching) }
    }

    /// Waits for the turn to empty the outbox, kept until the guard is dropped: two at once would send everything
    /// twice, and displace each other where nobody watches.
    pub(crate) async fn turn(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.turn.lock().await
    }

    /// Sends a frame that asks for no answer, if there is a connection that watches and it is not busy; tells whether
    /// it did.
    pub(crate) fn push(&self, body: Body) -> bool {
        self.watching().is_some_and(|sender| sender.try_send(Outgoing::Push(body)).is_ok())
    }

    fn watching(&self) -> Option<mpsc::Sender<Outgoing>> {
        let watching = self.watching.lock().unwrap_or_else(PoisonError::into_inner);
        watching.clone().filter(|sender| !sender.is_closed())
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        *self.watching.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// A way for messages to the server.
pub(crate) enum Line<'a> {
    /// Through the connection that watches.
    Watching(&'a Client, mpsc::Sender<Outgoing>),
    /// A connection of its own.
    Own(&'a Client, Box<Socket>),
}

impl<'a> Line<'a> {
    /// Opens a way.
    ///
    /// # Errors
    /// Those of connecting.
    pub(crate) async fn open(client: &'a Client) -> Result<Self, ClientError> {
        if let Some(sender) = client.route.watching() {
            return Ok(Self::Watching(client, sender));
        }
        // What waits in the mailbox is for a watching connection; the smallest window keeps it there.
        let (socket, _) = Socket::connect(client, None, Window { msgs: 1, bytes: 1 }, false, Bytes::new()).await?;
        Ok(Self::Own(client, Box::new(socket)))
    }

    /// Sends a message and waits for the answer.
    ///
    /// # Errors
    /// [`ClientError::Unreachable`] and the like when the connection ends first: whether the server has the message is
    /// then unknown, and sending it again is harmless.
    pub(crate) async fn exchange(&mut self, send: Send) -> Result<Reply, ClientError> {
        self.ask(Body::Send(send)).await
    }

    /// Sends a frame and waits for the answer.
    ///
    /// # Errors
    /// Those of [`Self::exchange`].
    pub(crate) async fn ask(&mut self, body: Body) -> Result<Reply, ClientError> {
        match self {
            Self::Watching(client, sender) => {
                let (reply, answer) = oneshot::channel();
                let gone = || client.service.lost("the watching connection ended");
                sender.send(Outgoing::Ask(body, reply)).await.map_err(|_| gone())?;
                // The connection may be waiting for its next try; the caller has a patience of its own.
                match timeout(REPLY_TIMEOUT, answer).await {
                    Ok(reply) => reply.map_err(|_| gone()),
                    Err(_) => Err(client.service.lost("no reply")),
                }
            }
            Self::Own(client, socket) => match socket.request(body).await {
                Ok(Body::SendResult(result)) => Ok(Reply::Taken(result)),
                Ok(Body::Ok(_)) => Ok(Reply::Done),
                Ok(Body::Error(error)) => Ok(Reply::Refused(error)),
                Ok(_) => Err(socket.nonsense("a frame answered by one of another kind".to_owned())),
                // This client began to watch: the next try goes through that connection.
                Err(ClientError::Closed { code: close::DISPLACED, .. }) if client.route.watching().is_some() => {
                    Err(client.service.lost("this client began to watch"))
                }
                Err(error) => Err(error),
            },
        }
    }

    /// Closes what was opened.
    pub(crate) async fn close(self) {
        if let Self::Own(_, socket) = self {
            socket.bye().await;
        }
    }
}
