//! Where one JSON value ends in a stream of bytes (RFC 8259), however the bytes are cut: a pushdown automaton that looks at each byte once.
//!
//! Owns the grammar and nothing else: it keeps no bytes, builds no values, and leaves UTF-8 inside strings to whoever reads the message.

#[cfg(test)]
mod tests;

/// How deep arrays and objects may lie in each other.
pub(super) const MAX_DEPTH: u32 = 128;

/// What the bytes given so far amount to. Positions are relative to those given last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// No message has ended; every byte was taken.
    NeedMore,
    /// A message ends before this position; the bytes from there on were not looked at.
    Message(usize),
    /// The byte at this position cannot stand there.
    Violation {
        /// Where the byte is.
        at: usize,
        /// What is wrong, or would have been right.
        fault: &'static str,
        /// The message began on the line that it is broken on, so that the next line begins anew.
        resumable: bool,
    },
}

/// Finds the ends of messages.
#[derive(Debug)]
pub(super) struct Framer {
    state: State,
    depth: u32,
    /// One bit for each level that is open, the innermost lowest: set for an object.
    objects: u128,
    /// A newline has come since the message began.
    several_lines: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Between messages.
    Start,
    /// A value must come.
    Value,
    /// After `[`: a value, or the end of the array.
    FirstItem,
    /// After `{`: a key, or the end of the object.
    FirstKey,
    /// After `,` in an object.
    Key,
    /// After a key.
    Colon,
    /// After a value in an array or object.
    After,
    /// In a string.
    Text(Text),
    /// After a backslash.
    Escape(Text),
    /// In `\uXXXX`, with so many digits to come.
    Unicode(Text, u8),
    /// In a number.
    Number(Number),
    /// In `true`, `false` or `null`, with these letters to come.
    Literal(&'static [u8]),
}

/// Whether a string is a key or a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Text {
    Key,
    Value,
}

/// How much of a number has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Number {
    Minus,
    Zero,
    Integer,
    Point,
    Fraction,
    Exponent,
    ExponentSign,
    ExponentDigits,
}

/// What one byte does.
enum Next {
    Go(State),
    /// It ends a value.
    ValueEnds,
    /// The value ended before it: it is looked at again.
    ValueEnded,
    Open {
        object: bool,
    },
    Bad(&'static str),
}

use Next::{Bad, Go, Open, ValueEnded, ValueEnds};

impl Framer {
    /// Between messages.
    pub(super) const fn new() -> Self {
        Self { state: State::Start, depth: 0, objects: 0, several_lines: false }
    }

    /// Whether no message has begun.
    pub(super) fn is_between(&self) -> bool {
        self.state == State::Start
    }

    /// Looks at more bytes, up to the end of a message. After a violation it is between messages.
    pub(super) fn feed(&mut self, bytes: &[u8]) -> Step {
        let mut at = 0;
        while let Some(&byte) = bytes.get(at) {
            match self.next(byte) {
                Go(state) => self.state = state,
                Open { object } if self.depth < MAX_DEPTH => self.open(object),
                Open { .. } => return self.violation(at, "nested deeper than 128 levels"),
                ValueEnds => {
                    if self.value_ends() {
                        return Step::Message(at + 1);
                    }
                }
                ValueEnded => {
                    if self.value_ends() {
                        return Step::Message(at);
                    }
                    continue;
                }
                Bad(fault) => return self.violation(at, fault),
            }
            self.several_lines |= byte == b'\n' && self.state != State::Start;
            at += 1;
            if let State::Text(_) = self.state {
                at += bytes.get(at..).map_or(0, plain);
            }
        }
        Step::NeedMore
    }

    /// Whether the end of the input ends a message too, as it does with a number.
    pub(super) fn ends_message(&self) -> bool {
        self.depth == 0
            && match self.state {
                State::Number(number) => number.may_end(),
                State::Literal(rest) => rest.is_empty(),
                _ => false,
            }
    }

    /// Forgets the message that has begun.
    pub(super) fn reset(&mut self) {
        *self = Self::new();
    }

    fn violation(&mut self, at: usize, fault: &'static str) -> Step {
        let resumable = !self.several_lines;
        self.reset();
        Step::Violation { at, fault, resumable }
    }

    fn open(&mut self, object: bool) {
        self.depth += 1;
        self.objects = self.objects << 1 | u128::from(object);
        self.state = if object { State::FirstKey } else { State::FirstItem };
    }

    /// A value has ended: says whether it was the message.
    fn value_ends(&mut self) -> bool {
        if self.depth == 0 {
            self.reset();
            return true;
        }
        self.state = State::After;
        false
    }

    fn next(&mut self, byte: u8) -> Next {
        match self.state {
            State::Text(text) => in_text(text, byte),
            State::Escape(text) => match byte {
                b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => Go(State::Text(text)),
                b'u' => Go(State::Unicode(text, 4)),
                _ => Bad("expected one of \" \\ / b f n r t u after a backslash"),
            },
            State::Unicode(text, 1) if byte.is_ascii_hexdigit() => Go(State::Text(text)),
            State::Unicode(text, more) if byte.is_ascii_hexdigit() => Go(State::Unicode(text, more - 1)),
            State::Unicode(..) => Bad("expected four hexadecimal digits after \\u"),
            State::Number(number) => self.scalar_ends(number.next(byte), byte),
            State::Literal([]) => self.scalar_ends(ValueEnded, byte),
            State::Literal([due, rest @ ..]) if byte == *due => Go(State::Literal(rest)),
            State::Literal(_) => Bad("expected true, false or null"),
            _ if matches!(byte, b' ' | b'\t' | b'\n' | b'\r') => Go(self.state),
            State::FirstItem if byte == b']' => self.close(),
            State::Start | State::Value | State::FirstItem => value(byte),
            State::FirstKey if byte == b'}' => self.close(),
            State::FirstKey | State::Key if byte == b'"' => Go(State::Text(Text::Key)),
            State::FirstKey => Bad("expected a key in quotation marks, or }"),
            State::Key => Bad("expected a key in quotation marks"),
            State::Colon if byte == b':' => Go(State::Value),
            State::Colon => Bad("expected a colon"),
            State::After => self.after(byte),
        }
    }

    fn after(&mut self, byte: u8) -> Next {
        let in_object = self.objects & 1 == 1;
        match byte {
            b',' if in_object => Go(State::Key),
            b',' => Go(State::Value),
            b'}' if in_object => self.close(),
            b']' if !in_object => self.close(),
            _ if in_object => Bad("expected a comma or }"),
            _ => Bad("expected a comma or ]"),
        }
    }

    fn close(&mut self) -> Next {
        self.depth = self.depth.saturating_sub(1);
        self.objects >>= 1;
        ValueEnds
    }

    /// A number or literal that is a message ends where something else may begin, as in `1 2` or `1{}`, and not in `1x`.
    fn scalar_ends(&self, next: Next, byte: u8) -> Next {
        let delimits =
            matches!(byte, b' ' | b'\t' | b'\n' | b'\r' | b'"' | b'[' | b']' | b'{' | b'}' | b',' | b':');
        match next {
            ValueEnded if self.depth == 0 && !delimits => Bad("expected white space after a value"),
            next => next,
        }
    }
}

impl Number {
    fn may_end(self) -> bool {
        matches!(self, Self::Zero | Self::Integer | Self::Fraction | Self::ExponentDigits)
    }

    fn next(self, byte: u8) -> Next {
        let number = match (self, byte) {
            (Self::Minus, b'0') => Self::Zero,
            (Self::Minus | Self::Integer, b'0'..=b'9') => Self::Integer,
            (Self::Zero | Self::Integer, b'.') => Self::Point,
            (Self::Point | Self::Fraction, b'0'..=b'9') => Self::Fraction,
            (Self::Zero | Self::Integer | Self::Fraction, b'e' | b'E') => Self::Exponent,
            (Self::Exponent, b'+' | b'-') => Self::ExponentSign,
            (Self::Exponent | Self::ExponentSign | Self::ExponentDigits, b'0'..=b'9') => Self::ExponentDigits,
            (Self::Zero, b'0'..=b'9') => return Bad("a digit after a leading 0"),
            (number, _) if number.may_end() => return ValueEnded,
            _ => return Bad("expected a digit"),
        };
        Go(State::Number(number))
    }
}

fn value(byte: u8) -> Next {
    match byte {
        b'{' => Open { object: true },
        b'[' => Open { object: false },
        b'"' => Go(State::Text(Text::Value)),
        b'-' => Go(State::Number(Number::Minus)),
        b'0' => Go(State::Number(Number::Zero)),
        b'1'..=b'9' => Go(State::Number(Number::Integer)),
        b't' => Go(State::Literal(b"rue")),
        b'f' => Go(State::Literal(b"alse")),
        b'n' => Go(State::Literal(b"ull")),
        _ => Bad("expected a JSON value"),
    }
}

fn in_text(text: Text, byte: u8) -> Next {
    match (byte, text) {
        (b'"', Text::Key) => Go(State::Colon),
        (b'"', Text::Value) => ValueEnds,
        (b'\\', _) => Go(State::Escape(text)),
        (0..0x20, _) => Bad("a control character inside a string"),
        _ => Go(State::Text(text)),
    }
}

/// How many bytes of a string come before one that means something.
fn plain(bytes: &[u8]) -> usize {
    bytes.iter().position(|byte| matches!(byte, b'"' | b'\\' | 0..0x20)).unwrap_or(bytes.len())
}
