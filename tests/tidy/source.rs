//! A file of Rust as tokens with their places, and the modules that it names. Knows no rule.

use proc_macro2::{Delimiter, TokenStream, TokenTree};

/// A token with its place.
#[derive(Debug)]
pub(super) struct Token {
    pub(super) text: String,
    pub(super) line: usize,
    /// How many modules it is in.
    depth: usize,
    /// Whether it is compiled for tests alone.
    pub(super) test: bool,
}

/// A file, and where it stands.
pub(super) struct Source<'a> {
    pub(super) path: &'a str,
    pub(super) text: &'a str,
    pub(super) tokens: Vec<Token>,
}

impl<'a> Source<'a> {
    pub(super) fn new(path: &'a str, text: &'a str) -> Self {
        let stream: TokenStream = text.parse().unwrap_or_else(|error| panic!("{path}: {error}"));
        let mut tokens = Vec::new();
        let place = (modules(path).len(), !path.starts_with("src/") || path.contains("/tests"));
        flatten(stream, place, &mut tokens);
        Self { path, text, tokens }
    }

    /// The module right below the crate's root; nothing for the root itself and for what is outside of `src/`.
    pub(super) fn module(&self) -> Option<&'a str> {
        if self.path == "src/main.rs" { Some("main") } else { modules(self.path).first().copied() }
    }

    pub(super) fn text_at(&self, at: usize) -> &str {
        self.tokens.get(at).map_or("", |token| &token.text)
    }

    /// Whether the tokens from here on are these.
    pub(super) fn reads(&self, at: usize, expected: &[&str]) -> bool {
        expected.iter().enumerate().all(|(offset, text)| self.text_at(at + offset) == *text)
    }

    /// The names that a path, or each path of a braced list, goes on with.
    pub(super) fn names_at(&self, at: usize) -> Vec<&str> {
        if self.text_at(at) != "{" {
            return vec![self.text_at(at)];
        }
        let mut depth = 0_usize;
        let mut names = Vec::new();
        for (offset, token) in self.tokens.iter().enumerate().skip(at) {
            match token.text.as_str() {
                "{" => depth += 1,
                "}" => depth -= 1,
                _ => {}
            }
            if depth == 0 {
                break;
            }
            if depth == 1 && ["{", ","].contains(&token.text.as_str()) && self.text_at(offset + 1) != "}" {
                names.push(self.text_at(offset + 1));
            }
        }
        names
    }

    /// The modules below the crate's root that this file names, with the lines.
    pub(super) fn uses(&self) -> Vec<(&str, usize)> {
        let mut found = Vec::new();
        for (at, token) in self.tokens.iter().enumerate() {
            let mut next = at + 1;
            match token.text.as_str() {
                "crate" => {}
                "sidekeep" if self.path == "src/main.rs" => {}
                "super" if at == 0 || self.text_at(at - 1) != "::" => {
                    while self.reads(next, &["::", "super"]) {
                        next += 2;
                    }
                    if (next - at).div_ceil(2) != token.depth {
                        continue;
                    }
                }
                // A path in an attribute's text.
                text => {
                    if let Some(path) = text.strip_prefix("\"crate::") {
                        found.push((path.split([':', '"']).next().unwrap_or_default(), token.line));
                    }
                    continue;
                }
            }
            if self.text_at(next) == "::" {
                found.extend(self.names_at(next + 1).into_iter().map(|name| (name, token.line)));
            }
        }
        found
    }
}

/// The modules that a file of `src/` stands for: none for the crate's root.
fn modules(path: &str) -> Vec<&str> {
    let inside = path.strip_prefix("src/").and_then(|path| path.strip_suffix(".rs"));
    let mut parts: Vec<&str> = inside.into_iter().flat_map(|path| path.split('/')).collect();
    if matches!(parts.last(), Some(&("mod" | "lib" | "main"))) {
        parts.pop();
    }
    parts
}

/// Appends the tokens, in their order; the delimiters of a group are tokens, and so is `::`.
fn flatten(stream: TokenStream, (depth, test): (usize, bool), tokens: &mut Vec<Token>) {
    let trees: Vec<TokenTree> = stream.into_iter().collect();
    let mut test_item = false;
    for (at, tree) in trees.iter().enumerate() {
        let before = |back: usize| at.checked_sub(back).and_then(|at| trees.get(at)).map(ToString::to_string);
        let line = tree.span().start().line;
        let test = test || test_item;
        match tree {
            TokenTree::Group(group) => {
                let (open, close) = match group.delimiter() {
                    Delimiter::Parenthesis => ("(", ")"),
                    Delimiter::Brace => ("{", "}"),
                    Delimiter::Bracket => ("[", "]"),
                    Delimiter::None => ("", ""),
                };
                let module = open == "{" && before(2).as_deref() == Some("mod");
                tokens.push(Token { text: open.into(), line, depth, test });
                flatten(group.stream(), (depth + usize::from(module), test), tokens);
                tokens.push(Token { text: close.into(), line: group.span_close().start().line, depth, test });
                let attribute = open == "[" && before(1).as_deref() == Some("#");
                test_item = (test_item && open != "{")
                    || (attribute && group.stream().to_string().replace(' ', "") == "cfg(test)");
            }
            TokenTree::Punct(punct) if punct.as_char() == ':' && before(1).as_deref() == Some(":") => {
                match tokens.last_mut() {
                    Some(last) if last.text == ":" => last.text.push(':'),
                    _ => tokens.push(Token { text: ":".into(), line, depth, test }),
                }
            }
            other => {
                tokens.push(Token { text: other.to_string(), line, depth, test });
                test_item &= other.to_string() != ";";
            }
        }
    }
}
