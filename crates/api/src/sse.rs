//! Reading Server-Sent Events (WHATWG HTML, 9.2), with bounds. Comments are kept: the server says
//! with one that a stream ended because there is nothing more, which other clients ignore.

/// One event.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Message {
    /// Its name; `message` when the server gave none.
    pub event: String,
    /// Its data, lines joined by newlines.
    pub data: String,
    /// The last id seen so far, this event's included.
    pub id: Option<String>,
}

/// What was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    /// An event.
    Message(Message),
    /// A comment, without its colon and first space.
    Comment(String),
}

/// The comment with which the server says that a stream is complete.
pub const END: &str = "end";

/// An event or line larger than this is an error.
const LONGEST: usize = 4 << 20;

/// The stream broke its bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the server sent an event larger than 4 MiB")]
pub struct TooLarge;

/// Takes bytes as they come and gives items.
#[derive(Debug, Default)]
pub struct Parser {
    line: Vec<u8>,
    after_cr: bool,
    event: String,
    data: String,
    has_data: bool,
    id: Option<String>,
}

impl Parser {
    /// Items completed by these bytes.
    ///
    /// # Errors
    /// [`TooLarge`]; the parser is of no more use then.
    pub fn push(&mut self, bytes: &[u8]) -> Result<Vec<Item>, TooLarge> {
        let mut items = Vec::new();
        for &byte in bytes {
            let was_cr = std::mem::replace(&mut self.after_cr, byte == b'\r');
            match byte {
                b'\n' if was_cr => {}
                b'\r' | b'\n' => {
                    let line = std::mem::take(&mut self.line);
                    self.end_line(&String::from_utf8_lossy(&line), &mut items);
                }
                byte => self.line.push(byte),
            }
            if self.line.len() + self.data.len() > LONGEST {
                return Err(TooLarge);
            }
        }
        Ok(items)
    }

    fn end_line(&mut self, line: &str, items: &mut Vec<Item>) {
        if line.is_empty() {
            let event = std::mem::take(&mut self.event);
            let data = std::mem::take(&mut self.data);
            if std::mem::take(&mut self.has_data) {
                items.push(Item::Message(Message {
                    event: if event.is_empty() {
                        "message".to_owned()
                    } else {
                        event
                    },
                    data,
                    id: self.id.clone(),
                }));
            }
            return;
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "" => items.push(Item::Comment(value.to_owned())),
            "event" => self.event = value.to_owned(),
            "data" => {
                if std::mem::replace(&mut self.has_data, true) {
                    self.data.push('\n');
                }
                self.data.push_str(value);
            }
            "id" if !value.contains('\0') => self.id = Some(value.to_owned()),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_survive_any_cut() {
        let text =
            b": hello\r\nid: 7\r\nevent: progress\r\ndata: a\r\ndata:  b\r\n\r\ndata\n\n: end\n\n";
        let mut whole = Parser::default();
        let expected = whole.push(text).expect("small");
        assert_eq!(expected.len(), 4);
        assert_eq!(
            expected[1],
            Item::Message(Message {
                event: "progress".into(),
                data: "a\n b".into(),
                id: Some("7".into())
            })
        );
        for cut in 0..text.len() {
            let mut parser = Parser::default();
            let mut items = parser.push(&text[..cut]).expect("small");
            items.extend(parser.push(&text[cut..]).expect("small"));
            assert_eq!(items, expected, "cut at {cut}");
        }
    }

    #[test]
    fn endless_lines_are_refused() {
        let mut parser = Parser::default();
        let piece = vec![b'x'; 1 << 20];
        assert!((0..6).any(|_| parser.push(&piece).is_err()));
    }
}
