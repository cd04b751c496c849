//! The guard: the table of the bridge family, in which a member's port speaks as itself or not at all.

use super::Chain;

/// The guard proper. A member's port that says anything else is counted and dropped.
pub(super) fn a_port_speaks_as_itself() -> Chain {
    Chain {
        name: "member",
        hook: None,
        rules: [
            vec![
                "ether type ip iif . ether saddr . ip saddr @own4 accept".to_owned(),
                "ether type arp arp htype 1 arp ptype ip iif . ether saddr . arp saddr ip @own4 iif . arp saddr ether . arp saddr ip @own4 accept".to_owned(),
                // An ARP probe (RFC 5227), for its own address.
                "ether type arp arp htype 1 arp ptype ip arp saddr ip 0.0.0.0 iif . ether saddr . arp daddr ip @own4 iif . arp saddr ether . arp daddr ip @own4 accept".to_owned(),
            ],
            nobody_says_who_is_where_in_fragments().into(),
            vec![
                "icmpv6 type { nd-router-advert, nd-redirect } counter name forged drop".to_owned(),
                "icmpv6 type nd-neighbor-advert iif . ether saddr . @th,64,128 != @target6 counter name forged drop".to_owned(),
                "ip6 saddr :: icmpv6 type != { nd-neighbor-solicit, mld2-listener-report } counter name forged drop".to_owned(),
                "ip6 saddr :: meta l4proto != ipv6-icmp counter name forged drop".to_owned(),
                "ether type ip6 iif . ether saddr . ip6 saddr @own6 accept".to_owned(),
                "counter name forged drop".to_owned(),
            ],
        ]
        .concat(),
    }
}

/// A fragment does not hold all that it has to be judged by, and hosts that are to ignore such messages (RFC 6980) may get
/// them put together: connection tracking does it, and does not tell the kernel's own check (suppress_frag_ndisc). All
/// other protocols passed before; a first fragment that shows none is as good as a lie.
fn nobody_says_who_is_where_in_fragments() -> [String; 2] {
    [
        "ip6 saddr != :: icmpv6 type { echo-request, echo-reply } iif . ether saddr . ip6 saddr @own6 accept"
            .to_owned(),
        "frag frag-off 0 counter name forged drop".to_owned(),
    ]
}

/// Before anything else that bridges look at (bridge priority dstnat).
pub(super) fn guard_hook() -> Chain {
    Chain {
        name: "guard",
        hook: Some("type filter hook prerouting priority -300; policy accept;"),
        // What most frames are comes first: `member` would come to the same.
        rules: vec![
            "ether type ip iif . ether saddr . ip saddr @own4 accept".to_owned(),
            "ether type ip6 ip6 saddr != :: meta l4proto != ipv6-icmp iif . ether saddr . ip6 saddr @own6 accept"
                .to_owned(),
            "iif @ports goto member".to_owned(),
        ],
    }
}
