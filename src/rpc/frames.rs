//! Messages out of the bytes of a connection: where each lies, what is too long, what is broken and where to go on after it.
//!
//! Owns positions, never bytes.

use std::ops::Range;

use super::framing::{Framer, Step};

/// What comes next in the bytes. Positions are relative to the bytes given.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Frame {
    /// A message lies here.
    Message(Range<usize>),
    /// No message is complete; this many bytes are done with, and the others are to be given again with more behind them.
    More {
        /// How many bytes are done with.
        used: usize,
    },
    /// Not JSON.
    Broken {
        /// How many bytes are done with.
        used: usize,
        /// Which byte of the message is wrong.
        offset: usize,
        /// What is wrong with it.
        fault: &'static str,
        /// Whether the rest of the line is skipped, and the next one can be read.
        resumable: bool,
    },
    /// A message, or the rest of a broken line, is over the limit. Nothing can be read after it.
    TooLong,
}

/// What the end of the input makes of the bytes that are left.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Rest {
    /// No message had begun.
    Nothing,
    /// They are a message.
    Message,
    /// They are the beginning of a message.
    Unfinished,
}

/// How far the bytes of a connection are understood.
#[derive(Debug)]
pub(super) struct Frames {
    framer: Framer,
    /// How many bytes of the message that has begun were looked at.
    scanned: usize,
    /// How many bytes of a broken line were skipped, while one is.
    skipped: Option<usize>,
    max: usize,
}

impl Frames {
    /// For messages of at most so many bytes.
    pub(super) fn new(max: usize) -> Self {
        Self { framer: Framer::new(), scanned: 0, skipped: None, max }
    }

    /// Whether a message has begun and not ended, or a broken line is being skipped.
    pub(super) fn is_unfinished(&self) -> bool {
        self.skipped.is_some() || !self.framer.is_between()
    }

    /// Finds what comes next. `bytes` begins with the message that has begun, if one has.
    pub(super) fn next(&mut self, bytes: &[u8]) -> Frame {
        let mut start = 0;
        if let Some(skipped) = self.skipped {
            let Some(newline) = bytes.iter().position(|byte| *byte == b'\n') else {
                self.skipped = Some(skipped.saturating_add(bytes.len()));
                let too_long = skipped.saturating_add(bytes.len()) > self.max;
                return if too_long { Frame::TooLong } else { Frame::More { used: bytes.len() } };
            };
            self.skipped = None;
            start = newline + 1;
        }
        if self.framer.is_between() {
            let rest = bytes.get(start..).unwrap_or_default();
            start += rest.iter().take_while(|byte| matches!(byte, b' ' | b'\t' | b'\n' | b'\r')).count();
        }
        let seen = start + self.scanned;
        match self.framer.feed(bytes.get(seen..).unwrap_or_default()) {
            Step::NeedMore => {
                self.scanned = bytes.len().saturating_sub(start);
                if self.scanned > self.max { Frame::TooLong } else { Frame::More { used: start } }
            }
            Step::Message(end) => {
                let end = seen + end;
                self.scanned = 0;
                if end - start > self.max { Frame::TooLong } else { Frame::Message(start..end) }
            }
            Step::Violation { at, fault, resumable } => {
                let at = seen + at;
                self.scanned = 0;
                self.skipped = resumable.then_some(0);
                Frame::Broken { used: at, offset: at - start, fault, resumable }
            }
        }
    }

    /// The input has ended. Only right when `next` last said that there is no more.
    pub(super) fn end(&mut self) -> Rest {
        if self.framer.ends_message() {
            Rest::Message
        } else if self.framer.is_between() {
            Rest::Nothing
        } else {
            Rest::Unfinished
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Frame, Frames, Rest};

    #[test]
    fn messages_lie_between_white_space() {
        let mut frames = Frames::new(100);
        let bytes = b" \n{\"a\":1} [2]  ";
        assert_eq!(frames.next(bytes), Frame::Message(2..9));
        assert_eq!(frames.next(&bytes[9..]), Frame::Message(1..4));
        assert_eq!(frames.next(&bytes[13..]), Frame::More { used: 2 });
        assert_eq!(frames.end(), Rest::Nothing);
    }

    #[test]
    fn a_message_is_looked_at_once() {
        let mut frames = Frames::new(100);
        assert_eq!(frames.next(b" [1,"), Frame::More { used: 1 });
        assert_eq!(frames.next(b"[1, 2"), Frame::More { used: 0 });
        assert!(frames.is_unfinished());
        assert_eq!(frames.next(b"[1, 2] 7"), Frame::Message(0..6));
        assert_eq!(frames.next(b" 7"), Frame::More { used: 1 });
        assert_eq!(frames.end(), Rest::Message);
    }

    #[test]
    fn a_broken_line_is_skipped() {
        let mut frames = Frames::new(100);
        let fault = "expected a JSON value";
        assert_eq!(frames.next(b"[1,}"), Frame::Broken { used: 3, offset: 3, fault, resumable: true });
        assert_eq!(frames.next(b"} and"), Frame::More { used: 5 });
        assert!(frames.is_unfinished());
        assert_eq!(frames.next(b" more\n {}"), Frame::Message(7..9));
    }

    #[test]
    fn length_is_bounded_also_while_skipping() {
        let mut frames = Frames::new(4);
        assert_eq!(frames.next(b"[123]"), Frame::TooLong);
        let mut frames = Frames::new(4);
        assert_eq!(frames.next(b"[123"), Frame::More { used: 0 });
        assert_eq!(frames.next(b"[1234"), Frame::TooLong);
        let mut frames = Frames::new(4);
        assert!(matches!(frames.next(b"}"), Frame::Broken { used: 0, .. }));
        assert_eq!(frames.next(b"}abc"), Frame::More { used: 4 });
        assert_eq!(frames.next(b"d"), Frame::TooLong);
    }
}
