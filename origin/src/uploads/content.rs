//! A request's content, before it is taken in: what of it is wanted.

use bytes::Bytes;
use futures_util::stream::{self, StreamExt as _};

use super::{Content, ContentError};

/// `content` without its first `known` bytes, which we hold.
pub(super) fn after(content: Content, known: u64) -> Content {
    let pieces = content.scan(known, |known, piece| {
        let piece = piece.map(|mut piece: Bytes| {
            let passed = usize::try_from(*known).map_or(piece.len(), |known| known.min(piece.len()));
            *known -= passed as u64;
            piece.split_off(passed)
        });
        std::future::ready(Some(piece))
    });
    pieces.boxed()
}

/// `content` that breaks off where more than `bytes` come: whoever announced less is not believed.
pub(crate) fn at_most(content: Content, bytes: u64) -> Content {
    let pieces = content.scan(Some(bytes), |left, piece| {
        let Some(room) = *left else { return std::future::ready(None) };
        let piece = match piece {
            Ok(piece) if piece.len() as u64 <= room => {
                *left = Some(room - piece.len() as u64);
                stream::iter(vec![Ok(piece)])
            }
            Ok(mut piece) => {
                *left = None;
                piece.truncate(usize::try_from(room).unwrap_or(usize::MAX));
                stream::iter(vec![Ok(piece), Err(ContentError)])
            }
            Err(error) => {
                *left = None;
                stream::iter(vec![Err(error)])
            }
        };
        std::future::ready(Some(piece))
    });
    pieces.flatten().boxed()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(pieces: &[&'static str]) -> Content {
        let pieces: Vec<_> = pieces.iter().map(|piece| Ok(Bytes::from_static(piece.as_bytes()))).collect();
        stream::iter(pieces).boxed()
    }

    async fn read(content: Content) -> (String, bool) {
        let pieces: Vec<_> = content.collect().await;
        let whole = pieces.iter().all(Result::is_ok);
        (pieces.into_iter().flatten().map(|piece| String::from_utf8(piece.to_vec()).unwrap()).collect(), whole)
    }

    #[tokio::test]
    async fn what_is_known_is_passed_over_wherever_pieces_end() {
        for (known, rest) in [(0, "abcdef"), (1, "bcdef"), (2, "cdef"), (3, "def"), (5, "f"), (6, ""), (9, "")] {
            assert_eq!(read(after(content(&["ab", "", "cd", "ef"]), known)).await, (rest.to_owned(), true));
        }
    }

    #[tokio::test]
    async fn more_than_was_announced_breaks_off() {
        assert_eq!(read(at_most(content(&["ab", "cd"]), 4)).await, ("abcd".into(), true));
        assert_eq!(read(at_most(content(&["ab", "cd"]), 3)).await, ("abc".into(), false));
        assert_eq!(read(at_most(content(&["ab", "cd"]), 2)).await, ("ab".into(), false));
        assert_eq!(read(at_most(content(&["ab"]), 3)).await, ("ab".into(), true));
    }
}
