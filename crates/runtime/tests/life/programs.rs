//! How long a program of the engine is kept that has made something.

use firkin_engine::Engine as _;
use firkin_runtime::owner::OnExit;

use crate::bench::{Host, base, until};

#[tokio::test]
async fn a_program_is_kept_for_as_long_as_there_is_what_it_made() {
    let host = Host::new().with_program("old");
    let server = host.server().await;
    let old = server.create(base()).await.unwrap().id;
    server.pause(&old).await.unwrap();
    server.shutdown(OnExit::Pause).await;
    drop(server);

    let host = host.with_program("new");
    host.engine.keep_program("old");
    host.engine.keep_program("of nothing");
    let server = host.server().await;
    until("what made nothing is gone", || host.engine.spare_programs().unwrap() == ["old"]).await;
    let template = server.templates().await.unwrap().remove(0).id.to_string();
    server.delete_template(&template).await.unwrap_err();
    server.kill(&old).await.unwrap();
    assert_eq!(host.engine.spare_programs().unwrap(), ["old"], "the template was made by it");
    server.delete_template(&template).await.unwrap();
    until("the other is gone too", || host.engine.spare_programs().unwrap().is_empty()).await;
    server.shutdown(OnExit::Kill).await;
}
