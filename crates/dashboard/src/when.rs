//! Times for people: how long ago, how long still, and the instant itself for whoever wants it.

use jiff::Timestamp;
use maud::{Markup, html};

/// A span in two units at most, as one says it.
pub fn span(seconds: i64) -> String {
    let seconds = seconds.max(0);
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, _) if minutes < 10 => format!("{minutes} min {} s", seconds % 60),
        (0, 0, _) => format!("{minutes} min"),
        (0, ..) => format!("{hours} h {minutes} min"),
        _ => format!("{days} d {hours} h"),
    }
}

/// How long ago it was.
pub fn ago(at: Timestamp, now: Timestamp) -> Markup {
    let text = format!("{} ago", span(now.as_second() - at.as_second()));
    html! { time datetime=(instant(at)) title=(instant(at)) { (text) } }
}

/// How long it is till then.
pub fn left(at: Timestamp, now: Timestamp) -> Markup {
    let seconds = at.as_second() - now.as_second();
    let text = if seconds > 0 { format!("{} left", span(seconds)) } else { "now".to_owned() };
    html! { time datetime=(instant(at)) title=(instant(at)) { (text) } }
}

/// The instant, to the second.
pub fn instant(at: Timestamp) -> String {
    at.strftime("%Y-%m-%d %H:%M:%SZ").to_string()
}

/// The time of a day, where the day is near.
pub fn clock(at: Timestamp) -> String {
    at.strftime("%H:%M:%S").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_have_two_units_at_most() {
        for (seconds, text) in
            [(-5, "0 s"), (59, "59 s"), (61, "1 min 1 s"), (3599, "59 min"), (3661, "1 h 1 min"), (90_000, "1 d 1 h")]
        {
            assert_eq!(span(seconds), text);
        }
    }
}
