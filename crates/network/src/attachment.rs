//! The guest's end of a slot: a tap, or an interface in a namespace of its own.
//!
//! A virtual machine is at the other side of a tap. A sandbox's kernel takes over an interface, with its addresses and routes, and reads
//! frames from it by a socket: such an interface is one end of a pair whose other end has the tap's name and place, so that a slot's
//! rules do not know which it is. It has a namespace that nothing else is in, since all that is up there is taken over. That lives for as
//! long as the socket does, and the slot's for as long as the sandbox, whose process is in it: neither needs the server.

use std::os::fd::{AsFd, OwnedFd};

use firkin_engine::{Attachment, AttachmentKind};

use super::{
    GATEWAY_ADDRESS, GATEWAY_MAC, GUEST_ADDRESS, GUEST_MAC, GUEST_PREFIX, SetupError,
    namespace::{self, LOOPBACK},
    netlink::Netlink,
    parameters::set_parameters,
    rules::TAP,
    system,
    tap::open_tap,
};

/// The name of every guest's interface.
const INTERFACE: &str = "eth0";

/// Parameters of an interface's namespace. Its loopback is as any guest's, with both addresses, but an interface is of IPv4 alone. What a
/// guest is sent is not this host's to route.
const PARAMETERS: [(&str, &str); 2] =
    [("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1"), ("/proc/sys/net/ipv4/ip_forward", "0")];

/// Makes one, with the host's end of it up in the slot's namespace, which the calling thread is in.
pub(super) async fn make(kind: AttachmentKind, slot: &Netlink, netns: &OwnedFd) -> Result<Attachment, SetupError> {
    let made = match kind {
        AttachmentKind::Tap => Attachment::Tap(open_tap(TAP).map_err(system("open a tap"))?),
        AttachmentKind::Interface => Attachment::Interface(interface(slot, netns).await?),
    };
    let index = slot.index("find the guest's end", TAP).await?;
    slot.up("bring the guest's end up", index, Some(GATEWAY_MAC)).await?;
    slot.address("give the guest's end its address", index, (GATEWAY_ADDRESS, GUEST_PREFIX)).await?;
    slot.neighbour("enter the guest as a neighbour", index, GUEST_ADDRESS, GUEST_MAC).await?;
    if kind == AttachmentKind::Interface {
        slot.wait_up("see the guest's end come up", index).await?;
    }
    Ok(made)
}

/// The calling thread ends up where it was, in the slot's namespace, unless this fails.
async fn interface(slot: &Netlink, netns: &OwnedFd) -> Result<OwnedFd, SetupError> {
    namespace::enter_new().map_err(system("make a guest's namespace"))?;
    let own = namespace::current().map_err(system("open a guest's namespace"))?;
    set_parameters(&PARAMETERS).map_err(system("set the kernel parameters of a guest's namespace"))?;
    let guest = Netlink::open()?;
    namespace::enter(netns.as_fd()).map_err(system("return to a slot"))?;

    slot.veth_pair("make a guest's interface", TAP, INTERFACE, own.as_fd()).await?;
    guest.up("bring a guest's loopback up", LOOPBACK, None).await?;
    let index = guest.index("find a guest's interface", INTERFACE).await?;
    guest.address("give a guest's interface its address", index, (GUEST_ADDRESS, GUEST_PREFIX)).await?;
    guest.up("bring a guest's interface up", index, Some(GUEST_MAC)).await?;
    guest.default_route("route a guest by its gateway", GATEWAY_ADDRESS).await?;
    Ok(own)
}
