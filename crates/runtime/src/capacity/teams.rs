//! What each team holds of what it may have: sandboxes, and what those that run take of the host.
//!
//! ```text
//!   take ──► shares (one of the sandbox, one of its session) ──► the sandbox begins ──► pause ──► resume ──► gone
//!             sandbox's share:  held from here ───────────────────────────────────────────────────────────► given back
//!             session's share:  held from here ────────────────────────────► given back   taken ──► given back
//! ```
//!
//! The machine in which a template is built is such a sandbox too, from the start of the build to its end.
//!
//! All of a question is asked and its answer noted under one lock, so that requests at the same time do not get past a quota together.
//! What runs already when a quota is made smaller, or when a server takes over, is counted beyond it and ended by nobody.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use super::ResourceBudget;
use crate::ground::team::TeamId;

/// The time that a rate of creates is of.
const MINUTE: Duration = Duration::from_secs(60);

/// The most that a team may have at once, of each thing; `None` for as much as the host has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TeamQuota {
    /// Sandboxes that run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub running: Option<u32>,
    /// Sandboxes that are paused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub paused: Option<u32>,
    /// Virtual CPUs of those that run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpus: Option<u32>,
    /// Memory of those that run, MiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_mib: Option<u64>,
    /// Root disks of all of its sandboxes, as their guests see them, MiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_mib: Option<u64>,
    /// Snapshots.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshots: Option<u32>,
    /// Volumes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volumes: Option<u32>,
    /// Sandboxes that are created in a minute, forks and builds among them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub creates_per_minute: Option<u32>,
}

/// Why a team gets no more now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TeamQuotaError {
    /// It has as much as it may.
    #[error("the team's quota is {most} {what}: {used} in use, {asked} asked for")]
    Most {
        /// Of what.
        what: &'static str,
        /// The quota.
        most: u64,
        /// What it has.
        used: u64,
        /// What it would have besides.
        asked: u64,
    },
    /// It has created as many as it may in a minute.
    #[error("the team's quota is {most} creates per minute: the next may come in {wait_s} s")]
    Rate {
        /// The quota.
        most: u32,
        /// Seconds until there is room for one.
        wait_s: u32,
    },
}

#[derive(Debug, Default)]
struct Account {
    quota: TeamQuota,
    sandboxes: u64,
    disk_mib: u64,
    running: ResourceBudget,
    sessions: u64,
    /// Pauses that somebody asked for and that are under way.
    pausing: u64,
    /// The creates of the last minute, oldest first, where there is a quota of them.
    creates: VecDeque<Instant>,
    /// Sandboxes that were let in since the server started, and requests that a quota refused.
    admitted: u64,
    refused: u64,
}

/// What one team holds, for whoever watches all of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TeamFigures {
    pub(crate) team: TeamId,
    pub(crate) running: u64,
    pub(crate) paused: u64,
    pub(crate) cpus: u32,
    pub(crate) memory_mib: u64,
    pub(crate) disk_mib: u64,
    pub(crate) admitted: u64,
    pub(crate) refused: u64,
}

/// What all teams hold. Clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct TeamBook(Arc<Mutex<HashMap<TeamId, Account>>>);

/// A sandbox of a team, running or paused. Given back on drop.
#[derive(Debug)]
pub(crate) struct SandboxShare {
    book: TeamBook,
    team: TeamId,
    disk_mib: u64,
}

/// A session of a team's sandbox. Given back on drop.
#[derive(Debug)]
pub(crate) struct SessionShare {
    book: TeamBook,
    team: TeamId,
    budget: ResourceBudget,
}

/// A pause that is under way. Dropped when the sandbox counts as paused, or does not pause.
#[derive(Debug)]
pub(crate) struct PauseShare {
    book: TeamBook,
    team: TeamId,
}

/// What a sandbox that is about to begin takes.
#[derive(Debug)]
pub(crate) struct Shares {
    pub(crate) sandbox: SandboxShare,
    pub(crate) session: SessionShare,
}

/// Refuses `asked` more of what there are `used` of, where that would be more than there may be.
pub(crate) fn within(what: &'static str, most: Option<u64>, used: u64, asked: u64) -> Result<(), TeamQuotaError> {
    match most {
        Some(most) if used.saturating_add(asked) > most => Err(TeamQuotaError::Most { what, most, used, asked }),
        _ => Ok(()),
    }
}

impl Account {
    /// Notes what a quota refuses.
    fn told<T>(&mut self, answer: Result<T, TeamQuotaError>) -> Result<T, TeamQuotaError> {
        self.refused += u64::from(answer.is_err());
        answer
    }

    fn admit_all(&mut self, count: u64, budget: ResourceBudget, now: Instant) -> Result<(), TeamQuotaError> {
        self.admit_sessions(count, budget)?;
        self.admit_disk(count * budget.disk_mib)?;
        self.admit_creates(count, now)
    }

    fn admit_disk(&self, disk_mib: u64) -> Result<(), TeamQuotaError> {
        within("MiB of disk", self.quota.disk_mib, self.disk_mib, disk_mib)
    }

    fn admit_sessions(&self, count: u64, budget: ResourceBudget) -> Result<(), TeamQuotaError> {
        let TeamQuota { running, cpus, memory_mib, .. } = self.quota;
        within("running sandboxes", running.map(u64::from), self.sessions, count)?;
        within("cpus", cpus.map(u64::from), self.running.cpus.into(), count * u64::from(budget.cpus))?;
        within("MiB of memory", memory_mib, self.running.memory_mib, count * budget.memory_mib)
    }

    fn admit_creates(&mut self, count: u64, now: Instant) -> Result<(), TeamQuotaError> {
        let Some(most) = self.quota.creates_per_minute else { return Ok(()) };
        while self.creates.front().is_some_and(|at| now.duration_since(*at) >= MINUTE) {
            self.creates.pop_front();
        }
        let used = self.creates.len() as u64;
        if used + count <= u64::from(most) {
            return Ok(());
        }
        // When as many have passed as are too many. More than ever fit at once never fit.
        let too_many = usize::try_from((used + count).saturating_sub(most.into())).unwrap_or(usize::MAX);
        let until = self.creates.get(too_many.saturating_sub(1)).or(self.creates.back());
        let wait = until.map_or(MINUTE, |at| MINUTE.saturating_sub(now.duration_since(*at)));
        Err(TeamQuotaError::Rate { most, wait_s: u32::try_from(wait.as_secs()).unwrap_or(u32::MAX).saturating_add(1) })
    }

    fn begin_session(&mut self, budget: ResourceBudget) {
        self.sessions += 1;
        self.running += budget;
    }

    fn paused(&self) -> u64 {
        self.sandboxes.saturating_sub(self.sessions)
    }
}

impl TeamBook {
    fn accounts(&self) -> MutexGuard<'_, HashMap<TeamId, Account>> {
        // What is given back is what was taken, so the value that a panic leaves behind is a whole one.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a team may have from now on.
    pub(crate) fn set_quota(&self, team: &TeamId, quota: TeamQuota) {
        self.accounts().entry(team.clone()).or_default().quota = quota;
    }

    /// What it may have.
    pub(crate) fn quota(&self, team: &TeamId) -> TeamQuota {
        self.accounts().get(team).map(|account| account.quota).unwrap_or_default()
    }

    /// Takes what so many new sandboxes of one size need: all of that or nothing.
    pub(crate) fn take(
        &self,
        team: &TeamId,
        count: u32,
        budget: ResourceBudget,
        now: Instant,
    ) -> Result<Vec<Shares>, TeamQuotaError> {
        let mut accounts = self.accounts();
        let account = accounts.entry(team.clone()).or_default();
        let many = u64::from(count);
        let admitted = account.admit_all(many, budget, now);
        account.told(admitted)?;
        account.admitted += many;
        if account.quota.creates_per_minute.is_some() {
            account.creates.extend(std::iter::repeat_n(now, count as usize));
        }
        Ok((0..count).map(|_| self.begin(account, team, budget)).collect())
    }

    /// Has a create that came to nothing, of this instant, not count as one of its minute.
    pub(crate) fn uncount_create(&self, team: &TeamId, at: Instant) {
        if let Some(account) = self.accounts().get_mut(team) {
            account.admitted = account.admitted.saturating_sub(1);
            if let Some(index) = account.creates.iter().rposition(|create| *create == at) {
                account.creates.remove(index);
            }
        }
    }

    /// Takes what one needs.
    pub(crate) fn take_one(&self, team: &TeamId, budget: ResourceBudget, now: Instant) -> Result<Shares, TeamQuotaError> {
        let taken = self.take(team, 1, budget, now)?.pop();
        Ok(taken.expect("one was asked for, and all are given"))
    }

    fn begin(&self, account: &mut Account, team: &TeamId, budget: ResourceBudget) -> Shares {
        account.sandboxes += 1;
        account.disk_mib += budget.disk_mib;
        account.begin_session(budget);
        let sandbox = SandboxShare { book: self.clone(), team: team.clone(), disk_mib: budget.disk_mib };
        Shares { sandbox, session: SessionShare { book: self.clone(), team: team.clone(), budget } }
    }

    /// What each team holds that has a quota, or ever had something since the server started, by id.
    pub(crate) fn figures(&self) -> Vec<TeamFigures> {
        let figures = |(team, account): (&TeamId, &Account)| TeamFigures {
            team: team.clone(),
            running: account.sessions,
            paused: account.paused(),
            cpus: account.running.cpus,
            memory_mib: account.running.memory_mib,
            disk_mib: account.disk_mib,
            admitted: account.admitted,
            refused: account.refused,
        };
        let mut all: Vec<_> = self.accounts().iter().map(figures).collect();
        all.sort_by(|a, b| a.team.cmp(&b.team));
        all
    }

    /// Takes what a session of a sandbox needs that is paused.
    pub(crate) fn take_session(&self, team: &TeamId, budget: ResourceBudget) -> Result<SessionShare, TeamQuotaError> {
        let mut accounts = self.accounts();
        let account = accounts.entry(team.clone()).or_default();
        let admitted = account.admit_sessions(1, budget);
        account.told(admitted)?;
        account.begin_session(budget);
        Ok(SessionShare { book: self.clone(), team: team.clone(), budget })
    }

    /// Counts a session that is there whatever the quota.
    pub(crate) fn count_session(&self, team: &TeamId, budget: ResourceBudget) -> SessionShare {
        self.accounts().entry(team.clone()).or_default().begin_session(budget);
        SessionShare { book: self.clone(), team: team.clone(), budget }
    }

    /// Counts a sandbox that is there whatever the quota.
    pub(crate) fn count_sandbox(&self, team: &TeamId, disk_mib: u64) -> SandboxShare {
        let mut accounts = self.accounts();
        let account = accounts.entry(team.clone()).or_default();
        account.sandboxes += 1;
        account.disk_mib += disk_mib;
        SandboxShare { book: self.clone(), team: team.clone(), disk_mib }
    }

    /// Whether one more sandbox of a team may be paused. A pause that nobody asked for asks nobody: what it keeps would be lost.
    pub(crate) fn admit_pause(&self, team: &TeamId) -> Result<PauseShare, TeamQuotaError> {
        let mut accounts = self.accounts();
        let account = accounts.entry(team.clone()).or_default();
        let most = account.quota.paused.map(u64::from);
        let admitted = within("paused sandboxes", most, account.paused() + account.pausing, 1);
        account.told(admitted)?;
        account.pausing += 1;
        Ok(PauseShare { book: self.clone(), team: team.clone() })
    }
}

impl SandboxShare {
    /// Takes a disk of which it was not known before how large it is.
    pub(crate) fn take_disk(&mut self, disk_mib: u64) -> Result<(), TeamQuotaError> {
        let mut accounts = self.book.accounts();
        let account = accounts.entry(self.team.clone()).or_default();
        let admitted = account.admit_disk(disk_mib);
        account.told(admitted)?;
        account.disk_mib += disk_mib;
        self.disk_mib += disk_mib;
        Ok(())
    }
}

impl Drop for SandboxShare {
    fn drop(&mut self) {
        if let Some(account) = self.book.accounts().get_mut(&self.team) {
            account.sandboxes -= 1;
            account.disk_mib -= self.disk_mib;
        }
    }
}

impl Drop for SessionShare {
    fn drop(&mut self) {
        if let Some(account) = self.book.accounts().get_mut(&self.team) {
            account.sessions -= 1;
            account.running.cpus -= self.budget.cpus;
            account.running.memory_mib -= self.budget.memory_mib;
            account.running.disk_mib -= self.budget.disk_mib;
        }
    }
}

impl Drop for PauseShare {
    fn drop(&mut self) {
        if let Some(account) = self.book.accounts().get_mut(&self.team) {
            account.pausing -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: ResourceBudget = ResourceBudget { cpus: 2, memory_mib: 512, disk_mib: 100 };

    fn team() -> TeamId {
        "b".parse().unwrap()
    }

    fn book(quota: TeamQuota) -> TeamBook {
        let book = TeamBook::default();
        book.set_quota(&team(), quota);
        book
    }

    fn refused(quota: TeamQuota) -> String {
        let book = book(quota);
        let _held = book.take(&team(), 2, SIZE, Instant::now()).unwrap();
        let error = book.take(&team(), 1, SIZE, Instant::now()).unwrap_err().to_string();
        assert!(book.take(&"other".parse().unwrap(), 9, SIZE, Instant::now()).is_ok(), "another team's is its own");
        error
    }

    #[test]
    fn what_would_be_too_much_is_refused_with_the_numbers() {
        let none = TeamQuota::default();
        let told = |what: &str| format!("the team's quota is {what} asked for");
        for (quota, expected) in [
            (TeamQuota { running: Some(2), ..none }, told("2 running sandboxes: 2 in use, 1")),
            (TeamQuota { cpus: Some(5), ..none }, told("5 cpus: 4 in use, 2")),
            (TeamQuota { memory_mib: Some(1500), ..none }, told("1500 MiB of memory: 1024 in use, 512")),
            (TeamQuota { disk_mib: Some(299), ..none }, told("299 MiB of disk: 200 in use, 100")),
        ] {
            assert_eq!(refused(quota), expected);
        }
    }

    #[test]
    fn a_build_takes_its_disk_once_that_is_known_and_all_is_told() {
        let book = book(TeamQuota { disk_mib: Some(150), ..TeamQuota::default() });
        let mut build = book.take_one(&team(), ResourceBudget { disk_mib: 0, ..SIZE }, Instant::now()).unwrap();
        assert!(build.sandbox.take_disk(151).is_err());
        build.sandbox.take_disk(100).unwrap();
        assert!(book.take(&team(), 1, SIZE, Instant::now()).is_err());
        let told =
            TeamFigures { team: team(), running: 1, paused: 0, cpus: 2, memory_mib: 512, disk_mib: 100, admitted: 1, refused: 2 };
        assert_eq!(book.figures(), std::slice::from_ref(&told));
        drop(build);
        assert_eq!(book.figures(), [TeamFigures { running: 0, cpus: 0, memory_mib: 0, disk_mib: 0, ..told }]);
    }

    #[test]
    fn of_several_at_once_all_are_taken_or_none() {
        let book = book(TeamQuota { running: Some(3), ..TeamQuota::default() });
        assert!(book.take(&team(), 4, SIZE, Instant::now()).is_err());
        let held = book.take(&team(), 3, SIZE, Instant::now()).unwrap();
        assert!(book.take_session(&team(), SIZE).is_err());
        drop(held);
        assert!(book.take_session(&team(), SIZE).is_ok());
        assert_eq!(book.accounts()[&team()].running, ResourceBudget::default());
    }

    #[test]
    fn threads_do_not_get_past_a_quota_together() {
        let book = book(TeamQuota { running: Some(5), ..TeamQuota::default() });
        let taken: usize = std::thread::scope(|scope| {
            let one = || {
                let mut held = Vec::new();
                for _ in 0..100 {
                    held.extend(book.take(&team(), 1, SIZE, Instant::now()));
                }
                held
            };
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(one)).collect();
            let all: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
            all.iter().map(Vec::len).sum()
        });
        assert_eq!(taken, 5);
    }

    #[test]
    fn creates_are_counted_for_a_minute() {
        let book = book(TeamQuota { creates_per_minute: Some(2), ..TeamQuota::default() });
        let begun = Instant::now();
        let after = |seconds| begun + Duration::from_secs(seconds);
        drop(book.take(&team(), 1, SIZE, begun).unwrap());
        drop(book.take(&team(), 1, SIZE, after(20)).unwrap());
        assert_eq!(book.take(&team(), 1, SIZE, after(30)).unwrap_err(), TeamQuotaError::Rate { most: 2, wait_s: 31 });
        assert!(book.take(&team(), 1, SIZE, after(60)).is_ok());
        assert_eq!(book.take(&team(), 1, SIZE, after(61)).unwrap_err(), TeamQuotaError::Rate { most: 2, wait_s: 20 });
        // One that came to nothing does not count.
        book.uncount_create(&team(), after(60));
        assert!(book.take(&team(), 1, SIZE, after(61)).is_ok());
    }

    #[test]
    fn pauses_under_way_count_as_paused() {
        let book = book(TeamQuota { paused: Some(1), ..TeamQuota::default() });
        let [first, second] = <[Shares; 2]>::try_from(book.take(&team(), 2, SIZE, Instant::now()).unwrap()).unwrap();
        let pausing = book.admit_pause(&team()).unwrap();
        assert!(book.admit_pause(&team()).is_err());
        drop(first.session);
        drop(pausing);
        assert!(book.admit_pause(&team()).is_err(), "it is paused now");
        drop((first.sandbox, second));
        assert!(book.admit_pause(&team()).is_ok());
    }
}
