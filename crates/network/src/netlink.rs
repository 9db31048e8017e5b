//! Interfaces, addresses, neighbours and routes, over netlink by `rtnetlink`.
//!
//! A [`Netlink`] talks to the namespace that its thread was in when it was opened, wherever the thread goes afterwards. Every
//! request is one message; the kernel answers it before it takes the next.

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, Ipv4Addr},
    os::fd::{AsRawFd, BorrowedFd},
    time::Duration,
};

use futures::TryStreamExt;
use ipnet::Ipv4Net;
use rtnetlink::{
    Handle, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder,
    packet_route::{
        AddressFamily,
        address::AddressAttribute,
        link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkInfo, State},
        route::{RouteAddress, RouteAttribute},
        rule::{RuleAction, RuleAttribute, RuleMessage},
    },
};
use tokio::task::JoinHandle;

use super::SetupError;

/// Between two looks at an interface that is coming up.
const CARRIER_POLL: Duration = Duration::from_micros(500);
/// Twice the longest that the kernel delays a change of carrier, and room for a loaded host.
const CARRIER_DEADLINE: Duration = Duration::from_secs(20);

/// A connection to the kernel's interface configuration in one namespace.
#[derive(Debug)]
pub(super) struct Netlink {
    handle: Handle,
    connection: JoinHandle<()>,
}

impl Drop for Netlink {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

/// A veth interface found in a namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Veth {
    pub(super) index: u32,
    pub(super) name: String,
}

fn failed(step: &'static str) -> impl FnOnce(rtnetlink::Error) -> SetupError {
    move |source| SetupError::Netlink { step, source }
}

fn errno(error: &rtnetlink::Error) -> Option<i32> {
    match error {
        rtnetlink::Error::NetlinkError(message) => Some(message.raw_code().abs()),
        _ => None,
    }
}

impl Netlink {
    /// Opens a connection to the calling thread's namespace. Must run inside a tokio runtime.
    pub(super) fn open() -> Result<Self, SetupError> {
        let (connection, handle, _) =
            rtnetlink::new_connection().map_err(|source| SetupError::System { step: "open a netlink socket", source })?;
        Ok(Self { handle, connection: tokio::spawn(connection) })
    }

    /// The index of the interface `name`.
    pub(super) async fn index(&self, step: &'static str, name: &str) -> Result<u32, SetupError> {
        let found = self.handle.link().get().match_name(name.to_owned()).execute().try_next().await.map_err(failed(step))?;
        let missing = || SetupError::System { step, source: io::ErrorKind::NotFound.into() };
        Ok(found.ok_or_else(missing)?.header.index)
    }

    /// Brings an interface up, with a new MAC when one is given.
    pub(super) async fn up(&self, step: &'static str, index: u32, mac: Option<[u8; 6]>) -> Result<(), SetupError> {
        let mut message = LinkUnspec::new_with_index(index).up();
        if let Some(mac) = mac {
            message = message.address(mac.to_vec());
        }
        self.handle.link().change(message.build()).execute().await.map_err(failed(step))
    }

    /// Waits until packets can be sent by an interface whose other end has just come up. The kernel decides that outside of any
    /// request (`linkwatch`): at once as a rule, but it may take a second, and packets until then would be lost.
    pub(super) async fn wait_up(&self, step: &'static str, index: u32) -> Result<(), SetupError> {
        let is_up = async {
            loop {
                let link = self.handle.link().get().match_index(index).execute().try_next().await.map_err(failed(step))?;
                if link.is_some_and(|link| link.attributes.contains(&LinkAttribute::OperState(State::Up))) {
                    return Ok(());
                }
                // There is a notification for this, on a socket that would get those of every other interface too.
                tokio::time::sleep(CARRIER_POLL).await;
            }
        };
        let late = |_| Err(SetupError::System { step, source: io::ErrorKind::TimedOut.into() });
        tokio::time::timeout(CARRIER_DEADLINE, is_up).await.unwrap_or_else(late)
    }

    /// Adds an address and its subnet's route.
    pub(super) async fn address(&self, step: &'static str, index: u32, (ip, prefix): (Ipv4Addr, u8)) -> Result<(), SetupError> {
        self.handle.address().add(index, IpAddr::V4(ip), prefix).execute().await.map_err(failed(step))
    }

    /// Enters a permanent neighbour, so that no ARP precedes a packet to it.
    pub(super) async fn neighbour(&self, step: &'static str, index: u32, ip: Ipv4Addr, mac: [u8; 6]) -> Result<(), SetupError> {
        self.handle.neighbours().add(index, IpAddr::V4(ip)).link_layer_address(&mac).execute().await.map_err(failed(step))
    }

    /// Routes everything else by `gateway`.
    pub(super) async fn default_route(&self, step: &'static str, gateway: Ipv4Addr) -> Result<(), SetupError> {
        let route = RouteMessageBuilder::<Ipv4Addr>::new().gateway(gateway).build();
        self.handle.route().add(route).execute().await.map_err(failed(step))
    }

    /// Creates a veth pair: `near` here, `far` in namespace `other`.
    pub(super) async fn veth_pair(
        &self,
        step: &'static str,
        near: &str,
        far: &str,
        other: BorrowedFd<'_>,
    ) -> Result<(), SetupError> {
        let peer = LinkMessageBuilder::<LinkUnspec>::new().name(far).setns_by_fd(other.as_raw_fd()).build();
        let pair = || {
            LinkMessageBuilder::<LinkVeth>::new_with_info_kind(InfoKind::Veth)
                .name(near)
                .set_info_data(InfoData::Veth(InfoVeth::Peer(peer.clone())))
                .build()
        };
        match self.handle.link().add(pair()).execute().await {
            // The kernel takes a dead namespace apart in its own time, so an earlier slot's pair may linger. The name is ours.
            Err(error) if errno(&error) == Some(nix::libc::EEXIST) => {
                self.delete(step, near).await?;
                self.handle.link().add(pair()).execute().await.map_err(failed(step))
            }
            done => done.map_err(failed(step)),
        }
    }

    /// Deletes the interface `name`; no error when there is none.
    pub(super) async fn delete(&self, step: &'static str, name: &str) -> Result<(), SetupError> {
        let message = LinkUnspec::new_with_name(name).build();
        match self.handle.link().del_with_message(message).execute().await {
            Err(error) if errno(&error) != Some(nix::libc::ENODEV) => Err(failed(step)(error)),
            _ => Ok(()),
        }
    }

    /// Deletes the interface of this index. Whether there was one.
    pub(super) async fn delete_index(&self, step: &'static str, index: u32) -> Result<bool, SetupError> {
        match self.handle.link().del(index).execute().await {
            Ok(()) => Ok(true),
            Err(error) if errno(&error) == Some(nix::libc::ENODEV) => Ok(false),
            Err(error) => Err(failed(step)(error)),
        }
    }

    /// Every veth interface whose name begins with `prefix`.
    pub(super) async fn veths(&self, prefix: &str) -> Result<Vec<Veth>, SetupError> {
        let mut found = Vec::new();
        let mut links = self.handle.link().get().execute();
        while let Some(link) = links.try_next().await.map_err(failed("list interfaces"))? {
            let name = link.attributes.iter().find_map(|attribute| match attribute {
                LinkAttribute::IfName(name) => Some(name.clone()),
                _ => None,
            });
            let is_veth = link.attributes.iter().any(|attribute| {
                matches!(attribute, LinkAttribute::LinkInfo(infos) if infos.contains(&LinkInfo::Kind(InfoKind::Veth)))
            });
            if let Some(name) = name.filter(|name| is_veth && name.starts_with(prefix)) {
                found.push(Veth { index: link.header.index, name });
            }
        }
        Ok(found)
    }

    /// Names of the interfaces that default routes of any table leave by.
    pub(super) async fn uplinks(&self) -> Result<BTreeSet<String>, SetupError> {
        let indices: BTreeSet<u32> =
            self.routes().await?.into_iter().filter(|route| route.net.prefix_len() == 0).map(|route| route.interface).collect();
        let mut names = BTreeSet::new();
        let mut links = self.handle.link().get().execute();
        while let Some(link) = links.try_next().await.map_err(failed("list interfaces"))? {
            names.extend(link.attributes.into_iter().find_map(|attribute| match attribute {
                LinkAttribute::IfName(name) if indices.contains(&link.header.index) => Some(name),
                _ => None,
            }));
        }
        Ok(names)
    }

    /// Every IPv4 route that has an interface.
    pub(super) async fn routes(&self) -> Result<Vec<Route>, SetupError> {
        let query = RouteMessageBuilder::<Ipv4Addr>::new().build();
        let mut found = Vec::new();
        let mut routes = self.handle.route().get(query).execute();
        while let Some(route) = routes.try_next().await.map_err(failed("list routes"))? {
            let mut destination = Ipv4Addr::UNSPECIFIED;
            let mut interfaces = Vec::new();
            for attribute in &route.attributes {
                match attribute {
                    RouteAttribute::Destination(RouteAddress::Inet(ip)) => destination = *ip,
                    RouteAttribute::Oif(index) => interfaces.push(*index),
                    RouteAttribute::MultiPath(hops) => interfaces.extend(hops.iter().map(|hop| hop.interface_index)),
                    _ => {}
                }
            }
            if let Ok(net) = Ipv4Net::new(destination, route.header.destination_prefix_length) {
                found.extend(interfaces.into_iter().map(|interface| Route { net, interface }));
            }
        }
        Ok(found)
    }

    /// Leaves packets to `net` nowhere to go but to this host's own addresses. No error when that is so already.
    pub(super) async fn cut(&self, net: Ipv4Net) -> Result<(), SetupError> {
        let mut request = self.handle.rule().add();
        *request.message_mut() = blackhole(net);
        match request.execute().await {
            Err(error) if errno(&error) != Some(nix::libc::EEXIST) => Err(failed("cut slots off")(error)),
            _ => Ok(()),
        }
    }

    /// Undoes [`cut`](Self::cut); no error when there is none.
    pub(super) async fn end_cut(&self, net: Ipv4Net) -> Result<(), SetupError> {
        // There is none, or the kernel has no rules for routes, and so can have none.
        const NONE: [i32; 3] = [nix::libc::ENOENT, nix::libc::EOPNOTSUPP, nix::libc::EAFNOSUPPORT];
        match self.handle.rule().del(blackhole(net)).execute().await {
            Err(error) if !errno(&error).is_some_and(|errno| NONE.contains(&errno)) => Err(failed("end the cut of slots")(error)),
            _ => Ok(()),
        }
    }

    /// Every IPv4 address of this namespace.
    pub(super) async fn addresses(&self) -> Result<Vec<Ipv4Addr>, SetupError> {
        let mut found = Vec::new();
        let mut addresses = self.handle.address().get().execute();
        while let Some(address) = addresses.try_next().await.map_err(failed("list addresses"))? {
            found.extend(address.attributes.iter().filter_map(|attribute| match attribute {
                AddressAttribute::Address(IpAddr::V4(ip)) | AddressAttribute::Local(IpAddr::V4(ip)) => Some(*ip),
                _ => None,
            }));
        }
        Ok(found)
    }
}

/// The rule that packets to `net` go nowhere, asked right after the table of the host's own addresses.
fn blackhole(net: Ipv4Net) -> RuleMessage {
    const AFTER_LOCAL: u32 = 1;
    let mut rule = RuleMessage::default();
    rule.header.family = AddressFamily::Inet;
    rule.header.dst_len = net.prefix_len();
    rule.header.action = RuleAction::Blackhole;
    rule.attributes = vec![RuleAttribute::Destination(net.network().into()), RuleAttribute::Priority(AFTER_LOCAL)];
    rule
}

/// A route to `net` by an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Route {
    pub(super) net: Ipv4Net,
    pub(super) interface: u32,
}
