//! Body of the fuzz target for a terminal's screen: what programs in a sandbox write comes by here before it comes to a browser.

use super::{Run, Screen};

/// Whether a word is one that the style sheet knows.
fn is_known(word: &str) -> bool {
    matches!(word, "bold" | "italic" | "under" | "dim" | "cursor")
        || word.strip_prefix(['f', 'b']).is_some_and(|color| color.parse::<u8>().is_ok_and(|color| color < 18))
}

/// Whatever a program writes, in pieces of any size and on a screen of any: looks are words of ours, and texts have no controls.
///
/// The first two bytes are the size; each further piece begins with its length, and with whether the size changes before it.
pub fn terminal_screen(data: &[u8]) {
    let [cols, rows, rest @ ..] = data else { return };
    let mut screen = Screen::new((*cols).into(), (*rows % 40).into());
    let mut rest = rest;
    while let [first, more @ ..] = rest {
        let length = usize::from(first & 0x7f).min(more.len());
        let (piece, left) = more.split_at(length);
        if first & 0x80 != 0 {
            screen.resize(first.rotate_left(3).into(), (first % 24).into());
            screen.scroll(usize::from(*first) * 4);
        }
        screen.write(piece);
        rest = left;
        let Some(show) = screen.changed() else { continue };
        for Run(text, looks) in show.changed.values().flatten() {
            assert!(!text.contains(char::is_control), "{text:?}");
            assert!(looks.split_whitespace().all(is_known), "{looks}");
        }
        assert!(!show.title.contains(char::is_control), "{:?}", show.title);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn nothing_leaves_but_characters_and_words_of_ours(
            size in (2u8..60, 2u8..16),
            pieces in proptest::collection::vec((any::<bool>(), prop_oneof![
                proptest::collection::vec(any::<u8>(), 0..64),
                "(\x1b\\[[0-9;?]{0,6}[A-Za-z]|\x1b\\][0-9];[^\x07]{0,4}\x07|[ -~éアé\u{1F600}]){0,10}".prop_map(String::into_bytes),
            ]), 0..16),
        ) {
            let mut data = vec![size.0, size.1];
            for (resizes, piece) in pieces {
                let piece = &piece[..piece.len().min(0x7f)];
                data.push(u8::try_from(piece.len()).unwrap() | if resizes { 0x80 } else { 0 });
                data.extend_from_slice(piece);
            }
            terminal_screen(&data);
        }
    }
}
