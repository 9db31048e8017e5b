//! A terminal's screen as texts: what programs in a sandbox write is interpreted here, and what leaves is characters and words of our own.

use std::{collections::BTreeMap, num::NonZeroU16};

use firkin_dashboard::terminal::{Run, Show};

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;

/// Sizes of a screen: what a page can show, and what costs little.
const COLS: std::ops::RangeInclusive<u16> = 2..=300;
const ROWS: std::ops::RangeInclusive<u16> = 2..=120;

/// Lines that have scrolled off and can be looked at: with the largest width some five megabytes.
const SCROLLBACK: usize = 500;

/// Bytes of a title that a program sets.
const MAX_TITLE_BYTES: usize = 200;

/// The screen, and what the page has of it.
pub(super) struct Screen {
    parser: vt100::Parser<Titles>,
    shown: Vec<Vec<Run>>,
    said: Option<(bool, bool, String, usize)>,
}

/// What a program calls its window.
#[derive(Default)]
struct Titles(String);

impl vt100::Callbacks for Titles {
    fn set_window_title(&mut self, _: &mut vt100::Screen, title: &[u8]) {
        let title = String::from_utf8_lossy(title);
        let plain = title.chars().filter(|c| !c.is_control());
        self.0 = plain
            .scan(0, |bytes, c| {
                *bytes += c.len_utf8();
                (*bytes <= MAX_TITLE_BYTES).then_some(c)
            })
            .collect();
    }
}

impl Screen {
    pub(super) fn new(cols: u16, rows: u16) -> Self {
        let (rows, cols) = within(cols, rows);
        Self {
            parser: vt100::Parser::new_with_callbacks(cells(rows), cells(cols), SCROLLBACK, Titles::default()),
            shown: Vec::new(),
            said: None,
        }
    }

    /// Rows and columns.
    pub(super) fn size(&self) -> (u16, u16) {
        let (rows, cols) = self.parser.screen().size();
        (rows.get(), cols.get())
    }

    pub(super) fn write(&mut self, bytes: &[u8]) {
        self.parser.process(bytes);
    }

    /// Gives the size that it has then, rows first.
    pub(super) fn resize(&mut self, cols: u16, rows: u16) -> (u16, u16) {
        let (rows, cols) = within(cols, rows);
        self.parser.screen_mut().set_size(cells(rows), cells(cols));
        self.shown.clear();
        (rows, cols)
    }

    /// Looks so many lines back, as far as there are any.
    pub(super) fn scroll(&mut self, back: usize) {
        self.parser.screen_mut().set_scrollback(back);
    }

    /// What the page does not have yet.
    pub(super) fn changed(&mut self) -> Option<Show> {
        let (rows, cols) = self.size();
        let screen = self.parser.screen();
        let whole = self.shown.len() != usize::from(rows);
        let now: Vec<Vec<Run>> = (0..rows).map(|row| runs(screen, row, cols)).collect();
        let differs = |at: usize, row: &Vec<Run>| whole || self.shown.get(at) != Some(row);
        let changed: BTreeMap<usize, Vec<Run>> =
            now.iter().enumerate().filter(|(at, row)| differs(*at, row)).map(|(at, row)| (at, row.clone())).collect();
        let said =
            (screen.application_cursor(), screen.bracketed_paste(), self.parser.callbacks().0.clone(), screen.scrollback());
        if changed.is_empty() && self.said.as_ref() == Some(&said) {
            return None;
        }
        self.shown = now;
        self.said = Some(said.clone());
        let (application_cursor, bracketed_paste, title, back) = said;
        Some(Show { rows: usize::from(rows), changed, application_cursor, bracketed_paste, title, back })
    }
}

fn within(cols: u16, rows: u16) -> (u16, u16) {
    (rows.clamp(*ROWS.start(), *ROWS.end()), cols.clamp(*COLS.start(), *COLS.end()))
}

/// A size as the screen takes it.
fn cells(count: u16) -> NonZeroU16 {
    NonZeroU16::new(count).unwrap_or(NonZeroU16::MIN)
}

/// A row as pieces that look alike, without the empty end of it.
fn runs(screen: &vt100::Screen, row: u16, cols: u16) -> Vec<Run> {
    let (cursor_row, cursor_col) = screen.cursor_position();
    let has_cursor = !screen.hide_cursor() && screen.scrollback() == 0 && cursor_row == row;
    let mut runs: Vec<Run> = Vec::new();
    let mut last = None;
    for col in 0..cols {
        let Some(cell) = screen.cell(row, col) else { continue };
        if cell.is_wide_continuation() {
            continue;
        }
        let looks = Looks::of(cell, has_cursor && col == cursor_col);
        let text = if cell.has_contents() { cell.contents() } else { " " };
        match runs.last_mut() {
            Some(Run(run, _)) if last == Some(looks) => run.push_str(text),
            _ => runs.push(Run(text.to_owned(), looks.words())),
        }
        last = Some(looks);
    }
    if let Some(Run(text, looks)) = runs.last_mut()
        && looks.is_empty()
    {
        text.truncate(text.trim_end_matches(' ').len());
        if text.is_empty() {
            runs.pop();
        }
    }
    runs
}

/// How a cell looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Looks {
    front: Option<u8>,
    back: Option<u8>,
    /// Bold, italic, underlined, dim, and where the cursor is.
    marks: [bool; 5],
}

impl Looks {
    fn of(cell: &vt100::Cell, is_cursor: bool) -> Self {
        let (mut front, mut back) = (nearest(cell.fgcolor()), nearest(cell.bgcolor()));
        if cell.inverse() {
            (front, back) = (Some(back.unwrap_or(16)), Some(front.unwrap_or(17)));
        }
        Self { front, back, marks: [cell.bold(), cell.italic(), cell.underline(), cell.dim(), is_cursor] }
    }

    /// In words that the style sheet knows.
    fn words(self) -> String {
        let mut words = Vec::new();
        words.extend(self.front.map(|color| format!("f{color}")));
        words.extend(self.back.map(|color| format!("b{color}")));
        for (is, word) in self.marks.into_iter().zip(["bold", "italic", "under", "dim", "cursor"]) {
            if is {
                words.push(word.to_owned());
            }
        }
        words.join(" ")
    }
}

/// The nearest of the sixteen colours that a page has, which can all be read on its ground.
fn nearest(color: vt100::Color) -> Option<u8> {
    match color {
        vt100::Color::Default => None,
        vt100::Color::Idx(index @ 0..=15) => Some(index),
        vt100::Color::Idx(index @ 16..=231) => {
            let step = |n: u8| if n == 0 { 0 } else { 55 + 40 * n };
            let cube = index - 16;
            Some(sixteen(step(cube / 36), step(cube / 6 % 6), step(cube % 6)))
        }
        vt100::Color::Idx(index) => {
            let gray = 8 + (index - 232) * 10;
            Some(sixteen(gray, gray, gray))
        }
        vt100::Color::Rgb(red, green, blue) => Some(sixteen(red, green, blue)),
    }
}

fn sixteen(red: u8, green: u8, blue: u8) -> u8 {
    let most = red.max(green).max(blue);
    let least = red.min(green).min(blue);
    if most - least < 32 {
        return match most {
            0..=60 => 0,
            61..=140 => 8,
            141..=210 => 7,
            _ => 15,
        };
    }
    let half = most / 2;
    let bit = |part: u8, bit: u8| if part > half { bit } else { 0 };
    let hue = bit(red, 1) | bit(green, 2) | bit(blue, 4);
    if most > 200 { hue + 8 } else { hue }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(show: &Show, row: usize) -> String {
        show.changed.get(&row).map(|runs| runs.iter().map(|Run(text, _)| text.as_str()).collect()).unwrap_or_default()
    }

    #[test]
    fn escapes_become_words_and_markup_stays_text() {
        let mut screen = Screen::new(40, 4);
        screen.write(b"\x1b[1;31m<b>red</b>\x1b[0m ok\r\n\x1b]0;<i>title\x07\x1b[?1h\x1b[?2004h");
        let show = screen.changed().unwrap();
        assert_eq!(text(&show, 0), "<b>red</b> ok");
        assert_eq!(show.changed[&0][0], Run("<b>red</b>".into(), "f1 bold".into()));
        assert_eq!((show.title.as_str(), show.application_cursor, show.bracketed_paste), ("<i>title", true, true));
        assert!(show.changed[&1][0].1.contains("cursor"));
        assert!(screen.changed().is_none(), "nothing has changed since");
        screen.write(b"x");
        assert_eq!(screen.changed().unwrap().changed.keys().collect::<Vec<_>>(), [&1]);
    }

    #[test]
    fn one_can_look_back_and_sizes_are_bounded() {
        let mut screen = Screen::new(0, u16::MAX);
        assert_eq!(screen.size(), (120, 2));
        assert_eq!(screen.resize(20, 3), (3, 20));
        for line in 0..1000 {
            screen.write(format!("{line}\r\n").as_bytes());
        }
        screen.scroll(usize::MAX);
        let show = screen.changed().unwrap();
        assert_eq!((show.back, text(&show, 0).as_str()), (SCROLLBACK, "498"));
        screen.scroll(0);
        assert_eq!(text(&screen.changed().unwrap(), 0), "998");
    }
}
