//! Where everything a command says goes: data to stdout in the format that was asked for, progress and
//! words to stderr. The only place that writes to either.

use super::args::{Global, OutputFormat};
use super::failure::CliError;
use super::text::one_line;
use comfy_table::{Attribute, Cell, Color, ContentArrangement, Table, presets};
use serde::Serialize;
use std::io::{self, IsTerminal, Write};

/// Whether something is coloured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Colour {
    /// Yes.
    On,
    /// No.
    Off,
}

/// How much is said besides data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Chatter {
    /// Progress and messages.
    Normal,
    /// Errors alone; lists print ids.
    Quiet,
}

/// Which of this process's outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stream {
    /// Data.
    Stdout,
    /// The rest.
    Stderr,
}

/// What a cell of a table looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Look {
    /// As it is.
    Plain,
    /// It works.
    Good,
    /// It waits or is in between.
    Waiting,
    /// It failed.
    Bad,
    /// Less important.
    Dim,
}

/// A cell: text, made safe, and its look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Field {
    text: String,
    look: Look,
}

impl Field {
    /// Text that anybody may have written.
    pub(crate) fn new(text: impl AsRef<str>) -> Self {
        Field {
            text: one_line(text.as_ref()),
            look: Look::Plain,
        }
    }

    /// With a look.
    pub(crate) fn looking(mut self, look: Look) -> Self {
        self.look = look;
        self
    }
}

/// Something that lists show.
pub(crate) trait Row: Serialize {
    /// The heads of its columns.
    fn heads(detail: Detail) -> Vec<&'static str>;
    /// Its cells, as many as there are heads.
    fn cells(&self, detail: Detail) -> Vec<Field>;
    /// What people call it: the line of `-o name`.
    fn name(&self) -> String;
    /// What scripts call it: the line of `-q`.
    fn id(&self) -> String {
        self.name()
    }
}

/// How much a table shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Detail {
    /// What fits.
    Short,
    /// What fits, and nothing cut.
    Untruncated,
    /// Everything.
    Wide,
}

/// Where a command's words and data go.
#[derive(Debug, Clone)]
pub(crate) struct Output {
    format: Option<OutputFormat>,
    chatter: Chatter,
    colour: Colour,
    error_colour: Colour,
}

/// Whether a stream takes colours: it is a terminal that can, and nobody said no
/// (<https://no-color.org>).
fn colour_of(is_terminal: bool, no_color_option: bool) -> Colour {
    let refused = no_color_option
        || std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
        || std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    if is_terminal && !refused {
        Colour::On
    } else {
        Colour::Off
    }
}

impl Output {
    /// As the options say.
    pub(crate) fn new(global: &Global) -> Self {
        Output {
            format: global.output,
            chatter: if global.quiet {
                Chatter::Quiet
            } else {
                Chatter::Normal
            },
            colour: colour_of(io::stdout().is_terminal(), global.no_color),
            error_colour: colour_of(io::stderr().is_terminal(), global.no_color),
        }
    }

    /// The format, where the command's own default is `default`.
    pub(crate) fn format(&self, default: OutputFormat) -> OutputFormat {
        self.format.unwrap_or(default)
    }

    /// How much is said.
    pub(crate) fn chatter(&self) -> Chatter {
        self.chatter
    }

    /// Whether stdout is a terminal.
    pub(crate) fn to_terminal(&self) -> bool {
        io::stdout().is_terminal()
    }

    /// Bytes, as they are.
    pub(crate) fn bytes(&self, stream: Stream, bytes: &[u8]) -> Result<(), CliError> {
        fn put(mut to: impl Write, bytes: &[u8]) -> io::Result<()> {
            to.write_all(bytes)?;
            to.flush()
        }
        match stream {
            Stream::Stdout => put(io::stdout().lock(), bytes),
            Stream::Stderr => put(io::stderr().lock(), bytes),
        }
        .map_err(CliError::Output)
    }

    /// A line of data.
    pub(crate) fn line(&self, text: impl AsRef<str>) -> Result<(), CliError> {
        let mut line = text.as_ref().to_owned();
        line.push('\n');
        self.bytes(Stream::Stdout, line.as_bytes())
    }

    /// Words for people, unless they asked for quiet.
    pub(crate) fn note(&self, text: impl AsRef<str>) {
        if self.chatter == Chatter::Normal {
            self.say(&one_line(text.as_ref()));
        }
    }

    /// Something that may not be what was meant.
    pub(crate) fn warn(&self, text: impl AsRef<str>) {
        let head = self.paint("warning:", "1;33");
        self.say(&format!("{head} {}", one_line(text.as_ref())));
    }

    /// A failure and the next step.
    pub(crate) fn error(&self, error: &CliError) {
        let head = self.paint("error:", "1;31");
        self.say(&format!("{head} {}", error.sentence()));
        if let Some(hint) = error.hint() {
            let head = self.paint("hint:", "1;36");
            self.say(&format!("{head} {hint}"));
        }
    }

    fn paint(&self, word: &str, code: &str) -> String {
        match self.error_colour {
            Colour::On => format!("\x1b[{code}m{word}\x1b[0m"),
            Colour::Off => word.to_owned(),
        }
    }

    fn say(&self, line: &str) {
        // A stderr that is gone leaves nobody to tell.
        let _ = self.bytes(Stream::Stderr, format!("{line}\n").as_bytes());
    }

    /// A list, in the format that was asked for.
    pub(crate) fn list<T: Row>(&self, items: &[T], detail: Detail) -> Result<(), CliError> {
        let format = match (self.format, self.chatter) {
            (Some(format), _) => format,
            (None, Chatter::Normal) => OutputFormat::Table,
            (None, Chatter::Quiet) => {
                return items
                    .iter()
                    .try_for_each(|item| self.line(safe(&item.id())));
            }
        };
        match format {
            OutputFormat::Table => {
                self.bytes(Stream::Stdout, table(items, detail, self.colour).as_bytes())
            }
            OutputFormat::Wide => self.bytes(
                Stream::Stdout,
                table(items, Detail::Wide, self.colour).as_bytes(),
            ),
            OutputFormat::Name => items
                .iter()
                .try_for_each(|item| self.line(safe(&item.name()))),
            OutputFormat::Json => self.json(&items),
            OutputFormat::Yaml => self.yaml(&items),
        }
    }

    /// An object as indented JSON.
    pub(crate) fn json<T: Serialize + ?Sized>(&self, value: &T) -> Result<(), CliError> {
        self.line(json_text(value)?)
    }

    /// An object as one line of JSON.
    pub(crate) fn json_line<T: Serialize + ?Sized>(&self, value: &T) -> Result<(), CliError> {
        self.line(
            serde_json::to_string(value).map_err(|error| CliError::Render {
                format: "JSON",
                reason: error.to_string(),
            })?,
        )
    }

    /// An object as YAML.
    pub(crate) fn yaml<T: Serialize + ?Sized>(&self, value: &T) -> Result<(), CliError> {
        let text = serde_norway::to_string(value).map_err(|error| CliError::Render {
            format: "YAML",
            reason: error.to_string(),
        })?;
        self.bytes(Stream::Stdout, text.as_bytes())
    }

    /// One YAML document of a stream of them.
    pub(crate) fn yaml_document<T: Serialize + ?Sized>(&self, value: &T) -> Result<(), CliError> {
        self.line("---")?;
        self.yaml(value)
    }

    /// A table's text, for what redraws it.
    pub(crate) fn table_text<T: Row>(&self, items: &[T], detail: Detail) -> String {
        table(items, detail, self.colour)
    }
}

fn safe(text: &str) -> String {
    one_line(text)
}

fn json_text<T: Serialize + ?Sized>(value: &T) -> Result<String, CliError> {
    serde_json::to_string_pretty(value).map_err(|error| CliError::Render {
        format: "JSON",
        reason: error.to_string(),
    })
}

/// Columns without borders, three spaces apart, no spaces at the ends of lines.
fn table<T: Row>(items: &[T], detail: Detail, colour: Colour) -> String {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled);
    match colour {
        Colour::On => table.enforce_styling(),
        Colour::Off => table.force_no_tty(),
    };
    table.set_header(
        T::heads(detail)
            .into_iter()
            .map(|head| styled(Cell::new(head), Look::Dim, colour)),
    );
    for item in items {
        table.add_row(
            item.cells(detail)
                .into_iter()
                .map(|field| styled(Cell::new(&field.text), field.look, colour)),
        );
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 3));
    }
    let mut text: String = table
        .lines()
        .map(|line| format!("{}\n", line.trim_end()))
        .collect();
    if text.is_empty() {
        text.push('\n');
    }
    text
}

fn styled(cell: Cell, look: Look, colour: Colour) -> Cell {
    match (colour, look) {
        (Colour::Off, _) | (Colour::On, Look::Plain) => cell,
        (Colour::On, Look::Good) => cell.fg(Color::Green),
        (Colour::On, Look::Waiting) => cell.fg(Color::Yellow),
        (Colour::On, Look::Bad) => cell.fg(Color::Red),
        (Colour::On, Look::Dim) => cell.add_attribute(Attribute::Bold),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Serialize)]
    struct Fruit {
        name: &'static str,
        taste: &'static str,
    }

    impl Row for Fruit {
        fn heads(detail: Detail) -> Vec<&'static str> {
            match detail {
                Detail::Short | Detail::Untruncated => vec!["NAME"],
                Detail::Wide => vec!["NAME", "TASTE"],
            }
        }

        fn cells(&self, detail: Detail) -> Vec<Field> {
            let mut cells = vec![Field::new(self.name)];
            if detail == Detail::Wide {
                cells.push(Field::new(self.taste).looking(Look::Good));
            }
            cells
        }

        fn name(&self) -> String {
            self.name.to_owned()
        }
    }

    const FRUIT: [Fruit; 2] = [
        Fruit {
            name: "plum",
            taste: "sweet",
        },
        Fruit {
            name: "sloe\u{1b}[2J\nx",
            taste: "",
        },
    ];

    #[test]
    fn tables_are_plain_columns_without_spaces_at_line_ends() {
        assert_eq!(
            table(&FRUIT, Detail::Wide, Colour::Off),
            "NAME         TASTE\nplum         sweet\nsloe\u{fffd}[2J x\n"
        );
        assert_eq!(
            table::<Fruit>(&[], Detail::Wide, Colour::Off),
            "NAME   TASTE\n"
        );
    }

    #[test]
    fn colours_appear_only_where_they_are_wanted() {
        assert!(table(&FRUIT, Detail::Wide, Colour::On).contains("\u{1b}["));
        assert!(!table(&FRUIT, Detail::Wide, Colour::Off).contains('\u{1b}'));
    }

    #[test]
    fn a_pipe_is_never_coloured_and_no_color_is_heard() {
        assert_eq!(colour_of(false, false), Colour::Off);
        assert_eq!(colour_of(true, true), Colour::Off);
    }
}
