//! Work that would hold up a thread of the runtime, such as reading whole files or waiting for a disk to sync.
//!
//! A runtime that stops gives up such work before it has begun, while whoever wanted it may still be there. It is not told: it is
//! dropped with its runtime, like everything that waits there, so it has nothing to decide and no error to make up.

use std::{future::pending, panic::resume_unwind};

use tokio::task::{JoinError, JoinHandle};

/// Does `work` on a thread where it may block. A panic of it goes on here. Under a runtime that stops this may never end.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    whole(tokio::task::spawn_blocking(work)).await
}

/// Waits for a task that goes on also when whoever waits goes away. A panic of it goes on here. Under a runtime that stops this may never end.
pub(crate) async fn whole<T>(task: JoinHandle<T>) -> T {
    match task.await.map_err(JoinError::try_into_panic) {
        Ok(done) => done,
        Err(Ok(panic)) => resume_unwind(panic),
        Err(Err(_given_up)) => pending().await,
    }
}

#[cfg(test)]
mod tests {
    use std::task::{Context, Poll, Waker};

    use super::*;

    #[tokio::test]
    async fn what_is_done_is_given_back_and_a_panic_goes_on() {
        assert_eq!(blocking(|| 1).await, 1);
        let panicked = tokio::spawn(blocking::<()>(|| panic!("on purpose"))).await.unwrap_err();
        assert_eq!(panicked.into_panic().downcast_ref(), Some(&"on purpose"));
    }

    #[test]
    fn work_that_a_stopped_runtime_gives_up_is_no_panic() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let handle = runtime.handle().clone();
        runtime.shutdown_background();
        let _stopped = handle.enter();
        assert!(tokio::task::spawn_blocking(|| ()).is_finished(), "it is given up at once");
        let mut waiting = Box::pin(blocking::<()>(|| unreachable!("nobody does it any more")));
        let polled = waiting.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        assert_eq!(polled, Poll::Pending);
    }
}
