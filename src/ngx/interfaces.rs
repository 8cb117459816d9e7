//! The networks that this machine is in.

use ipnet::IpNet;

/// Of all its interfaces that have an address; none if the system does not say.
pub fn networks() -> Vec<IpNet> {
    let interfaces = if_addrs::get_if_addrs().unwrap_or_default();
    let network = |interface: if_addrs::Interface| {
        let prefix = match interface.addr {
            if_addrs::IfAddr::V4(ref v4) => v4.prefixlen,
            if_addrs::IfAddr::V6(ref v6) => v6.prefixlen,
        };
        IpNet::new(interface.ip(), prefix).ok().map(|network| network.trunc())
    };
    let mut networks: Vec<IpNet> = interfaces.into_iter().filter_map(network).collect();
    networks.sort_unstable();
    networks.dedup();
    networks
}
