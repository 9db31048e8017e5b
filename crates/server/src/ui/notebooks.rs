//! What came of cells, kept for a while by team and sandbox, and who runs some.
//!
//! The interpreter is the sandbox's, and says what it likes: all that is kept is counted in bytes, and what is let go of is of the team that
//! has most. No team loses its cells because of what another one runs.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use firkin_dashboard::code::{Cell, Output};
use firkin_runtime::{sandbox::SandboxId, team::TeamId};

/// Cells of one notebook, the newest.
const MAX_CELLS: usize = 20;

/// Notebooks of one team.
const MAX_NOTEBOOKS_OF_TEAM: usize = 16;

/// Bytes of everything that is kept, of all teams.
const MAX_BYTES: usize = 128 << 20;

/// What an output takes besides its text, here and on the page.
const OUTPUT_BYTES: usize = 128;

/// Cells that run at once: each may hold the whole answer of its interpreter.
pub(super) const MAX_RUNNING: usize = 16;

/// Those of one team.
const MAX_RUNNING_OF_TEAM: usize = 4;

/// Whose a notebook is, and of which sandbox.
pub(super) type Of = (TeamId, SandboxId);

/// Cells that ran, by team and sandbox.
#[derive(Debug, Default)]
pub(crate) struct Notebooks(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    books: HashMap<Of, Notebook>,
    /// Counts uses, so that the notebook that was used longest ago is known.
    clock: u64,
    /// Cells that run, by team.
    running: HashMap<TeamId, usize>,
}

#[derive(Debug, Default)]
struct Notebook {
    used: u64,
    ran: u64,
    cells: VecDeque<(Cell, Vec<Bytes>)>,
}

/// A cell that runs. Dropped, it has ended.
#[derive(Debug)]
pub(super) struct Running<'a> {
    books: &'a Notebooks,
    team: TeamId,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let mut kept = self.books.kept();
        if let Some(count) = kept.running.get_mut(&self.team) {
            *count -= 1;
            if *count == 0 {
                kept.running.remove(&self.team);
            }
        }
    }
}

impl Notebooks {
    fn kept(&self) -> MutexGuard<'_, Kept> {
        // Each holder makes one change, so what is poisoned is whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets a cell of a team run, unless as many do as may.
    pub(super) fn begin(&self, team: TeamId) -> Option<Running<'_>> {
        let mut kept = self.kept();
        let all: usize = kept.running.values().sum();
        let own = kept.running.get(&team).copied().unwrap_or_default();
        if all >= MAX_RUNNING || own >= MAX_RUNNING_OF_TEAM {
            return None;
        }
        kept.running.insert(team.clone(), own + 1);
        Some(Running { books: self, team })
    }

    /// Its cells, the oldest first.
    pub(super) fn cells(&self, of: &Of) -> Vec<Cell> {
        self.kept().books.get(of).map(|book| book.cells.iter().map(|(cell, _)| cell.clone()).collect()).unwrap_or_default()
    }

    /// A picture, by its cell and its place in there.
    pub(super) fn picture(&self, of: &Of, (cell, at): (u64, usize)) -> Option<Bytes> {
        let kept = self.kept();
        let (_, pictures) = kept.books.get(of)?.cells.iter().find(|(found, _)| found.number == cell)?;
        pictures.get(at).cloned()
    }

    /// Keeps a cell, and lets go of what is too much then.
    pub(super) fn add(&self, of: Of, mut cell: Cell, pictures: Vec<Bytes>) {
        let mut kept = self.kept();
        kept.clock += 1;
        let clock = kept.clock;
        let book = kept.books.entry(of.clone()).or_default();
        (book.used, book.ran) = (clock, book.ran + 1);
        cell.number = book.ran;
        book.cells.push_back((cell, pictures));
        if book.cells.len() > MAX_CELLS {
            book.cells.pop_front();
        }
        while kept.books.keys().filter(|(team, _)| *team == of.0).count() > MAX_NOTEBOOKS_OF_TEAM {
            kept.drop_oldest_of(&of.0);
        }
        while kept.bytes() > MAX_BYTES && kept.make_room() {}
    }
}

impl Kept {
    fn bytes(&self) -> usize {
        self.books.values().map(Notebook::bytes).sum()
    }

    /// Whose notebook was used longest ago, of this team.
    fn oldest_of(&self, team: &TeamId) -> Option<Of> {
        let own = self.books.iter().filter(|((owner, _), _)| owner == team);
        own.min_by_key(|(_, book)| book.used).map(|(of, _)| of.clone())
    }

    fn drop_oldest_of(&mut self, team: &TeamId) {
        if let Some(oldest) = self.oldest_of(team) {
            self.books.remove(&oldest);
        }
    }

    /// Lets go of the oldest notebook of the team that has most, or, of its last one, of the oldest cell. Whether there was any.
    fn make_room(&mut self) -> bool {
        let mut of_teams: HashMap<&TeamId, (usize, usize)> = HashMap::new();
        for ((team, _), book) in &self.books {
            let (bytes, books) = of_teams.entry(team).or_default();
            (*bytes, *books) = (*bytes + book.bytes(), *books + 1);
        }
        let Some((team, (_, books))) = of_teams.into_iter().max_by_key(|(_, (bytes, _))| *bytes) else { return false };
        let Some(oldest) = self.oldest_of(&team.clone()) else { return false };
        if books > 1 {
            return self.books.remove(&oldest).is_some();
        }
        self.books.get_mut(&oldest).is_some_and(|book| book.cells.pop_front().is_some())
    }
}

impl Notebook {
    fn bytes(&self) -> usize {
        let of_output = |output: &Output| match output {
            Output::Text(text) | Output::Trouble(text) | Output::Value(text) | Output::Error(text) => text.len() + OUTPUT_BYTES,
            Output::Picture(_) => OUTPUT_BYTES,
        };
        let of_cell = |(cell, pictures): &(Cell, Vec<Bytes>)| {
            let outputs: usize = cell.outputs.iter().map(of_output).sum();
            cell.code.len() + outputs + pictures.iter().map(Bytes::len).sum::<usize>()
        };
        self.cells.iter().map(of_cell).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(team: &str, sandbox: usize) -> Of {
        (team.parse().unwrap(), format!("i{sandbox}").parse().unwrap())
    }

    fn cell(bytes: usize) -> Cell {
        let outputs = vec![Output::Trouble("x".repeat(bytes))];
        Cell { number: 0, language: "python".into(), code: String::new(), outputs, cut: false }
    }

    #[test]
    fn what_is_kept_is_bounded_and_the_oldest_of_who_has_most_goes() {
        let books = Notebooks::default();
        for _ in 0..MAX_CELLS + 3 {
            books.add(of("a", 0), cell(1), Vec::new());
        }
        let numbers: Vec<u64> = books.cells(&of("a", 0)).iter().map(|cell| cell.number).collect();
        assert_eq!((numbers.len(), numbers[0]), (MAX_CELLS, 4));
        books.add(of("b", 0), cell(1), Vec::new());
        for sandbox in 1..=MAX_NOTEBOOKS_OF_TEAM {
            books.add(of("a", sandbox), cell(1), Vec::new());
        }
        assert!(books.cells(&of("a", 0)).is_empty() && !books.cells(&of("a", 1)).is_empty());
        // Texts count as pictures do, and another team's stay.
        for _ in 0..5 {
            books.add(of("a", 1), cell(MAX_BYTES / 10), vec![Bytes::from(vec![0; MAX_BYTES / 10])]);
        }
        books.add(of("a", 2), cell(1), Vec::new());
        assert!(books.kept().bytes() <= MAX_BYTES);
        assert!(!books.cells(&of("a", 2)).is_empty() && !books.cells(&of("b", 0)).is_empty());
        for _ in 0..12 {
            books.add(of("c", 1), cell(MAX_BYTES / 10), Vec::new());
        }
        let left = books.cells(&of("c", 1));
        assert!(books.kept().bytes() <= MAX_BYTES && left.last().unwrap().number == 12 && !books.cells(&of("b", 0)).is_empty());
        assert!(books.picture(&of("b", 0), (1, 0)).is_none());
    }

    #[test]
    fn one_team_runs_some_and_leaves_places_to_others() {
        let books = Notebooks::default();
        let team = |name: &str| name.parse::<TeamId>().unwrap();
        let mut running: Vec<_> = (0..MAX_RUNNING_OF_TEAM).map(|_| books.begin(team("a")).unwrap()).collect();
        assert!(books.begin(team("a")).is_none());
        running.extend((0..MAX_RUNNING - MAX_RUNNING_OF_TEAM).map(|n| books.begin(team(&format!("t{n}"))).unwrap()));
        assert!(books.begin(team("b")).is_none());
        drop(running);
        assert!(books.begin(team("a")).is_some());
        assert!(books.kept().running.is_empty(), "what has ended is not counted");
    }
}
