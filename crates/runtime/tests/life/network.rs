//! Sandboxes whose requests are filled, as far as no guest has to answer.

use std::collections::BTreeMap;

use firkin_runtime::sandbox::{CreateSandbox, Filled, InternetAccess, Steered};

use crate::bench::{Host, base, until};

#[test]
fn a_create_whose_client_goes_away_while_its_guest_is_told_of_trust_leaves_no_sandbox() {
    let (host, envd) = Host::with_silent_envd();
    host.serve(async |server| {
        server.secrets().create("key", "hunter2".into(), BTreeMap::new()).await.unwrap();
        let filled = Filled {
            host: "api.test".to_owned(),
            headers: vec![("authorization".to_owned(), "Bearer ${e2b.secrets.key}".to_owned())],
            placeholders: Vec::new(),
        };
        let steered = Steered { filled: vec![filled], ..Steered::default() };
        let request = CreateSandbox { internet: InternetAccess::Steered(Box::new(steered)), ..base() };
        let asking = {
            let server = server.clone();
            tokio::spawn(async move { server.create(request).await.map(drop) })
        };
        until("the guest is being told", || envd.was_called()).await;
        assert_eq!((server.sandboxes().len(), asking.is_finished()), (1, false));
        // As an HTTP server drops what a client that hangs up has asked for.
        asking.abort();
        until("the sandbox has gone", || server.sandboxes().is_empty() && host.engine.live() == 0).await;
    });
}
