//! The firewall of an instance: one nftables table, replaced as a whole in one transaction.
//!
//! No rule of an open policy names a VM. The table tells VMs by the names of their links (`iv<slot>h*`) and their sources by the route
//! back, so attaching a VM changes nothing here, and the table stays right while the daemon is down. What a packet from
//! a VM meets, in order:
//!
//! | chain | priority | what it does |
//! |---|---|---|
//! | `source` | before connection tracking | drops what is not IPv4 and every source but the VM's own address |
//! | `floor` | before any address translation | refuses the host (except DNS and ping at the gateway), all VMs, link-local and metadata addresses, multicast, and the operator's ranges; bounds the number of connections |
//! | `redirects` | destination NAT | sends DNS for the gateway to the instance's resolver |
//! | `to_host` | input | lets through replies, the redirected DNS and ping; refuses the rest |
//! | `outbound` | forward | clamps segment sizes, refuses the floor again in case another table has rewritten the destination |
//! | `inbound` | forward | lets only replies to a VM |
//! | `translate` | source NAT | masquerades what leaves by a link that is no VM's |
//! | `rate_in`, `rate_out` | both ends | drop what goes over a link above its rate, where there is one |
//!
//! What is refused ends in a chain `refuse_<rule>`, which counts it, hands the beginning of some packets on (see
//! `report`), and answers or drops.
//!
//! The floor stands before address translation, so that no destination NAT of another table opens it. Policies of
//! single VMs are elements of verdict maps keyed by the link's name: for redirects to the proxy in `redirects`, for the
//! rest in `outbound` behind the floor (see `limits`). At a start they come with the same transaction
//! ([`Firewall::install`]); later each change is one of its own ([`Firewall::limit`]).
//!
//! Rules of other tables are left alone, and ours touch no packet that neither comes from nor goes to a VM's link. The
//! one exception is the ports of resolver and proxy: what reaches these marked sockets from elsewhere is dropped. The mark
//! needs CAP_NET_ADMIN to set, so while the daemon is down nobody else can take a port and serve VMs.

mod audit;
mod grammar;
mod limits;
mod report;
mod ruleset;

pub(crate) use audit::Listing;
pub(crate) use limits::Limits;
pub(crate) use report::listen;

use crate::egress::Rule;
use crate::plan::{Plan, Slot};
use ipnet::Ipv4Net;
use nftables::helper::NftablesError;
use nftables::schema::{NfCmd, NfListObject, NfObject, Nftables, Table};
use nftables::types::NfFamily;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The mark of the resolver's and the proxy's sockets: bits that the usual masks of routing rules do not cover.
pub(crate) const SOCKET_MARK: u32 = 0x20b7;

const DEADLINE: Duration = Duration::from_secs(30);

/// Why the firewall could not be set or read.
#[derive(Debug, thiserror::Error)]
pub enum FirewallError {
    /// There is no `nft` program.
    #[error("the program nft is missing. FIX: install the package nftables")]
    Missing,
    /// It failed.
    #[error(
        "{operation} failed: {said}. FIX: run as root with CAP_NET_ADMIN on a kernel with nf_tables, and nftables 1.0 or newer"
    )]
    Failed {
        /// What it was to do.
        operation: &'static str,
        /// The first line that it said.
        said: String,
        /// How it failed.
        #[source]
        source: Box<NftablesError>,
    },
    /// It did not end in time.
    #[error("{operation} took longer than {} s", DEADLINE.as_secs())]
    Timeout {
        /// What it was to do.
        operation: &'static str,
    },
}

/// What the table of an instance is made from.
#[derive(Clone, Debug)]
pub(crate) struct Firewall {
    /// Addresses and link names.
    pub(crate) plan: Plan,
    /// Further ranges that no VM reaches.
    pub(crate) denied: Vec<Ipv4Net>,
    /// Where the resolver listens.
    pub(crate) resolver_port: u16,
    /// Where the proxy listens.
    pub(crate) proxy_port: u16,
    /// Whether the proxy reaches the outside by another one, so that ports 80 and 443 of all VMs lead to it.
    pub(crate) upstream: bool,
    /// What may cross a VM's link each way, in million bits a second.
    pub(crate) rate_mbit: Option<u32>,
}

impl Firewall {
    /// Puts the table in force with the limits of VMs, in place of an older one of the same slot, in one transaction: at
    /// no moment is a packet judged by half a table or by none. Connections that are open stay open.
    pub(crate) async fn install(
        &self,
        limits: impl IntoIterator<Item = (u16, Limits)>,
    ) -> Result<(), FirewallError> {
        let mut objects = ruleset::table(self);
        for (index, wanted) in limits {
            objects.extend(Limits::default().change(&wanted, self.plan, index));
        }
        apply("loading the firewall table", objects).await
    }

    /// Changes what one VM may reach, in one transaction.
    pub(crate) async fn limit(
        plan: Plan,
        index: u16,
        old: &Limits,
        new: &Limits,
    ) -> Result<(), FirewallError> {
        let objects = old.change(new, plan, index);
        if objects.is_empty() {
            return Ok(());
        }
        apply("changing the limits of a VM", objects).await
    }

    /// Loads the table in check mode: nothing changes.
    pub(crate) async fn check(&self) -> Result<(), FirewallError> {
        run("checking the firewall table", ruleset::table(self), &["-c"]).await
    }
}

/// Removes the table of a slot; there may be none.
pub(crate) async fn remove(slot: Slot) -> Result<(), FirewallError> {
    let mut objects = Vec::new();
    // Adding first makes deleting right in both cases.
    add(&mut objects, table_of(slot));
    delete(&mut objects, table_of(slot));
    apply("removing the firewall table", objects).await
}

/// Whether the table of a slot is in force.
pub(crate) async fn installed(slot: Slot) -> Result<bool, FirewallError> {
    let tables = list(&["list", "tables"]).await?;
    Ok(tables.iter().any(|object| {
        object.get("table").is_some_and(|table| {
            table.get("family").is_some_and(|family| family == "inet")
                && table.get("name").is_some_and(|name| *name == slot.table())
        })
    }))
}

/// How many packets each rule of the table has refused since it was loaded.
pub(crate) async fn counts(slot: Slot) -> Result<Vec<(Rule, u64)>, FirewallError> {
    let counters = list(&["list", "counters", "table", "inet", &slot.table()]).await?;
    let one = |object: &serde_json::Value| {
        let counter = object.get("counter")?;
        let rule = Rule::of(counter.get("name")?.as_str()?)?;
        Some((rule, counter.get("packets")?.as_u64()?))
    };
    Ok(counters.iter().filter_map(one).collect())
}

/// Base chains of other tables that drop forwarded packets by default: `table/chain`.
pub(crate) async fn foreign_forward_drops() -> Result<Vec<String>, FirewallError> {
    let chains = list(&["list", "chains"]).await?;
    let text = |chain: &serde_json::Value, key: &str| {
        chain
            .get(key)
            .and_then(|value| value.as_str())
            .unwrap_or_default()
            .to_owned()
    };
    let drops = chains
        .iter()
        .filter_map(|object| object.get("chain"))
        .filter(|chain| text(chain, "hook") == "forward" && text(chain, "policy") == "drop");
    Ok(drops
        .map(|chain| {
            format!(
                "{} {}/{}",
                text(chain, "family"),
                text(chain, "table"),
                text(chain, "name")
            )
        })
        .collect())
}

fn table_of(slot: Slot) -> NfListObject<'static> {
    NfListObject::Table(Table {
        family: NfFamily::INet,
        name: slot.table().into(),
        handle: None,
    })
}

/// Objects that `nft` lists. They are read as plain JSON: tables of others may hold what our library does not know.
async fn list(arguments: &[&str]) -> Result<Vec<serde_json::Value>, FirewallError> {
    let operation = "listing the firewall";
    let program = program()?;
    let listing = nftables::helper::get_current_ruleset_raw_async(Some(&program), arguments);
    let listing = deadline(operation, listing).await?;
    let mut document: serde_json::Value = serde_json::from_str(&listing)
        .map_err(|source| failed(operation)(NftablesError::NftInvalidJson(source)))?;
    Ok(
        match document.get_mut("nftables").map(serde_json::Value::take) {
            Some(serde_json::Value::Array(objects)) => objects,
            _ => Vec::new(),
        },
    )
}

async fn apply(
    operation: &'static str,
    objects: Vec<NfObject<'static>>,
) -> Result<(), FirewallError> {
    run(operation, objects, &[]).await
}

async fn run(
    operation: &'static str,
    objects: Vec<NfObject<'static>>,
    arguments: &[&str],
) -> Result<(), FirewallError> {
    let program = program()?;
    let payload = payload(objects)
        .map_err(|source| failed(operation)(NftablesError::NftInvalidJson(source)))?;
    let arguments = arguments.iter().copied();
    let applied = nftables::helper::apply_ruleset_raw_async(&payload, Some(&program), arguments);
    deadline(operation, applied).await.map(|_| ())
}

/// The transaction as `nft` reads it. Our library has no word for the type of verdicts, and all our maps are to them.
fn payload(objects: Vec<NfObject<'static>>) -> Result<String, serde_json::Error> {
    let rules = Nftables {
        objects: objects.into(),
    };
    let mut document = serde_json::to_value(&rules)?;
    let objects = document
        .get_mut("nftables")
        .and_then(|all| all.as_array_mut());
    for object in objects.into_iter().flatten() {
        if let Some(map) = object.pointer_mut("/add/map/map") {
            *map = "verdict".into();
        }
    }
    serde_json::to_string(&document)
}

async fn deadline<T>(
    operation: &'static str,
    work: impl Future<Output = Result<T, NftablesError>>,
) -> Result<T, FirewallError> {
    match tokio::time::timeout(DEADLINE, work).await {
        Ok(result) => result.map_err(failed(operation)),
        Err(_) => Err(FirewallError::Timeout { operation }),
    }
}

fn failed(operation: &'static str) -> impl FnOnce(NftablesError) -> FirewallError {
    move |source| {
        let said = match &source {
            NftablesError::NftFailed { stderr, .. } => stderr
                .lines()
                .find(|line| !line.trim().is_empty())
                .unwrap_or_default()
                .to_owned(),
            other => other.to_string(),
        };
        FirewallError::Failed {
            operation,
            said,
            source: Box::new(source),
        }
    }
}

/// `nft` from the search path, or from where systems keep it for root.
fn program() -> Result<PathBuf, FirewallError> {
    let searched = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&searched)
        .chain([
            Path::new("/usr/sbin").to_owned(),
            Path::new("/sbin").to_owned(),
        ])
        .map(|directory| directory.join("nft"))
        .find(|candidate| candidate.is_file())
        .ok_or(FirewallError::Missing)
}

fn add(objects: &mut Vec<NfObject<'static>>, object: NfListObject<'static>) {
    objects.push(NfObject::CmdObject(NfCmd::Add(object)));
}

fn delete(objects: &mut Vec<NfObject<'static>>, object: NfListObject<'static>) {
    objects.push(NfObject::CmdObject(NfCmd::Delete(object)));
}
