//! How far a long step has come, on standard error: one line that redraws itself on a terminal, a line now and then elsewhere.

use std::{
    io::{self, Write},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

/// How often a line is redrawn at most: a build reports far more often than anyone can read.
const REDRAW_EVERY: Duration = Duration::from_millis(100);

/// How often a line is added at most where nothing can be redrawn: a log of every package fetched helps nobody.
const LOG_EVERY: Duration = Duration::from_secs(2);

/// The longest line drawn, in characters, so that redrawing needs no knowledge of the terminal's width.
const LINE_LIMIT: usize = 78;

/// Reports the steps of one command. Clones report to the same place.
#[derive(Clone)]
pub(crate) struct Progress {
    live: bool,
    every: Duration,
    sink: Arc<Mutex<dyn Write + Send>>,
}

impl Progress {
    /// On standard error; `live` if it is a terminal.
    pub(crate) fn on_stderr(live: bool) -> Self {
        let every = if live { REDRAW_EVERY } else { LOG_EVERY };
        Self { live, every, sink: Arc::new(Mutex::new(io::stderr())) }
    }

    /// Begins a step, named as something that goes on: "building the kernel".
    pub(crate) fn step(&self, name: &str) -> Step {
        if self.live {
            self.write(&format!("\r\x1b[2K- {name}"));
        } else {
            self.write(&format!("- {name}\n"));
        }
        Step { progress: self.clone(), name: name.to_owned(), begun: Instant::now(), drawn: Mutex::new(None), ended: false }
    }

    fn write(&self, text: &str) {
        let mut sink = self.sink.lock().unwrap_or_else(PoisonError::into_inner);
        // Progress that cannot be shown must not stop the work.
        drop(sink.write_all(text.as_bytes()).and_then(|()| sink.flush()));
    }
}

/// A step under way. Dropped without [`Step::done`] it is shown as failed.
pub(crate) struct Step {
    progress: Progress,
    name: String,
    begun: Instant,
    /// When the last detail was shown, and which.
    drawn: Mutex<Option<(Instant, String)>>,
    ended: bool,
}

impl Step {
    /// Says what the step is at. It is shown if it is news and the last news is not too fresh: on a terminal behind the name,
    /// elsewhere as a line.
    pub(crate) fn at(&self, detail: &str) {
        let detail = detail.lines().next_back().unwrap_or_default().trim();
        let mut drawn = self.drawn.lock().unwrap_or_else(PoisonError::into_inner);
        let is_news = drawn.as_ref().is_none_or(|(when, last)| last != detail && when.elapsed() >= self.progress.every);
        if detail.is_empty() || !is_news {
            return;
        }
        if self.progress.live {
            let line: String =
                format!("- {}: {detail}", self.name).chars().filter(|c| !c.is_control()).take(LINE_LIMIT).collect();
            self.progress.write(&format!("\r\x1b[2K{line}"));
        } else {
            self.progress.write(&format!("  {detail}\n"));
        }
        *drawn = Some((Instant::now(), detail.to_owned()));
    }

    /// Ends the step well and says how long it took.
    pub(crate) fn done(mut self, result: &str) -> Duration {
        let took = self.begun.elapsed();
        self.end("ok", &format!("{result} ({})", human(took)));
        took
    }

    fn end(&mut self, mark: &str, text: &str) {
        self.ended = true;
        let erase = if self.progress.live { "\r\x1b[2K" } else { "" };
        self.progress.write(&format!("{erase}{mark} {text}\n"));
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        if !self.ended {
            let name = std::mem::take(&mut self.name);
            self.end("failed", &name);
        }
    }
}

/// A duration as people read it: milliseconds below a second, then seconds, then minutes.
pub(crate) fn human(duration: Duration) -> String {
    let (ms, seconds) = (duration.as_millis(), duration.as_secs());
    match seconds {
        0 => format!("{ms} ms"),
        1..60 => format!("{:.1} s", duration.as_secs_f64()),
        _ => format!("{} min {} s", seconds / 60, seconds % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recorded(live: bool, every: Duration) -> (Progress, Arc<Mutex<Vec<u8>>>) {
        let sink = Arc::new(Mutex::new(Vec::new()));
        (Progress { live, every, sink: sink.clone() }, sink)
    }

    fn text(sink: &Mutex<Vec<u8>>) -> String {
        String::from_utf8(sink.lock().unwrap().clone()).unwrap()
    }

    #[test]
    fn a_log_gets_no_line_twice() {
        let (progress, sink) = recorded(false, Duration::ZERO);
        let step = progress.step("building the root file system");
        step.at("fetching\nunpacking bash");
        step.at("unpacking bash");
        step.at("unpacking sudo");
        step.done("root file system");
        let text = text(&sink);
        let (lines, last) = text.trim_end().rsplit_once('\n').unwrap();
        assert_eq!(lines, "- building the root file system\n  unpacking bash\n  unpacking sudo");
        assert!(last.starts_with("ok root file system ("), "{last}");
    }

    #[test]
    fn a_log_is_not_flooded() {
        let (progress, sink) = recorded(false, Duration::MAX);
        let step = progress.step("fetching");
        for package in ["bash", "sudo", "git"] {
            step.at(package);
        }
        assert_eq!(text(&sink), "- fetching\n  bash\n");
    }

    #[test]
    fn a_terminal_gets_one_line_that_redraws() {
        let (progress, sink) = recorded(true, Duration::ZERO);
        progress.step("a").done("b");
        let text = text(&sink);
        assert!(text.starts_with("\r\x1b[2K- a\r\x1b[2Kok b ("), "{text:?}");
        assert_eq!(text.matches('\n').count(), 1);
    }

    #[test]
    fn a_step_that_is_dropped_has_failed() {
        let (progress, sink) = recorded(false, Duration::ZERO);
        drop(progress.step("booting"));
        assert_eq!(text(&sink), "- booting\nfailed booting\n");
    }

    #[test]
    fn durations_read_well() {
        for (ms, expected) in [(0, "0 ms"), (999, "999 ms"), (1250, "1.2 s"), (59_900, "59.9 s"), (125_000, "2 min 5 s")] {
            assert_eq!(human(Duration::from_millis(ms)), expected);
        }
    }
}
