//! Running steps: what is printed, what is counted, how the whole ends.
//!
//! Test runners print their own closing lines; this module reads them as they pass by, so that the last line of a run can say
//! how many tests there were in all.

use std::{
    io::{BufRead as _, BufReader},
    process::{Command, ExitCode, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};

/// What a full run may take on two cores.
const BUDGET: Duration = Duration::from_secs(30 * 60);

/// Numbers of tests.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) skipped: u64,
}

impl Counts {
    fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }

    /// Reads the closing line of cargo's test harness or of pytest, or one of Node's closing lines; others count nothing.
    fn of_line(line: &str) -> Self {
        let line = line.trim();
        if let Some((word, number)) = line.strip_prefix("ℹ ").and_then(|rest| rest.split_once(' ')) {
            return Self::of_node(word, number);
        }
        if let Some(counts) = line.strip_prefix("test result: ") {
            return Self::of_words(counts);
        }
        let bare = line.trim_matches('=').trim();
        if bare.len() < line.len() && bare.contains(" in ") { Self::of_words(bare) } else { Self::default() }
    }

    /// Node's runner gives each number a line, after the word that says what it counts.
    fn of_node(word: &str, number: &str) -> Self {
        let (mut counts, number) = (Self::default(), number.parse().unwrap_or(0));
        match word {
            "pass" => counts.passed = number,
            "fail" | "cancelled" => counts.failed = number,
            "skipped" | "todo" => counts.skipped = number,
            _ => {}
        }
        counts
    }

    /// Sums the pairs of a number and a word that says what it counts.
    fn of_words(text: &str) -> Self {
        let words: Vec<&str> = text.split([' ', ',', ';']).filter(|word| !word.is_empty()).collect();
        let mut counts = Self::default();
        for pair in words.windows(2) {
            let Ok(number) = pair[0].parse::<u64>() else { continue };
            match pair[1] {
                "passed" => counts.passed += number,
                "failed" | "error" | "errors" => counts.failed += number,
                "skipped" | "ignored" => counts.skipped += number,
                _ => {}
            }
        }
        counts
    }
}

/// One step while it runs.
#[derive(Debug, Default)]
pub(crate) struct Step {
    counts: Counts,
    skipped: Option<String>,
    /// What programs print, kept until the step has ended, if another one prints meanwhile.
    held: Option<Vec<String>>,
}

impl Step {
    /// Runs a program to its end, showing its output and counting its tests; fails unless the program succeeds.
    pub(crate) fn run(&mut self, command: &mut Command) -> anyhow::Result<()> {
        let shown = shown(command);
        self.tell(&format!("$ {shown}"));
        let mut child =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().with_context(|| format!("cannot start `{shown}`"))?;
        let output = child.stdout.take().context("the child's output is piped")?;
        for line in BufReader::new(output).split(b'\n') {
            let line = line.with_context(|| format!("cannot read the output of `{shown}`"))?;
            let line = String::from_utf8_lossy(&line);
            self.counts.add(Counts::of_line(&line));
            self.tell(&line);
        }
        let status = child.wait().with_context(|| format!("cannot wait for `{shown}`"))?;
        if !status.success() {
            bail!("`{shown}` failed: {status}");
        }
        Ok(())
    }

    /// Shows lines that a program printed, and counts its tests.
    pub(crate) fn show(&mut self, output: &[u8]) {
        for line in String::from_utf8_lossy(output).lines() {
            self.counts.add(Counts::of_line(line));
            self.tell(line);
        }
    }

    fn tell(&mut self, line: &str) {
        match &mut self.held {
            Some(lines) => lines.push(line.to_owned()),
            None => say(line),
        }
    }

    /// Says that the host lacks what this step needs. Not a failure, but it is printed and counted.
    pub(crate) fn skip(&mut self, why: &str) {
        self.skipped = Some(why.to_owned());
    }

    /// What was skipped, if it was.
    #[cfg(test)]
    pub(crate) fn why_skipped(&self) -> Option<&str> {
        self.skipped.as_deref()
    }

    /// Counts checks that this program made itself.
    pub(crate) fn passed(&mut self, checks: u64) {
        self.counts.passed += checks;
    }

    /// Counts tests that could not be run to success here, for reasons that were printed.
    pub(crate) fn skipped(&mut self, tests: u64) {
        self.counts.skipped += tests;
    }
}

/// How a step ended, and after how long.
#[derive(Debug)]
struct Ended<T> {
    outcome: anyhow::Result<T>,
    took: Duration,
}

impl<T> Ended<T> {
    fn of(step: &mut Step, body: impl FnOnce(&mut Step) -> anyhow::Result<T>) -> Self {
        let started = Instant::now();
        let outcome = body(step);
        Self { outcome, took: started.elapsed() }
    }
}

/// All steps of a run.
#[derive(Debug)]
pub(crate) struct Report {
    started: Instant,
    lines: Vec<String>,
    counts: Counts,
    /// Whether another one prints meanwhile.
    is_beside: bool,
}

impl Default for Report {
    fn default() -> Self {
        Self { started: Instant::now(), lines: Vec::new(), counts: Counts::default(), is_beside: false }
    }
}

impl Report {
    /// Runs one step and remembers how it went. Its error ends the run.
    pub(crate) fn step(&mut self, name: &str, body: impl FnOnce(&mut Step) -> anyhow::Result<()>) -> anyhow::Result<()> {
        self.produce(name, body)
    }

    /// The same of a step that others stand on, with what it made for them.
    pub(crate) fn produce<T>(&mut self, name: &str, body: impl FnOnce(&mut Step) -> anyhow::Result<T>) -> anyhow::Result<T> {
        let mut step = Step { held: self.is_beside.then(Vec::new), ..Step::default() };
        if !self.is_beside {
            say(&format!("\n── {name}"));
        }
        let ended = Ended::of(&mut step, body);
        if let Some(held) = &step.held {
            say(&format!("\n── {name} (which ran beside the above)\n{}", held.join("\n")));
        }
        self.remember(name, &step, ended)
    }

    /// Runs two steps at the same time, for what leaves a processor idle; what the second prints comes when it has ended.
    pub(crate) fn steps_at_once(
        &mut self,
        (name, body): (&str, impl FnOnce(&mut Step) -> anyhow::Result<()>),
        (second_name, second_body): (&str, impl FnOnce(&mut Step) -> anyhow::Result<()> + Send),
    ) -> anyhow::Result<()> {
        self.at_once(|report| report.step(name, body), |beside| beside.step(second_name, second_body))
    }

    /// Runs two rows of steps at the same time; what a step of the second row prints comes when it has ended.
    pub(crate) fn at_once(
        &mut self,
        row: impl FnOnce(&mut Self) -> anyhow::Result<()>,
        second_row: impl FnOnce(&mut Self) -> anyhow::Result<()> + Send,
    ) -> anyhow::Result<()> {
        let mut beside = Self { is_beside: true, ..Self::default() };
        let (outcome, second) = thread::scope(|scope| {
            let running = scope.spawn(|| second_row(&mut beside));
            let outcome = row(self);
            (outcome, running.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        });
        self.lines.append(&mut beside.lines);
        self.counts.add(beside.counts);
        outcome.and(second)
    }

    fn remember<T>(&mut self, name: &str, step: &Step, ended: Ended<T>) -> anyhow::Result<T> {
        let Ended { outcome, took } = ended;
        self.counts.add(step.counts);
        let verdict = match (&outcome, &step.skipped) {
            (Err(_), _) => "FAILED".to_owned(),
            (Ok(_), Some(why)) => {
                self.counts.skipped += 1;
                format!("skipped: {why}")
            }
            (Ok(_), None) if step.counts == Counts::default() => "ok".to_owned(),
            (Ok(_), None) => format!("ok, {} tests", step.counts.passed),
        };
        let line = format!("{:>7.1} s  {name}: {verdict}", took.as_secs_f32());
        say(&line);
        self.lines.push(line);
        outcome
    }

    /// Prints the summary, whose last line counts every test, and turns the outcome into an exit status.
    pub(crate) fn close(mut self, outcome: anyhow::Result<()>) -> ExitCode {
        say("\n── summary");
        for line in &self.lines {
            say(line);
        }
        let elapsed = self.started.elapsed();
        let verdict = if elapsed > BUDGET { "OVER" } else { "within" };
        say(&format!("{:>7.1} s  in all, {verdict} the budget of {} s for a full run", elapsed.as_secs_f32(), BUDGET.as_secs()));
        if let Err(error) = &outcome {
            say(&format!("\nerror: {error:#}"));
            self.counts.failed = self.counts.failed.max(1);
        }
        let Counts { passed, failed, skipped } = self.counts;
        let tail = if skipped > 0 { format!(", {skipped} skipped") } else { String::new() };
        say(&format!("\n{passed} passed, {failed} failed{tail}"));
        if outcome.is_ok() && failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}

/// The command as a person would type it.
fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

/// Prints one line.
#[expect(clippy::print_stdout, reason = "printing what happens is what this program is for")]
pub(crate) fn say(line: &str) {
    println!("{line}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closing_lines_of_every_runner_are_counted() {
        let counts = |passed, failed, skipped| Counts { passed, failed, skipped };
        for (line, expect) in [
            ("test result: ok. 12 passed; 0 failed; 3 ignored; 0 measured; 1 filtered out; finished in 0.01s", counts(12, 0, 3)),
            ("test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out", counts(1, 2, 0)),
            ("======= 236 passed in 101.43s (0:01:41) =======", counts(236, 0, 0)),
            ("==== 1 failed, 5 passed, 2 skipped, 3 errors in 9.10s ====", counts(5, 4, 2)),
            ("ℹ pass 16", counts(16, 0, 0)),
            ("ℹ cancelled 1", counts(0, 1, 0)),
            ("ℹ duration_ms 81398.7", counts(0, 0, 0)),
            ("1 passed, 2 failed in a line that some test printed", counts(0, 0, 0)),
            ("==== short test summary info ====", counts(0, 0, 0)),
            ("test tests::x ... ok", counts(0, 0, 0)),
        ] {
            assert_eq!(Counts::of_line(line), expect, "{line}");
        }
    }

    #[test]
    fn a_failing_step_is_told_and_ends_the_run() {
        let mut report = Report::default();
        assert!(report.step("good", |step| step.run(&mut Command::new("true"))).is_ok());
        let error = report.step("bad", |step| step.run(Command::new("sh").args(["-c", "exit 3"]))).unwrap_err();
        assert!(error.to_string().contains("exit status: 3"), "{error}");
        assert!(report.lines[1].ends_with("bad: FAILED"));
    }

    #[test]
    fn of_two_steps_at_once_each_is_told_and_either_may_fail() {
        for (one, other) in [(0, 0), (1, 0), (0, 1)] {
            let mut report = Report::default();
            let ends = |code: i32| move |step: &mut Step| step.run(Command::new("sh").args(["-c", &format!("exit {code}")]));
            let outcome = report.steps_at_once(("one", ends(one)), ("other", ends(other)));
            assert_eq!(outcome.is_ok(), one + other == 0);
            let failed: Vec<bool> = report.lines.iter().map(|line| line.ends_with("FAILED")).collect();
            assert_eq!(failed, [one == 1, other == 1]);
        }
    }

    #[test]
    fn what_a_host_lacks_is_counted() {
        let mut report = Report::default();
        report
            .step("thing", |step| {
                step.skip("there is none");
                Ok(())
            })
            .unwrap();
        assert_eq!(report.counts.skipped, 1);
        assert!(report.lines[0].ends_with("thing: skipped: there is none"));
    }
}
