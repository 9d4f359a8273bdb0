//! Random lives of a mailbox, against a model.
//!
//! Several senders, a receiver that comes and goes with windows of all sizes and acks what it likes, a node that crashes
//! in between. At the end: everything that a sender was told is stored was received; each sender's messages came in
//! their order; no seq overtook another on any connection; nothing came that was not sent.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::future::join_all;
use proptest::prelude::*;
use waxwing_protocol::frames::{Class, Hello, Lane, Send, frame::Body};

use crate::client::{Client, hello, message, number, unfolded, window};
use crate::node::{Person, TestNode};

const SENDERS: usize = 3;

#[derive(Clone, Debug)]
enum Step {
    /// All senders at once, so many messages each; some of them urgent.
    Race { each: u64, urgent_every: u64 },
    /// A sender repeats its last message.
    Repeat(usize),
    /// The receiver connects anew, with this window.
    Connect(u32),
    /// The receiver reads up to so many messages, if they come.
    Receive(usize),
    /// The receiver acks the normal lane up to this share of what it has, in percent.
    AckUpTo(u64),
    /// The receiver acks only the last of what it has.
    AckLast,
    /// The node dies and comes back.
    Crash,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        5 => (1u64..25, 2u64..6).prop_map(|(each, urgent_every)| Step::Race { each, urgent_every }),
        1 => (0..SENDERS).prop_map(Step::Repeat),
        3 => (1u32..40).prop_map(Step::Connect),
        4 => (1usize..40).prop_map(Step::Receive),
        3 => (0u64..=100).prop_map(Step::AckUpTo),
        1 => Just(Step::AckLast),
        1 => Just(Step::Crash),
    ]
}

/// What the receiver knows.
#[derive(Default)]
struct Received {
    /// Of each sender and lane: the messages in the order in which they came first.
    by_sender: BTreeMap<(Vec<u8>, i32), Vec<u64>>,
    seen: BTreeSet<(Vec<u8>, u64)>,
    /// Seqs received on this connection, lane by lane, in order.
    connection: [Vec<u64>; 2],
}

impl Received {
    fn take(&mut self, lane: Lane, envelope: &waxwing_protocol::frames::Envelope) {
        let here = &mut self.connection[lane as usize];
        let last = here.last().copied().unwrap_or(0);
        assert!(envelope.seq > last, "{} came after {last}", envelope.seq);
        assert_eq!(envelope.prev_seq, last, "the chain of a connection has no gap");
        here.push(envelope.seq);
        let (sender, n) = (envelope.from_account.to_vec(), number(envelope));
        if self.seen.insert((sender.clone(), n)) {
            self.by_sender.entry((sender, lane as i32)).or_default().push(n);
        }
    }
}

struct Life {
    node: TestNode,
    receiver: Person,
    senders: Vec<Person>,
    sending: Vec<Client>,
    receiving: Option<Client>,
    received: Received,
    /// Of each sender: how many messages it was told are stored; they are numbered from 1.
    stored: Vec<u64>,
    sends: Vec<Vec<Send>>,
}

impl Life {
    async fn begin() -> Self {
        let node = TestNode::start().await;
        let receiver = node.register("receiver").await;
        let mut senders = Vec::new();
        for n in 0..SENDERS {
            senders.push(node.register(&format!("sender-{n}")).await);
        }
        let stored = vec![0; SENDERS];
        let sends = vec![Vec::new(); SENDERS];
        let mut life = Self {
            node,
            receiver,
            senders,
            sending: Vec::new(),
            receiving: None,
            received: Received::default(),
            stored,
            sends,
        };
        life.connect_senders().await;
        life
    }

    async fn connect_senders(&mut self) {
        self.sending.clear();
        for person in &self.senders {
            self.sending.push(Client::connect(&self.node, person).await);
        }
    }

    async fn connect(&mut self, msgs: u32) {
        self.received.connection = Default::default();
        let hello = Hello { window: window(msgs), ..hello(&self.receiver) };
        self.receiving = Some(Client::connect_with(&self.node, &self.receiver, hello).await);
    }

    async fn step(&mut self, step: Step) {
        match step {
            Step::Race { each, urgent_every } => {
                let racing = self.sending.iter_mut().zip(&mut self.sends).zip(&mut self.stored);
                let receiver = &self.receiver;
                join_all(racing.map(|((client, sends), stored)| async move {
                    let mut ids = Vec::new();
                    for n in *stored + 1..=*stored + each {
                        let class = if n % urgent_every == 0 { Class::Call } else { Class::Message };
                        let send = Send { class: class.into(), ..message(receiver, n, &n.to_be_bytes()) };
                        ids.push(client.start_send(send.clone()).await);
                        sends.push(send);
                    }
                    for id in ids {
                        assert!(!client.answer(id).await.unwrap().duplicate);
                        *stored += 1;
                    }
                }))
                .await;
            }
            Step::Repeat(sender) => {
                if let Some(send) = self.sends[sender].last() {
                    assert!(self.sending[sender].send(send.clone()).await.unwrap().duplicate);
                }
            }
            Step::Connect(msgs) => self.connect(msgs).await,
            Step::Receive(count) => {
                let Some(client) = &mut self.receiving else { return };
                // A ping's answer comes after whatever was there to be sent: then nothing more is waited for.
                let mut taken = 0;
                client.put(ping()).await;
                while taken < count {
                    match client.next().await.unwrap().body {
                        Some(Body::Deliver(deliver)) => {
                            for (lane, envelope) in unfolded(deliver) {
                                self.received.take(lane, &envelope);
                                taken += 1;
                            }
                        }
                        Some(Body::Pong(_)) => break,
                        _ => {}
                    }
                }
            }
            Step::AckUpTo(percent) => {
                let Some(client) = &mut self.receiving else { return };
                for lane in [Lane::Normal, Lane::Urgent] {
                    let seqs = &self.received.connection[lane as usize];
                    let at = seqs.len() as u64 * percent / 100;
                    if let Some(seq) = (at as usize).checked_sub(1).map(|at| seqs[at]) {
                        client.ack(lane, seq).await;
                    }
                }
            }
            Step::AckLast => {
                let Some(client) = &mut self.receiving else { return };
                if let Some(seq) = self.received.connection[0].last() {
                    client.ack_ranges(Lane::Normal, 0, &[(*seq, *seq)]).await;
                }
            }
            Step::Crash => {
                self.receiving = None;
                self.node.crash_and_restart().await;
                self.connect_senders().await;
            }
        }
    }

    /// Receives and acks everything that is left, and compares.
    async fn end(mut self) {
        self.connect(16).await;
        let client = self.receiving.as_mut().unwrap();
        let mut empty = BTreeSet::new();
        while empty.len() < 2 {
            match client.next().await.unwrap().body {
                Some(Body::Deliver(deliver)) => {
                    for (lane, envelope) in unfolded(deliver) {
                        self.received.take(lane, &envelope);
                        client.ack(lane, envelope.seq).await;
                    }
                }
                Some(Body::QueueEmpty(lane)) => {
                    empty.insert(lane.lane);
                }
                _ => {}
            }
        }
        for (n, person) in self.senders.iter().enumerate() {
            let sender = person.account.as_bytes().to_vec();
            let came: BTreeSet<u64> =
                self.received.seen.iter().filter(|(from, _)| *from == sender).map(|(_, n)| *n).collect();
            assert_eq!(came, (1..=self.stored[n]).collect(), "what was stored came, and nothing else");
            for lane in [Lane::Normal, Lane::Urgent] {
                let order = self.received.by_sender.remove(&(sender.clone(), lane as i32)).unwrap_or_default();
                assert!(order.is_sorted(), "a sender's messages of a lane keep their order: {order:?}");
            }
        }
        // And all of it is gone now.
        let client = self.receiving.as_mut().unwrap();
        client.settled(&self.senders[0], u64::MAX).await;
        let mut again = Client::connect(&self.node, &self.receiver).await;
        assert_eq!(again.drained().await.0.len(), 0);
    }
}

fn ping() -> waxwing_protocol::frames::Frame {
    waxwing_protocol::frames::Frame::with_id(7, Body::Ping(waxwing_protocol::frames::Ping { nonce: 7 }))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, max_shrink_iters: 40, ..ProptestConfig::default() })]

    #[test]
    fn nothing_is_lost_overtaken_or_invented(steps in prop::collection::vec(step(), 1..30)) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async move {
            let mut life = Life::begin().await;
            for step in steps {
                life.step(step).await;
            }
            life.end().await;
        });
    }
}
