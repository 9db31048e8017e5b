//! Who a guest is told that it is.
//!
//! Entropy is fresh in each, and so is whatever tells one guest from another; the nonce and the network are its machine's, which
//! fills them in when it gives the guest its identity.

use std::collections::BTreeMap;

use base64::Engine as _;
use firkin_wire::control::Identity;

use crate::{agent::realtime_ns, sandbox::SandboxId, store::SandboxRecord};

/// The epoch that every template's guest is in.
const TEMPLATE_EPOCH: u64 = 1;

fn entropy() -> String {
    base64::engine::general_purpose::STANDARD.encode(crate::random::bytes::<32>())
}

/// The sandbox of this record; with a new machine id when it is `fresh`.
pub(crate) fn of_sandbox(record: &SandboxRecord, fresh: bool) -> Identity {
    // What the creator says stands above what the template's build said.
    let mut env = record.defaults.env.clone();
    env.extend(record.spec.env.clone());
    Identity {
        epoch: record.epoch,
        sandbox_id: record.id.to_string(),
        template_id: record.template_id.clone(),
        entropy: entropy(),
        realtime_ns: realtime_ns(),
        machine_id: fresh.then(crate::random::hex::<16>),
        nonce: None,
        network: None,
        env,
        access_token: record.access_token.clone(),
        default_user: record.defaults.user.clone(),
        default_workdir: record.defaults.workdir.clone(),
    }
}

/// A template: nobody in particular, without a token.
pub(crate) fn nobody() -> Identity {
    Identity {
        epoch: TEMPLATE_EPOCH,
        // As long as the name of any sandbox, and of most templates: who becomes another writes over these and cuts nothing off.
        sandbox_id: format!("{:0<1$}", "template-", SandboxId::LENGTH),
        template_id: "template-00000000000".to_owned(),
        entropy: entropy(),
        realtime_ns: 0,
        machine_id: Some(crate::random::hex::<16>()),
        nonce: None,
        network: None,
        env: BTreeMap::new(),
        access_token: None,
        default_user: None,
        default_workdir: None,
    }
}
