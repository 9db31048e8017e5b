//! How many sandboxes were made of each template. Nobody waits for it, so what comes within a second is written down together: the catalogue has more
//! to do than that.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use jiff::Timestamp;

use crate::{ground::ids::TemplateId, store::Spawns};

/// For how long what comes is written down together. A server that is killed has not counted it.
pub(crate) const TOGETHER: Duration = Duration::from_secs(1);

/// What is not written down yet.
#[derive(Debug, Default)]
pub(crate) struct SpawnCounts(Mutex<Waiting>);

#[derive(Debug, Default)]
struct Waiting {
    /// Somebody writes, and sees to what comes meanwhile.
    is_written: bool,
    counts: HashMap<TemplateId, Spawns>,
}

impl SpawnCounts {
    /// One more. Whether it falls to who asks to write it down.
    pub(crate) fn add(&self, template: TemplateId, at: Timestamp) -> bool {
        let mut waiting = self.waiting();
        let spawns = waiting.counts.entry(template).or_insert(Spawns { count: 0, last_at: at });
        spawns.count += 1;
        spawns.last_at = spawns.last_at.max(at);
        !std::mem::replace(&mut waiting.is_written, true)
    }

    /// What has come, for who writes; with nothing, he is done.
    pub(crate) fn take(&self) -> HashMap<TemplateId, Spawns> {
        let mut waiting = self.waiting();
        waiting.is_written = !waiting.counts.is_empty();
        std::mem::take(&mut waiting.counts)
    }

    /// What could not be written down is with the next that comes.
    pub(crate) fn put_back(&self, counts: HashMap<TemplateId, Spawns>) {
        let mut waiting = self.waiting();
        waiting.is_written = false;
        for (template, Spawns { count, last_at }) in counts {
            let spawns = waiting.counts.entry(template).or_insert(Spawns { count: 0, last_at });
            spawns.count += count;
            spawns.last_at = spawns.last_at.max(last_at);
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        // Each holder makes one change, so what is there is whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_while_others_are_written_down_is_written_together() {
        let counts = SpawnCounts::default();
        let [a, b]: [TemplateId; 2] = ["a", "b"].map(|id| id.parse().unwrap());
        let at = |second| Timestamp::from_second(second).unwrap();
        assert!(counts.add(a.clone(), at(1)), "nobody writes yet");
        let first = counts.take();
        assert_eq!(first, HashMap::from([(a.clone(), Spawns { count: 1, last_at: at(1) })]));
        let falls_to = [(&a, 3), (&b, 4), (&a, 2)].map(|(id, second)| counts.add(id.clone(), at(second)));
        assert_eq!(falls_to, [false; 3], "who writes sees to these");
        let then = HashMap::from([(a.clone(), Spawns { count: 2, last_at: at(3) }), (b, Spawns { count: 1, last_at: at(4) })]);
        assert_eq!(counts.take(), then);
        assert!(counts.take().is_empty());
        assert!(counts.add(a.clone(), at(5)), "who wrote is done");
        let failed = counts.take();
        assert!(!counts.add(a.clone(), at(7)));
        counts.put_back(failed);
        assert!(counts.add(a.clone(), at(6)), "the next writes what could not be written");
        assert_eq!(counts.take(), HashMap::from([(a, Spawns { count: 3, last_at: at(7) })]));
    }
}
