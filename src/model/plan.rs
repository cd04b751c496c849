//! How to get from what the kernel holds to what it should hold. Pure, ordered, printable.
//!
//! The order is part of the promise. Raising: the filter wall first, then the end of the table, then its routes, then
//! the rules that lead there; at no step is anything open that was closed before. Taking down: the other way round.

use std::fmt::Write;
use std::net::Ipv4Addr;

use super::desired::{Steering, Wall};
use super::facts::WallFacts;
use super::names::JailName;
use super::objects::{ENGINES_RESOLVER, Element, PROTOCOL, Route, Rule, TableId, Target};
use super::policy::Routes;

/// One step. Each is atomic in the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Replace the jail's nftables tables, members included.
    LoadRuleset(String),
    DropTable(TableId),
    AddRoute {
        table: u32,
        route: Route,
    },
    DeleteRoute {
        table: u32,
        route: Route,
    },
    AddRule(Rule),
    DeleteRule(Rule),
    AddElements(Vec<Element>),
    DeleteElements(Vec<Element>),
    /// Close the lock in the member's namespace: from here on only what was confirmed may emit.
    CloseLock,
    /// Lead its questions to the engine's resolver elsewhere.
    Steer(Steering),
    /// Let the confirmed addresses emit.
    OpenLock(Vec<Element>),
}

/// Why a wall cannot be planned.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    #[error(
        "routing table {table} of jail {jail} holds a route of others ({route}); remove it, or set another number with \"table = \", or routes = \"foreign\" when it is to lead out, in [jail.{jail}]"
    )]
    ForeignRoute { jail: JailName, table: u32, route: String },
}

/// Steps that make the wall stand. `ruleset` is the script when the tables are missing or differ, `None` when intact.
pub fn raise(
    jail: &JailName,
    observed: &WallFacts,
    desired: &Wall,
    ruleset: Option<String>,
) -> Result<Vec<Change>, PlanError> {
    let table = desired.table;
    let (foreign, own): (Vec<Route>, Vec<Route>) =
        observed.routes.iter().cloned().partition(|route| matches!(route.target, Target::Foreign(_)));
    if let Some(route) = foreign.first().filter(|_| desired.ways_out == Routes::Own) {
        return Err(PlanError::ForeignRoute { jail: jail.clone(), table, route: route.to_string() });
    }
    let mut steps: Vec<Change> = ruleset.map(Change::LoadRuleset).into_iter().collect();

    // A route's identity in the kernel is its destination and metric; one that leads elsewhere now has to go first.
    let (ends, ways): (Vec<_>, Vec<_>) =
        missing(&desired.routes, &own).into_iter().partition(|route| route.target == Target::Unreachable);
    let add_route = |route: Route| Change::AddRoute { table, route };
    steps.extend(ends.into_iter().map(add_route));
    steps.extend(missing(&own, &desired.routes).into_iter().map(|route| Change::DeleteRoute { table, route }));
    steps.extend(ways.into_iter().map(add_route));

    steps.extend(missing(&desired.rules, &observed.rules).into_iter().map(Change::AddRule));
    steps.extend(missing(&observed.rules, &desired.rules).into_iter().map(Change::DeleteRule));
    Ok(steps)
}

/// Steps that remove every object of the wall and nothing else.
pub fn take_down(table: u32, tables: [TableId; 2], observed: &WallFacts) -> Vec<Change> {
    let mut steps: Vec<Change> = observed.rules.iter().cloned().map(Change::DeleteRule).collect();
    let (ends, ways): (Vec<_>, Vec<_>) = observed
        .routes
        .iter()
        .filter(|route| !matches!(route.target, Target::Foreign(_)))
        .cloned()
        .partition(|route| route.target == Target::Unreachable);
    steps.extend(ways.into_iter().chain(ends).map(|route| Change::DeleteRoute { table, route }));
    let [wall, guard] = tables;
    let standing = [(guard, observed.tables.guard), (wall, observed.tables.wall)];
    steps.extend(standing.into_iter().filter(|(_, there)| there.is_some()).map(|(id, _)| Change::DropTable(id)));
    steps
}

fn missing<T: Clone + PartialEq>(wanted: &[T], there: &[T]) -> Vec<T> {
    wanted.iter().filter(|item| !there.contains(item)).cloned().collect()
}

impl Change {
    /// The step as the `ip` and `nft` lines that would do the same. `member` is the path of the member's network
    /// namespace, for the steps inside it.
    pub fn lines(&self, member: &str) -> String {
        match self {
            Self::LoadRuleset(script) => format!("nft -f - <<'END'\n{script}END\n"),
            Self::DropTable(table) => format!("nft delete table {table}\n"),
            Self::AddRoute { table, route } => route_line("add", *table, route),
            Self::DeleteRoute { table, route } => route_line("del", *table, route),
            Self::AddRule(rule) => format!("ip {} rule add {rule}\n", rule.family().ip_option()),
            Self::DeleteRule(rule) => format!("ip {} rule del {rule}\n", rule.family().ip_option()),
            Self::AddElements(elements) => element_lines("nft add", elements),
            Self::DeleteElements(elements) => element_lines("nft delete", elements),
            Self::CloseLock => format!("nsenter --net={member} nft -f - <<'END'\n{}END\n", lock_text()),
            Self::Steer(Steering { server, source }) => format!(
                "nsenter --net={member} nft -f - <<'END'\n{}END\nnsenter --net={member} ip -4 route replace local {ENGINES_RESOLVER} dev lo table local src {source} protocol {PROTOCOL}\n",
                steering_text(*server)
            ),
            Self::OpenLock(elements) => element_lines(&format!("nsenter --net={member} nft add"), elements),
        }
    }
}

fn route_line(verb: &str, table: u32, route: &Route) -> String {
    format!("ip {} route {verb} {route} table {table}\n", route.family().ip_option())
}

fn element_lines(verb: &str, elements: &[Element]) -> String {
    elements.iter().fold(String::new(), |mut lines, element| {
        let _ = writeln!(lines, "{verb} element '{element}'");
        lines
    })
}

/// What the closed lock is, in nft's words. It is written by netlink, without nft, because the namespace is the
/// container's; a test holds this text and what `nft list` shows of the real one together.
pub fn lock_text() -> String {
    format!(
        "table {} {{
	set out4 {{
		type iface_index . ipv4_addr
	}}

	set out6 {{
		type iface_index . ipv6_addr
	}}

	set resolvers {{
		type ipv4_addr
	}}

	chain out {{
		type filter hook postrouting priority 300; policy drop;
		oif \"lo\" accept
		oif . ip saddr @out4 accept
		oif . ip6 saddr @out6 accept
		icmpv6 type nd-neighbor-solicit ip6 hoplimit 255 accept
		icmpv6 type nd-neighbor-advert ip6 hoplimit 255 accept
		icmpv6 type mld-listener-report ip6 hoplimit 1 accept
		icmpv6 type mld-listener-done ip6 hoplimit 1 accept
		icmpv6 type mld2-listener-report ip6 hoplimit 1 accept
	}}

	chain in {{
		type filter hook input priority filter; policy accept;
		ip daddr @resolvers accept
		ip daddr {ENGINES_RESOLVER} meta l4proto tcp reject with tcp reset
		ip daddr {ENGINES_RESOLVER} reject with icmp port-unreachable
	}}
}}
",
        TableId::lock()
    )
}

/// The same for the table that leads a member's questions for names to `server`.
pub fn steering_text(server: Ipv4Addr) -> String {
    format!(
        "table {} {{
	chain ask {{
		type nat hook output priority -120; policy accept;
		ip daddr {ENGINES_RESOLVER} udp dport 53 dnat ip to {server}
		ip daddr {ENGINES_RESOLVER} tcp dport 53 dnat ip to {server}
	}}
}}
",
        TableId::steering()
    )
}

/// All steps as lines.
pub fn lines(steps: &[Change], member: &str) -> String {
    steps.iter().map(|step| step.lines(member)).collect()
}
