//! Where guests may connect to, and what of them is reachable from outside: parsed once, shown as typed. Pure.

use std::{fmt, str::FromStr};

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

/// A pool's egress policy.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Egress {
    /// No private, CGNAT, link-local, multicast or cluster addresses, not the host, no TCP 25.
    Internet,
    /// Everything but the cluster and the host.
    Open,
    /// Nothing.
    Deny,
    /// Only these.
    Allow(Vec<EgressRule>),
}

/// A destination that is allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct EgressRule {
    /// The addresses.
    pub net: Ipv4Net,
    /// One port, TCP and UDP; all, where none is named.
    pub port: Option<u16>,
}

/// A text that is no policy, or no port.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// Not an egress policy.
    #[error("{text:?} is no egress policy: expected internet, open, deny, or allow:CIDR[:PORT],…")]
    Policy {
        /// The text.
        text: String,
    },
    /// Not a published port.
    #[error("{text:?} is no published port: expected tcp:HOST-PORT:GUEST-PORT or udp:…")]
    Port {
        /// The text.
        text: String,
    },
}

impl fmt::Display for EgressRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            Some(port) => write!(f, "{}:{port}", self.net),
            None => write!(f, "{}", self.net),
        }
    }
}

impl fmt::Display for Egress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Egress::Internet => f.pad("internet"),
            Egress::Open => f.pad("open"),
            Egress::Deny => f.pad("deny"),
            Egress::Allow(rules) => {
                let rules: Vec<String> = rules.iter().map(ToString::to_string).collect();
                f.pad(&format!("allow:{}", rules.join(",")))
            }
        }
    }
}

impl FromStr for Egress {
    type Err = PolicyError;
    fn from_str(text: &str) -> Result<Self, PolicyError> {
        match text {
            "internet" => return Ok(Egress::Internet),
            "open" => return Ok(Egress::Open),
            "deny" => return Ok(Egress::Deny),
            _ => {}
        }
        let rule = |rule: &str| -> Option<EgressRule> {
            let (net, port) = match rule.split_once(':') {
                Some((net, port)) => (net, Some(port.parse().ok().filter(|&port| port > 0)?)),
                None => (rule, None),
            };
            let net = if net.contains('/') {
                net.parse().ok()?
            } else {
                Ipv4Net::new(net.parse().ok()?, 32).ok()?
            };
            (net.trunc() == net).then_some(EgressRule { net, port })
        };
        text.strip_prefix("allow:")
            .and_then(|rules| rules.split(',').map(rule).collect::<Option<Vec<_>>>())
            .filter(|rules| (1..=64).contains(&rules.len()))
            .map(Egress::Allow)
            .ok_or_else(|| PolicyError::Policy { text: text.to_owned() })
    }
}

impl TryFrom<String> for Egress {
    type Error = PolicyError;
    fn try_from(text: String) -> Result<Self, PolicyError> {
        text.parse()
    }
}

impl From<Egress> for String {
    fn from(egress: Egress) -> String {
        egress.to_string()
    }
}

/// TCP or UDP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Protocol {
    /// Its name in rules.
    pub fn name(self) -> &'static str {
        match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        }
    }
}

/// A port of a guest that is reachable on the host's own addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Port {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// The host's port.
    pub host_port: u16,
    /// The guest's port.
    pub guest_port: u16,
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.protocol.name(), self.host_port, self.guest_port)
    }
}

impl FromStr for Port {
    type Err = PolicyError;
    fn from_str(text: &str) -> Result<Self, PolicyError> {
        let port = |text: &str| text.parse::<u16>().ok().filter(|&port| port > 0);
        let parse = || {
            let [protocol, host, guest] = text.split(':').collect::<Vec<_>>()[..] else {
                return None;
            };
            let protocol = match protocol {
                "tcp" => Protocol::Tcp,
                "udp" => Protocol::Udp,
                _ => return None,
            };
            Some(Self { protocol, host_port: port(host)?, guest_port: port(guest)? })
        };
        parse().ok_or_else(|| PolicyError::Port { text: text.to_owned() })
    }
}

impl TryFrom<String> for Port {
    type Error = PolicyError;
    fn try_from(text: String) -> Result<Self, PolicyError> {
        text.parse()
    }
}

impl From<Port> for String {
    fn from(port: Port) -> String {
        port.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_are_shown_as_they_are_typed() {
        for text in ["internet", "open", "deny", "allow:1.2.3.0/24", "allow:1.2.3.0/24:443,9.9.9.9/32:53"] {
            assert_eq!(text.parse::<Egress>().unwrap().to_string(), text);
        }
        assert_eq!("allow:9.9.9.9".parse::<Egress>().unwrap().to_string(), "allow:9.9.9.9/32");
        for bad in [
            "",
            "all",
            "allow:",
            "allow:1.2.3.4/24",
            "allow:1.2.3.0/24:0",
            "allow:x",
            "allow:1.2.3.0/24:99999",
        ] {
            assert!(bad.parse::<Egress>().is_err(), "{bad}");
        }
    }

    #[test]
    fn ports_are_shown_as_they_are_typed() {
        assert_eq!("tcp:8080:80".parse::<Port>().unwrap().to_string(), "tcp:8080:80");
        for bad in ["", "tcp:80", "icmp:1:1", "tcp:0:80", "tcp:80:70000", "tcp:1:2:3"] {
            assert!(bad.parse::<Port>().is_err(), "{bad}");
        }
    }
}
