//! What is asked of a sandbox where several servers share a catalogue.

use super::{Command, MOVED, Next, Owner, Phase};
use crate::{start::life::Until, store::spec::Memory};

impl Owner {
    /// Does what is asked because other servers are there.
    pub(super) async fn obey_as_one_of_several(&mut self, command: Command) -> Next {
        match command {
            Command::Record => {
                self.record_in_doubt().await;
                if self.is_doubted_by_another().await {
                    self.end_as_anothers().await;
                    return Next::Gone(MOVED);
                }
            }
            Command::LetGo { reply } => {
                self.end_as_anothers().await;
                drop(reply.send(Ok(())));
                return Next::Gone(MOVED);
            }
            Command::Depart { hand_over, reply } => {
                let result = self.depart(hand_over).await;
                drop(reply.send(result));
                if let Phase::Gone = self.phase {
                    return Next::Gone(MOVED);
                }
            }
            Command::GoOn { until, reply } => {
                let result = self.wake(Until::At(until), Memory::Kept).await;
                drop(reply.send(result));
            }
            Command::GiveBack { reply } => return self.give_back(reply).await,
            // Nothing else is asked here.
            _ => {}
        }
        Next::Continue
    }

    /// Whether one that is still in doubt is in another life by now: where several servers share a catalogue, another has claimed it.
    async fn is_doubted_by_another(&mut self) -> bool {
        let (store, id) = (&self.shared.store, &self.record.id);
        // What cannot be read is asked for again.
        store.is_in_doubt(id) && store.is_anothers(id.clone()).await.unwrap_or(false)
    }

    /// What this server has of it ends, and nothing of what is on record is touched: it is another's.
    async fn end_as_anothers(&mut self) {
        if let Phase::Running(running) = std::mem::replace(&mut self.phase, Phase::Gone) {
            running.ended.cancel();
            let exit = running.session.end().await;
            drop(running.reservation);
            tracing::warn!(sandbox = %self.record.id, ?exit, "the machine of a sandbox that is another host's ended");
        }
        self.let_go();
    }
}
