//! What a tenant may make us connect to: rules for URLs and for IP addresses.
//!
//! Pure: it never resolves a name and never opens a connection. A URL that passes here may still
//! resolve to a private address, so the client has to ask [`check_ip`] about every address at the
//! moment it connects.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use url::{Host, Url};

use crate::{env::Environment, fault::Fault};

/// The longest URL that a tenant may give, in bytes.
pub const URL_BYTES_MAX: usize = 2048;

/// The stable code of every refusal by [`check_url`].
pub const URL_NOT_ALLOWED: &str = "url_not_allowed";

const PORTS: [u16; 2] = [443, 8443];

/// Names that never lead to the public internet (RFC 6761, RFC 6762, RFC 7686, RFC 8375, and the
/// private-use top-level domain that ICANN reserved), and names that home and office routers use.
const PRIVATE_SUFFIXES: [&str; 11] = [
    "localhost",
    "localdomain",
    "local",
    "internal",
    "intranet",
    "private",
    "corp",
    "home",
    "lan",
    "onion",
    "arpa",
];

/// What differs between production and a process on someone's own machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// `localhost`, `127.0.0.0/8` and `::1` are allowed, over http too and on every port.
    pub allow_loopback: bool,
}

impl Policy {
    /// Only the public internet.
    pub const PUBLIC: Self = Self {
        allow_loopback: false,
    };

    /// Of a function on Lambda, with the endpoint of AWS that it was given, if any. Where AWS is an
    /// emulator on this machine, receivers are here as well; `dev` alone may be told so.
    #[must_use]
    pub fn deployed(environment: Environment, aws_endpoint: Option<&str>) -> Self {
        let is_here = |url: &Url| match url.host() {
            Some(Host::Ipv4(address)) => address.is_loopback(),
            Some(Host::Ipv6(address)) => address.is_loopback(),
            Some(Host::Domain(name)) => name == "localhost",
            None => false,
        };
        let endpoint = aws_endpoint.and_then(|text| Url::parse(text).ok());
        Self {
            allow_loopback: environment == Environment::Dev
                && endpoint.is_some_and(|url| is_here(&url)),
        }
    }
}

/// Parses a URL that a tenant gave.
///
/// # Errors
///
/// A [`Fault`] with an empty field and the code [`URL_NOT_ALLOWED`] unless the URL is https, at
/// most [`URL_BYTES_MAX`] bytes long, without user name and password, on port 443 or 8443, and its
/// host is a public name or a public IP address.
pub fn check_url(text: &str, policy: &Policy) -> Result<Url, Fault> {
    if text.len() > URL_BYTES_MAX {
        return Err(refused(
            format!("the URL has {} bytes", text.len()),
            format!("send at most {URL_BYTES_MAX} bytes"),
        ));
    }
    // The URL standard drops tabs and newlines in silence and reads a backslash as a slash; what a
    // person reads and what we connect to must be the same.
    if text
        .chars()
        .any(|c| c.is_control() || c.is_whitespace() || c == '\\')
    {
        return Err(refused(
            "the URL holds a space, a control character or a backslash",
            "percent-encode it",
        ));
    }
    let url = Url::parse(text).map_err(|error| {
        refused(
            format!("not a URL: {error}"),
            "send an absolute URL such as https://hooks.example.com/carillon",
        )
    })?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err(refused(
            "the URL holds a user name or a password",
            "remove what stands before the @; requests are signed instead",
        ));
    }
    let loopback = check_host(&url, policy)?;
    check_scheme_and_port(&url, loopback)?;
    Ok(url)
}

/// Whether we may connect to an address.
///
/// # Errors
///
/// [`NotPublic`] for every address that is not globally reachable unicast by the IANA special
/// purpose registries (RFC 6890), for the forms that carry an IPv4 address inside an IPv6 one,
/// whatever it is, and for the metadata addresses of the large clouds.
pub fn check_ip(address: IpAddr, policy: &Policy) -> Result<(), NotPublic> {
    if policy.allow_loopback && address.is_loopback() {
        return Ok(());
    }
    let class = match address {
        IpAddr::V4(address) => class_v4(address),
        IpAddr::V6(address) => class_v6(address),
    };
    class.map_or(Ok(()), |class| Err(NotPublic(class)))
}

/// An address that we do not connect to, with the reason. The address itself is left out, so that
/// nobody learns from an error what a name resolves to inside our network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotPublic(&'static str);

impl fmt::Display for NotPublic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the host is a {} address", self.0)
    }
}

impl std::error::Error for NotPublic {}

/// Returns whether the host is this machine's loopback, which only a policy can allow.
fn check_host(url: &Url, policy: &Policy) -> Result<bool, Fault> {
    let address = match url.host() {
        None => {
            return Err(refused(
                "the URL has no host",
                "send an absolute URL such as https://hooks.example.com/carillon",
            ));
        }
        Some(Host::Domain(name)) => return check_name(name, policy),
        Some(Host::Ipv4(address)) => IpAddr::V4(address),
        Some(Host::Ipv6(address)) => IpAddr::V6(address),
    };
    match check_ip(address, policy) {
        Ok(()) => Ok(address.is_loopback()),
        Err(reason) => Err(refused(reason.to_string(), PUBLIC_HOST)),
    }
}

fn check_name(name: &str, policy: &Policy) -> Result<bool, Fault> {
    if policy.allow_loopback && name == "localhost" {
        return Ok(true);
    }
    let well_formed = name.len() <= 253
        && name.split('.').all(|label| {
            (1..=63).contains(&label.len())
                && label
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
        });
    if !well_formed {
        return Err(refused(
            "the host is not a plain domain name",
            "write labels of letters, digits and hyphens with single dots between them, and none at the end",
        ));
    }
    // A name without a dot is completed with the search domain of our own network.
    let suffix = name.rsplit('.').next().unwrap_or(name);
    if suffix == name || PRIVATE_SUFFIXES.contains(&suffix) {
        return Err(refused(
            "the host is a name of a private network",
            PUBLIC_HOST,
        ));
    }
    Ok(false)
}

fn check_scheme_and_port(url: &Url, loopback: bool) -> Result<(), Fault> {
    match (url.scheme(), loopback) {
        ("https", _) | ("http", true) => {}
        _ => {
            return Err(refused(
                format!("the scheme is {}", url.scheme()),
                "send a URL that begins with https://",
            ));
        }
    }
    match url.port_or_known_default() {
        Some(port) if loopback || PORTS.contains(&port) => Ok(()),
        port => Err(refused(
            format!("the port is {}", port.unwrap_or_default()),
            "use port 443 or 8443",
        )),
    }
}

const PUBLIC_HOST: &str = "send a host that the public internet can reach";

fn refused(detail: impl Into<String>, hint: impl Into<String>) -> Fault {
    Fault::new("", URL_NOT_ALLOWED, detail, hint)
}

/// The IANA IPv4 special-purpose address registry, multicast, reserved space, and one public
/// address that Azure answers from inside its network.
const REFUSED_V4: [(Ipv4Addr, u32, &str); 19] = [
    (Ipv4Addr::new(0, 0, 0, 0), 8, "unspecified"),
    (Ipv4Addr::new(10, 0, 0, 0), 8, "private"),
    (Ipv4Addr::new(100, 64, 0, 0), 10, "carrier-grade NAT"),
    (Ipv4Addr::new(127, 0, 0, 0), 8, "loopback"),
    (Ipv4Addr::new(168, 63, 129, 16), 32, "cloud metadata"),
    (Ipv4Addr::new(169, 254, 0, 0), 16, "link-local"),
    (Ipv4Addr::new(172, 16, 0, 0), 12, "private"),
    (Ipv4Addr::new(192, 0, 0, 0), 24, "reserved"),
    (Ipv4Addr::new(192, 0, 2, 0), 24, "documentation"),
    (Ipv4Addr::new(192, 31, 196, 0), 24, "reserved"),
    (Ipv4Addr::new(192, 52, 193, 0), 24, "reserved"),
    (Ipv4Addr::new(192, 88, 99, 0), 24, "6to4 relay"),
    (Ipv4Addr::new(192, 168, 0, 0), 16, "private"),
    (Ipv4Addr::new(192, 175, 48, 0), 24, "reserved"),
    (Ipv4Addr::new(198, 18, 0, 0), 15, "benchmarking"),
    (Ipv4Addr::new(198, 51, 100, 0), 24, "documentation"),
    (Ipv4Addr::new(203, 0, 113, 0), 24, "documentation"),
    (Ipv4Addr::new(224, 0, 0, 0), 4, "multicast"),
    (Ipv4Addr::new(240, 0, 0, 0), 4, "reserved"),
];

fn class_v4(address: Ipv4Addr) -> Option<&'static str> {
    REFUSED_V4
        .iter()
        .find(|(network, prefix, _)| {
            let shift = 32 - prefix;
            address.to_bits() >> shift == network.to_bits() >> shift
        })
        .map(|(_, _, class)| *class)
}

/// Most special first: the first match names the class. What remains is allowed only inside
/// `2000::/3`, the only space from which global unicast addresses are given out.
const REFUSED_V6: [(Ipv6Addr, u32, &str); 17] = [
    (Ipv6Addr::UNSPECIFIED, 128, "unspecified"),
    (Ipv6Addr::LOCALHOST, 128, "loopback"),
    (v6([0, 0, 0, 0, 0, 0xffff, 0, 0]), 96, "mapped IPv4"),
    (v6([0, 0, 0, 0, 0xffff, 0, 0, 0]), 96, "translated IPv4"),
    (Ipv6Addr::UNSPECIFIED, 96, "IPv4-compatible"),
    (v6([0x64, 0xff9b, 0, 0, 0, 0, 0, 0]), 96, "NAT64"),
    (v6([0x64, 0xff9b, 1, 0, 0, 0, 0, 0]), 48, "NAT64"),
    (v6([0x2001, 0, 0, 0, 0, 0, 0, 0]), 32, "Teredo"),
    (v6([0x2001, 2, 0, 0, 0, 0, 0, 0]), 48, "benchmarking"),
    (v6([0x2001, 0, 0, 0, 0, 0, 0, 0]), 23, "reserved"),
    (v6([0x2001, 0xdb8, 0, 0, 0, 0, 0, 0]), 32, "documentation"),
    (v6([0x2002, 0, 0, 0, 0, 0, 0, 0]), 16, "6to4"),
    (v6([0x3fff, 0, 0, 0, 0, 0, 0, 0]), 20, "documentation"),
    (v6([0xfc00, 0, 0, 0, 0, 0, 0, 0]), 7, "unique local"),
    (v6([0xfe80, 0, 0, 0, 0, 0, 0, 0]), 10, "link-local"),
    (v6([0xfec0, 0, 0, 0, 0, 0, 0, 0]), 10, "site-local"),
    (v6([0xff00, 0, 0, 0, 0, 0, 0, 0]), 8, "multicast"),
];

const fn v6(segments: [u16; 8]) -> Ipv6Addr {
    let [a, b, c, d, e, f, g, h] = segments;
    Ipv6Addr::new(a, b, c, d, e, f, g, h)
}

fn class_v6(address: Ipv6Addr) -> Option<&'static str> {
    let listed = REFUSED_V6
        .iter()
        .find(|(network, prefix, _)| {
            let shift = 128 - prefix;
            address.to_bits() >> shift == network.to_bits() >> shift
        })
        .map(|(_, _, class)| *class);
    let outside = (address.to_bits() >> 125 != 0b001).then_some("reserved");
    listed.or(outside)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    const LOCAL: Policy = Policy {
        allow_loopback: true,
    };

    /// The table that the tests of the API and of the client use too.
    fn table() -> Value {
        serde_json::from_str(include_str!("../tests/vectors/urls.json")).unwrap()
    }

    #[test]
    fn only_dev_beside_an_emulator_may_reach_its_own_machine() {
        for (environment, endpoint, allowed) in [
            (Environment::Dev, Some("http://127.0.0.1:4566"), true),
            (Environment::Dev, Some("http://localhost:4566"), true),
            (Environment::Dev, Some("http://[::1]:4566"), true),
            (Environment::Dev, Some("http://emulator.example"), false),
            (Environment::Dev, Some("127.0.0.1"), false),
            (Environment::Dev, None, false),
            (Environment::Staging, Some("http://127.0.0.1:4566"), false),
            (Environment::Prod, Some("http://127.0.0.1:4566"), false),
        ] {
            let policy = Policy::deployed(environment, endpoint);
            assert_eq!(
                policy.allow_loopback, allowed,
                "{environment:?} {endpoint:?}"
            );
        }
    }

    #[test]
    fn hostile_urls_are_refused_each_for_its_own_reason() {
        let table = table();
        let refused = table["refused"].as_array().unwrap();
        assert!(refused.len() > 150);
        for one in refused {
            let text = one["url"].as_str().unwrap();
            let fault = check_url(text, &Policy::PUBLIC).expect_err(text);
            assert_eq!(fault.code, URL_NOT_ALLOWED, "{text}");
            assert!(!fault.hint.is_empty(), "{text}");
            let because = one["because"].as_str().unwrap();
            assert!(fault.detail.contains(because), "{text}: {}", fault.detail);
            let local = one["local"].as_bool().unwrap_or_default();
            assert_eq!(check_url(text, &LOCAL).is_ok(), local, "{text}");
        }
    }

    #[test]
    fn public_urls_pass() {
        for one in table()["allowed"].as_array().unwrap() {
            let text = one.as_str().unwrap();
            for policy in [Policy::PUBLIC, LOCAL] {
                assert!(check_url(text, &policy).is_ok(), "{text}");
            }
        }
        let text = "https://hooks.example.co.uk:8443/a/b?c=d#e";
        assert_eq!(check_url(text, &LOCAL).unwrap().as_str(), text);
    }

    #[test]
    fn the_length_limit_is_exact() {
        let url = |length: usize| format!("https://example.com/{}", "a".repeat(length - 20));
        assert!(check_url(&url(URL_BYTES_MAX), &Policy::PUBLIC).is_ok());
        assert!(check_url(&url(URL_BYTES_MAX + 1), &Policy::PUBLIC).is_err());
    }

    #[test]
    fn a_refusal_does_not_repeat_the_address() {
        let fault = check_url("https://2852039166/", &Policy::PUBLIC).unwrap_err();
        assert_eq!(fault.detail, "the host is a link-local address");
    }

    #[test]
    fn the_edges_of_each_network_are_exact() {
        for (inside, outside) in [
            ("10.255.255.255", "11.0.0.0"),
            ("100.64.0.0", "100.63.255.255"),
            ("100.127.255.255", "100.128.0.0"),
            ("172.31.255.255", "172.32.0.0"),
            ("169.254.0.0", "169.253.255.255"),
            ("198.19.255.255", "198.20.0.0"),
            ("168.63.129.16", "168.63.129.17"),
            ("224.0.0.0", "223.255.255.255"),
            ("2001:1ff:ffff::", "2001:200::"),
            ("2001:db8:ffff::", "2001:db9::"),
            ("2002:ffff::", "2003::"),
            ("3fff:fff::", "3fff:1000::"),
            ("1fff:ffff::", "2000::"),
            ("4000::", "3ffe::"),
        ] {
            let check = |text: &str| check_ip(text.parse().unwrap(), &Policy::PUBLIC);
            assert!(check(inside).is_err(), "{inside}");
            assert!(check(outside).is_ok(), "{outside}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in ".{0,80}") {
            let _ = check_url(&text, &Policy::PUBLIC);
            let _ = check_url(&format!("https://{text}"), &LOCAL);
        }

        /// The oracle is the standard library, where it knows a class.
        #[test]
        fn nothing_private_to_the_standard_library_passes(bits in any::<u32>()) {
            let address = Ipv4Addr::from_bits(bits);
            if address.is_private() || address.is_loopback() || address.is_link_local()
                || address.is_multicast() || address.is_broadcast() || address.is_documentation()
                || address.is_unspecified()
            {
                prop_assert!(check_ip(address.into(), &Policy::PUBLIC).is_err());
            }
            prop_assert!(check_ip(address.to_ipv6_mapped().into(), &LOCAL).is_err());
            prop_assert!(check_ip(address.to_ipv6_compatible().into(), &Policy::PUBLIC).is_err());
        }
    }
}
