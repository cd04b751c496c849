//! What leaves by an exit has an address of that exit.

use super::{Chain, Scope, names};

impl Scope<'_> {
    /// After all translation of addresses (100).
    pub(super) fn everything_leaves_in_the_exits_own_name(&self) -> Chain {
        let rules = [
            self.where_there_is_one_exit_a_connection_keeps_it(),
            vec![format!("oifname != {} accept", names(&self.jail.exits))],
            self.nothing_leaves_in_a_members_own_name(),
            self.members_ask_in_the_exits_own_name(),
            vec!["ct status ! confirmed goto begins".to_owned()],
            self.members_answer_in_the_exits_own_name(),
        ];
        Chain {
            name: "own_name",
            hook: Some("type filter hook postrouting priority 110; policy accept;"),
            rules: rules.concat(),
        }
    }

    /// The first packet of a connection by an exit. One whose first packet is dropped has none.
    pub(super) fn what_begins_is_judged_by_its_port(&self) -> Chain {
        Chain { name: "begins", hook: None, rules: self.nobody_takes_the_callers_of_another() }
    }

    /// What most packets are comes first: it was translated, and its connection's first packet was judged. Speed is all
    /// that this is for.
    fn where_there_is_one_exit_a_connection_keeps_it(&self) -> Vec<String> {
        let translated = "ct direction original ct status & (confirmed | snat) == (confirmed | snat) accept";
        match self.jail.exits.as_slice() {
            [_] => vec![translated.to_owned()],
            _ => Vec::new(),
        }
    }

    /// What connection tracking makes nothing of is not translated: the end of a connection that it forgot when the exit
    /// went, or that began while the ruleset was gone; an answer that nobody asked for.
    fn nothing_leaves_in_a_members_own_name(&self) -> Vec<String> {
        self.by_family("saddr").map(|source| format!("{source} counter name rejected_out drop")).collect()
    }

    /// Masquerading takes another interface's address when the exit has just lost its own, whose IPv6 routes do not go
    /// with it: the host would be named where the exit leads to. A connection's first packet decides on its name, and a
    /// connection whose first packet is dropped has none. Each later packet is judged as well: a connection that changes
    /// its exit is ended by the kernel where it was masqueraded (nf_nat_oif_changed), but not where a rule of others gave
    /// it an address (SNAT).
    fn members_ask_in_the_exits_own_name(&self) -> Vec<String> {
        let ask = |member| {
            format!(
                "ct direction original ct original {member} fib saddr . oif type != local counter name rejected_out drop"
            )
        };
        self.by_family("saddr").map(ask).collect()
    }
}
