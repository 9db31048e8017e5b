//! Who a guest is told that it is. There are four: a sandbox, a template, a build's machine, and one that waits for a sandbox.
//!
//! Entropy is fresh in each, and so is whatever tells one guest from another; the nonce and the network are its machine's, which
//! fills them in when it gives the guest its identity.

use std::collections::BTreeMap;

use base64::Engine as _;
use firkin_wire::control::{GuestVolume, Identity};

use crate::{
    machine::agent::realtime_ns,
    start::life::Life,
    store::spec::{SandboxId, VolumeMount},
};

/// The epoch that every template's guest is in.
const TEMPLATE_EPOCH: u64 = 1;

fn entropy() -> String {
    base64::engine::general_purpose::STANDARD.encode(crate::ground::random::bytes::<32>())
}

/// A sandbox in this life. In its first it becomes another machine, with a machine id of its own.
pub(crate) fn of_sandbox(life: &Life) -> Identity {
    // What the creator says stands above what the template's build said.
    let mut env = life.defaults.env.clone();
    env.extend(life.spec.env.clone());
    Identity {
        epoch: life.epoch,
        sandbox_id: life.id.to_string(),
        template_id: life.template_id.to_string(),
        entropy: entropy(),
        realtime_ns: realtime_ns(),
        machine_id: life.is_first.then(crate::ground::random::hex::<16>),
        nonce: None,
        network: None,
        env,
        access_token: life.access_token.clone(),
        default_user: life.defaults.user.clone(),
        default_workdir: life.defaults.workdir.clone(),
        // Also where there are none: its state may be of a sandbox that had some.
        volumes: Some(life.spec.volumes.iter().map(volume).collect()),
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
        machine_id: Some(crate::ground::random::hex::<16>()),
        nonce: None,
        network: None,
        env: BTreeMap::new(),
        access_token: None,
        default_user: None,
        default_workdir: None,
        volumes: None,
    }
}

fn volume(mount: &VolumeMount) -> GuestVolume {
    GuestVolume { id: mount.volume.clone(), path: mount.path.clone(), read_only: mount.read_only }
}

/// A machine that a build works in.
pub(crate) fn of_build(epoch: u64) -> Identity {
    Identity { epoch, sandbox_id: format!("build-{}", crate::ground::random::alphanumeric(16)), ..nobody() }
}

/// A warm guest: no sandbox yet, but nobody who does not know the token reaches its envd. It keeps the template's machine id, and
/// its epoch: that of the claim is higher, and so begins a new life for envd's clients. Its name is that of its instance.
pub(crate) fn of_warm(template: &str, epoch: u64, token: String) -> Identity {
    Identity {
        epoch,
        sandbox_id: format!("w{}", crate::ground::random::alphanumeric(20)),
        template_id: template.to_owned(),
        realtime_ns: realtime_ns(),
        machine_id: None,
        access_token: Some(token),
        ..nobody()
    }
}
