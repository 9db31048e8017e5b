//! A sandbox that turns out to be another server's, where several share a catalogue: what this one has of it ends.

use firkin_causes::chain;

use super::{Next, Owner, Phase, depart::MOVED};

impl Owner {
    /// Records one of which nobody knows what is on record; it may be in another life by now, which another server has claimed.
    pub(super) async fn settle(&mut self) -> Next {
        self.record_in_doubt().await;
        if !self.is_doubted_by_another().await {
            if matches!(&self.phase, Phase::Running(running) if running.owes_go_on) {
                self.go_on().await;
            }
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

    /// Has what others could have stopped when the lease of this host is over. Whether it may run.
    pub(super) async fn list_if_in_doubt(&mut self) -> bool {
        let Phase::Running(running) = &mut self.phase else { return true };
        if !self.shared.store.is_in_doubt(&self.record.id) {
            return true;
        }
        match running.session.list(self.shared.config.fence.as_ref()).await {
            Ok(()) => true,
            Err(error) => {
                tracing::warn!(sandbox = %self.record.id, error = chain(&error), "a sandbox that others could have stands still");
                false
            }
        }
    }

    /// Whether it stands still because others could have it.
    pub(super) fn is_kept_from_going_on(&self) -> bool {
        matches!(&self.phase, Phase::Running(running) if running.owes_go_on || running.session.is_held())
    }

    /// What was to go on and could not does so once it is on record, and nobody else can have it.
    pub(super) async fn go_on_if_owed(&mut self) {
        if matches!(&self.phase, Phase::Running(running) if running.owes_go_on) && !self.shared.store.is_in_doubt(&self.record.id)
        {
            self.go_on().await;
        }
    }

    /// What is on record by now as running, and as nothing else, nobody else can have. One that stands still for the fence is let go on by it first.
    pub(super) fn settle_listing(&mut self) {
        if let Phase::Running(running) = &mut self.phase
            && running.session.is_listed()
            && !running.session.is_held()
            && !self.record.can_be_claimed()
            && !self.shared.store.is_in_doubt(&self.record.id)
        {
            running.session.unlist();
        }
    }

    /// Its machine goes on after it stood still because the lease was over: its guest's clock did, too.
    pub(super) async fn went_on(&mut self) {
        if matches!(&self.phase, Phase::Running(running) if running.session.is_listed() || running.owes_go_on) {
            self.go_on().await;
        }
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
