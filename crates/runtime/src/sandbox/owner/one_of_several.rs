//! A sandbox that turns out to be another server's, where several share a catalogue: what this one has of it ends.

use super::{Next, Owner, Phase, depart::MOVED};

impl Owner {
    /// Records one of which nobody knows what is on record; it may be in another life by now, which another server has claimed.
    pub(super) async fn settle(&mut self) -> Next {
        self.record_in_doubt().await;
        if !self.is_doubted_by_another().await {
            return Next::Continue;
        }
        self.end_as_anothers().await;
        Next::Gone(MOVED)
    }

    async fn is_doubted_by_another(&mut self) -> bool {
        let (store, id) = (&self.shared.store, &self.record.id);
        // What cannot be read is asked for again.
        store.is_in_doubt(id) && store.is_anothers(id.clone()).await.unwrap_or(false)
    }

    /// What this server has of it ends, and nothing of what is on record is touched.
    pub(super) async fn end_as_anothers(&mut self) {
        if let Phase::Running(running) = std::mem::replace(&mut self.phase, Phase::Gone) {
            running.ended.cancel();
            let exit = running.session.end().await;
            drop(running.reservation);
            tracing::warn!(sandbox = %self.record.id, ?exit, "the machine of a sandbox that is another host's ended");
        }
        self.let_go();
    }
}
