//! What one sandbox may have of the host's network: the options of `firkin up`, and the values that they become.
//!
//! The defaults are the network's own. The bounds keep out what cannot be meant: below the least, ordinary work in a sandbox stalls, and
//! beyond the most the kernel's own counting becomes coarse.

use clap::{Args, value_parser};
use firkin_network::{NetworkConfig, Rates};

/// Bytes a second of a megabit a second.
const MEGABIT_BYTES: u64 = 1_000_000 / 8;

/// Options about the network.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Network")]
pub(crate) struct RateArgs {
    /// Let each sandbox send so many packets a second, and be sent as many; what is above is lost [default: 200000]
    #[arg(long, value_name = "COUNT", env = "FIRKIN_PACKET_RATE", hide_env_values = true,
          value_parser = value_parser!(u64).range(1_000..=10_000_000))]
    packet_rate: Option<u64>,
    /// Let each sandbox send so many megabits a second beyond the host, and be sent as many [default: 1000]
    #[arg(long, value_name = "MBIT", env = "FIRKIN_BANDWIDTH", hide_env_values = true, value_parser = value_parser!(u64).range(1..=80_000))]
    bandwidth: Option<u64>,
    /// Let all sandboxes together have so much of the connections that the host can track; each has 512 at least, and 4096 at most
    /// [default: 50]
    #[arg(long, value_name = "PERCENT", env = "FIRKIN_FLOW_SHARE", hide_env_values = true, value_parser = value_parser!(u8).range(1..=90))]
    flow_share: Option<u8>,
}

/// The options, resolved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RateSettings {
    /// What one guest may send, and be sent.
    rates: Rates,
    /// All guests' share of the flows that the host tracks.
    flow_percent: u8,
}

impl Default for RateSettings {
    fn default() -> Self {
        Self { rates: Rates::default(), flow_percent: NetworkConfig::FLOW_PERCENT }
    }
}

impl RateSettings {
    /// Decides every value.
    pub(crate) fn resolve(args: &RateArgs) -> Self {
        let Self { rates, flow_percent } = Self::default();
        Self {
            rates: Rates {
                packets_per_second: args.packet_rate.unwrap_or(rates.packets_per_second),
                bytes_per_second: args.bandwidth.map_or(rates.bytes_per_second, |megabits| megabits * MEGABIT_BYTES),
            },
            flow_percent: args.flow_share.unwrap_or(flow_percent),
        }
    }

    /// The network of a server with this name.
    pub(crate) fn network(self, owner: String) -> NetworkConfig {
        let Self { rates, flow_percent } = self;
        NetworkConfig { rates, flow_percent, ..NetworkConfig::new(owner) }
    }

    /// The options that give the same again. Defaults are left out.
    pub(crate) fn options(&self) -> String {
        let default = Self::default();
        let option =
            |name: &str, value: u64, default: u64| if value == default { String::new() } else { format!(" --{name} {value}") };
        let megabits = |settings: &Self| settings.rates.bytes_per_second / MEGABIT_BYTES;
        [
            option("packet-rate", self.rates.packets_per_second, default.rates.packets_per_second),
            option("bandwidth", megabits(self), megabits(&default)),
            option("flow-share", self.flow_percent.into(), default.flow_percent.into()),
        ]
        .concat()
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        rates: RateArgs,
    }

    fn parsed(options: &str) -> Result<RateSettings, clap::Error> {
        Ok(RateSettings::resolve(&Line::try_parse_from(format!("up{options}").split(' '))?.rates))
    }

    #[test]
    fn without_a_word_the_networks_defaults_hold() {
        let network = parsed("").unwrap().network("me".to_owned());
        assert_eq!((network.rates, network.flow_percent), (Rates::default(), 50));
        assert_eq!(parsed("").unwrap().options(), "");
    }

    #[test]
    fn what_is_said_is_meant_and_said_again() {
        let all = " --packet-rate 1000 --bandwidth 8 --flow-share 90";
        let network = parsed(all).unwrap().network("me".to_owned());
        assert_eq!(network.rates, Rates { packets_per_second: 1000, bytes_per_second: 1_000_000 });
        assert_eq!((network.flow_percent, network.owner.as_str()), (90, "me"));
        assert_eq!(parsed(all).unwrap().options(), all);
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        for option in
            ["packet-rate 999", "packet-rate 10000001", "bandwidth 0", "bandwidth 80001", "flow-share 0", "flow-share 91"]
        {
            assert!(parsed(&format!(" --{option}")).is_err(), "{option}");
        }
    }
}
