//! Meetings: where a new device and one of the account exchange two sealed messages, before the new one is anybody.
//!
//! Neither can reach the other yet: the new device has no account and the old one does not know of it. So each leaves
//! what it has to say here, under a name derived from the code that a person carries from one screen to the other. The
//! server sees two ciphertexts under a name that it cannot trace to the code; who changes or makes them up is found out
//! by the device that opens them.
//!
//! Memory only: a meeting lasts minutes, and whoever finds nothing here says again what it said.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use waxwing_protocol::api::SEALED_BYTES_MAX;
use waxwing_protocol::{LinkId, Timestamp};

/// How long a meeting lasts after something was last said.
const LIFETIME: Duration = Duration::from_secs(10 * 60);

/// Meetings at a time: with both halves at their largest, 32 MiB.
const LINKS_MAX: usize = 1024;

/// The meetings of this process.
#[derive(Debug, Default)]
pub(crate) struct Links {
    by_id: Mutex<HashMap<LinkId, Link>>,
}

#[derive(Debug)]
struct Link {
    offer: Vec<u8>,
    answer: watch::Sender<Option<Vec<u8>>>,
    ends_at: Timestamp,
}

/// Why something was not left at a meeting.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum LinkError {
    #[error("nobody waits under this code, or no longer")]
    NotFound,
    #[error("something else was said under this code")]
    Taken,
    #[error("at most 16 KiB")]
    TooLarge,
    #[error("too many devices are being linked")]
    TooMany,
}

impl Links {
    /// Leaves what a new device offers. The same again keeps the meeting alive.
    pub(crate) fn offer(&self, id: LinkId, offer: Vec<u8>, now: Timestamp) -> Result<(), LinkError> {
        check(&offer)?;
        let mut links = self.lock(now);
        let (ends_at, full) = (now.plus(LIFETIME), links.len() >= LINKS_MAX);
        match links.get_mut(&id) {
            Some(link) if link.offer == offer => link.ends_at = ends_at,
            Some(_) => return Err(LinkError::Taken),
            None if full => return Err(LinkError::TooMany),
            None => drop(links.insert(id, Link { offer, answer: watch::Sender::new(None), ends_at })),
        }
        Ok(())
    }

    /// What the new device offered.
    pub(crate) fn offered(&self, id: LinkId, now: Timestamp) -> Result<Vec<u8>, LinkError> {
        self.lock(now).get(&id).map(|link| link.offer.clone()).ok_or(LinkError::NotFound)
    }

    /// Leaves the answer to it. The first answer stands.
    pub(crate) fn answer(&self, id: LinkId, answer: Vec<u8>, now: Timestamp) -> Result<(), LinkError> {
        check(&answer)?;
        let mut links = self.lock(now);
        let link = links.get_mut(&id).ok_or(LinkError::NotFound)?;
        link.ends_at = now.plus(LIFETIME);
        let standing = link.answer.borrow().clone();
        match standing {
            Some(standing) if standing != answer => Err(LinkError::Taken),
            _ => {
                link.answer.send_replace(Some(answer));
                Ok(())
            }
        }
    }

    /// Waits for the answer, for `limit` at most; `None` when there is none yet.
    pub(crate) async fn answered(
        &self,
        id: LinkId,
        now: Timestamp,
        limit: Duration,
    ) -> Result<Option<Vec<u8>>, LinkError> {
        let mut answers = self.lock(now).get(&id).ok_or(LinkError::NotFound)?.answer.subscribe();
        let answered = tokio::time::timeout(limit, answers.wait_for(Option::is_some)).await;
        match answered {
            Ok(Ok(answer)) => Ok(answer.clone()),
            // The meeting ended while somebody waited.
            Ok(Err(_)) => Err(LinkError::NotFound),
            Err(_) => Ok(None),
        }
    }

    /// The meetings that have not ended by `now`.
    fn lock(&self, now: Timestamp) -> MutexGuard<'_, HashMap<LinkId, Link>> {
        let mut links = self.by_id.lock().unwrap_or_else(PoisonError::into_inner);
        links.retain(|_, link| link.ends_at > now);
        links
    }
}

fn check(sealed: &[u8]) -> Result<(), LinkError> {
    if sealed.len() > SEALED_BYTES_MAX { Err(LinkError::TooLarge) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_secs(1_000_000);

    fn id(n: u16) -> LinkId {
        let mut bytes = [0; 16];
        bytes[..2].copy_from_slice(&n.to_be_bytes());
        LinkId::from_bytes(bytes)
    }

    #[tokio::test]
    async fn what_was_said_first_stands_until_the_meeting_ends() {
        let links = Links::default();
        assert_eq!(links.offered(id(1), NOW), Err(LinkError::NotFound));
        assert_eq!(links.answer(id(1), b"answer".to_vec(), NOW), Err(LinkError::NotFound));
        for _again in 0..2 {
            assert_eq!(links.offer(id(1), b"offer".to_vec(), NOW), Ok(()));
        }
        assert_eq!(links.offer(id(1), b"other".to_vec(), NOW), Err(LinkError::Taken));
        assert_eq!(links.offered(id(1), NOW).as_deref(), Ok(&b"offer"[..]));
        assert_eq!(links.answered(id(1), NOW, Duration::ZERO).await, Ok(None));
        assert_eq!(links.answer(id(1), b"answer".to_vec(), NOW), Ok(()));
        assert_eq!(links.answer(id(1), b"another".to_vec(), NOW), Err(LinkError::Taken));
        assert_eq!(links.answered(id(1), NOW, Duration::ZERO).await, Ok(Some(b"answer".to_vec())));
        assert_eq!(links.offered(id(1), NOW.plus(LIFETIME)), Err(LinkError::NotFound));
    }

    #[test]
    fn meetings_are_bounded_in_number_and_size() {
        let links = Links::default();
        assert_eq!(links.offer(id(0), vec![0; SEALED_BYTES_MAX + 1], NOW), Err(LinkError::TooLarge));
        for n in 0..LINKS_MAX {
            assert_eq!(links.offer(id(n as u16), Vec::new(), NOW), Ok(()));
        }
        assert_eq!(links.offer(id(u16::MAX), Vec::new(), NOW), Err(LinkError::TooMany));
        assert_eq!(links.offer(id(u16::MAX), Vec::new(), NOW.plus(LIFETIME)), Ok(()));
    }
}
