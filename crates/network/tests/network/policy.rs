//! Policies, against every kind of destination.

use crate::internet::{self, ATTACKER, GOOD, RANGE, REGISTRY, RESOLVER, Try};
use crate::place::shell;
use crate::server;
use crate::world::{HOST, Instance, Vm, World, on_a_host};
use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::RecordType;
use instavm_network::Policy;
use std::net::{Ipv4Addr, Ipv6Addr};

/// The policies of the table, a VM each, in the order of its columns.
fn policies() -> Vec<(u16, Policy)> {
    let own = |list: &[&str]| {
        list.iter()
            .map(|&entry| entry.to_owned())
            .collect::<Vec<_>>()
    };
    let make = |registries, http, https, domains: &[&str], ranges: &[&str]| {
        Policy::new(registries, http, https, &own(domains), &own(ranges)).expect("a policy")
    };
    let named = ["Allowed.Test.", "*.wild.test", "bücher.test"];
    let all = [
        make(false, false, false, &[], &[]),
        make(false, false, false, &named, &[]),
        make(false, false, false, &[], &["198.18.5.0/24"]),
        make(false, true, false, &[], &[]),
        make(false, false, true, &[], &[]),
        make(true, false, false, &[], &[]),
        make(false, true, true, &[], &[]),
        make(false, false, true, &["allowed.test"], &["198.18.5.0/24"]),
        make(true, true, true, &["allowed.test"], &["198.18.5.0/24"]),
    ];
    (0..).zip(all).collect()
}

/// One line of the table: `+` where the policy lets it pass. The columns are: nothing, names, a range, HTTP, HTTPS,
/// registries, HTTP and HTTPS, a mixture (HTTPS, a name, a range), open.
struct Row {
    what: &'static str,
    /// What the VM looks up first.
    lookup: Option<&'static str>,
    action: Action,
    passes: &'static str,
}

enum Action {
    Lookup(&'static str, RecordType),
    Try(Try),
}

fn lookup(what: &'static str, name: &'static str, kind: RecordType, passes: &'static str) -> Row {
    Row {
        what,
        lookup: None,
        action: Action::Lookup(name, kind),
        passes,
    }
}

fn go(what: &'static str, lookup: Option<&'static str>, action: Try, passes: &'static str) -> Row {
    Row {
        what,
        lookup,
        action: Action::Try(action),
        passes,
    }
}

#[rustfmt::skip]
fn names() -> Vec<Row> {
    use RecordType::{A, MX, NULL, TXT};
    vec![
        lookup("an allowed name", "allowed.test.", A, "-+-++-+++"),
        lookup("it in capitals", "ALLOWED.test.", A, "-+-++-+++"),
        lookup("its www form", "www.allowed.test.", A, "-+-++-+++"),
        lookup("a name below it", "x.allowed.test.", A, "---++-+++"),
        lookup("below a wildcard", "a.b.wild.test.", A, "-+-++-+++"),
        lookup("the wildcard itself", "wild.test.", A, "---++-+++"),
        lookup("a registry", "pypi.org.", A, "---++++++"),
        lookup("another name", "evil.test.", A, "---++-+++"),
        lookup("a tunnel by TXT", "x.wild.test.", TXT, "--------+"),
        lookup("a tunnel by NULL", "x.wild.test.", NULL, "--------+"),
        lookup("a tunnel by MX", "allowed.test.", MX, "--------+"),
        go("DNS elsewhere by UDP", None, Try::Udp(ATTACKER, 53), "--------+"),
        go("DNS elsewhere by TCP", None, Try::tcp(ATTACKER, 53), "--------+"),
        go("DNS in the range", None, Try::Udp(RANGE, 53), "--+----++"),
        go("DNS over TLS", None, Try::tcp(ATTACKER, 853), "--------+"),
        go("HTTPS elsewhere", None, Try::tls(ATTACKER, Some("doh.evil.test")), "----+-+++"),
        go("DNS over HTTPS", None, Try::tls(RESOLVER, Some("dns.quad9.net")), "--------+"),
        go("it without a name", None, Try::tls(RESOLVER, None), "--------+"),
        lookup("a resolver's name", "dns.quad9.net.", A, "--------+"),
    ]
}

#[rustfmt::skip]
fn http() -> Vec<Row> {
    let a = Some("allowed.test.");
    let raw = |text: &str| Try::raw_http(GOOD, text);
    vec![
        go("HTTP to a name", a, Try::http(GOOD, "allowed.test"), "-+-+--+++"),
        go("with a port", a, Try::http(GOOD, "allowed.test:80"), "-+-+--+++"),
        go("in capitals, with a dot", a, Try::http(GOOD, "ALLOWED.TEST."), "-+-+--+++"),
        go("below a wildcard", Some("x.wild.test."), Try::http(GOOD, "x.wild.test"), "-+-+--+-+"),
        go("an allowed name that was not looked up", None, Try::http(GOOD, "y.wild.test"), "---+--+-+"),
        go("the wildcard itself", Some("wild.test."), Try::http(GOOD, "wild.test"), "---+--+-+"),
        go("a registry", Some("pypi.org."), Try::http(REGISTRY, "pypi.org"), "---+-++-+"),
        go("a forged host", a, Try::http(ATTACKER, "allowed.test"), "---+--+-+"),
        go("another host here", a, Try::http(GOOD, "evil.test"), "---+--+-+"),
        go("another host", Some("evil.test."), Try::http(ATTACKER, "evil.test"), "---+--+-+"),
        go("an address", a, Try::http(GOOD, "198.18.3.1"), "---+--+-+"),
        go("a decimal address", a, Try::http(GOOD, "3323068161"), "---+--+-+"),
        go("a hexadecimal address", a, Try::http(GOOD, "0xc6120301"), "---+--+-+"),
        go("an octal address", a, Try::http(GOOD, "0306.022.03.01"), "---+--+-+"),
        go("a mapped address", a, Try::http(GOOD, "[::ffff:198.18.3.1]"), "---+--+-+"),
        go("no host", a, raw("GET / HTTP/1.0\r\n\r\n"), "---+--+-+"),
        go("an empty host", a, raw("GET / HTTP/1.1\r\nHost:\r\n\r\n"), "---+--+-+"),
        go("two hosts", a, raw("GET / HTTP/1.1\r\nHost: allowed.test\r\nHost: evil.test\r\n\r\n"), "---+--+-+"),
        go("a target of its own", a, raw("GET http://evil.test/ HTTP/1.1\r\nHost: allowed.test\r\n\r\n"), "---+--+-+"),
        go("CONNECT", a, raw("CONNECT evil.test:443 HTTP/1.1\r\nHost: allowed.test\r\n\r\n"), "---+--+-+"),
        go("HTTP/2", a, raw("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), "---+--+-+"),
        go("two lengths", a, raw("POST / HTTP/1.1\r\nHost: allowed.test\r\nContent-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n"), "---+--+-+"),
        go("a hidden line", a, raw("GET / HTTP/1.1\r\nHost: allowed.test\r\nX: y\nHost: evil.test\r\n\r\n"), "---+--+-+"),
        go("no HTTP", a, Try::tcp(GOOD, 80), "---+--+-+"),
        go("in the range", None, Try::http(RANGE, "evil.test"), "--++--+++"),
    ]
}

#[rustfmt::skip]
fn tls() -> Vec<Row> {
    let a = Some("allowed.test.");
    let to = |name| Try::tls(GOOD, Some(name));
    vec![
        go("TLS to a name", a, to("allowed.test"), "-+--+-+++"),
        go("in capitals, with a dot", a, to("Allowed.Test."), "-+--+-+++"),
        go("its www form", Some("www.allowed.test."), to("www.allowed.test"), "-+--+-+++"),
        go("a name in other letters", Some("xn--bcher-kva.test."), to("xn--bcher-kva.test"), "-+--+-+++"),
        go("below a wildcard", Some("a.b.wild.test."), to("a.b.wild.test"), "-+--+-+++"),
        go("a name below", Some("x.allowed.test."), to("x.allowed.test"), "----+-+++"),
        go("not looked up", None, to("z.wild.test"), "----+-+++"),
        go("a registry", Some("pypi.org."), Try::tls(REGISTRY, Some("pypi.org")), "----+++++"),
        go("a forged name", a, Try::tls(ATTACKER, Some("allowed.test")), "----+-+++"),
        go("a registry's name elsewhere", Some("pypi.org."), Try::tls(ATTACKER, Some("pypi.org")), "----+-+++"),
        go("another name here", a, to("evil.test"), "----+-+++"),
        go("another host", Some("evil.test."), Try::tls(ATTACKER, Some("evil.test")), "----+-+++"),
        go("an address as a name", a, to("198.18.3.1"), "----+-+++"),
        go("a suffix", a, to("evilallowed.test"), "----+-+++"),
        go("a prefix", a, to("allowed.test.evil.test"), "----+-+++"),
        go("a name with a zero", a, to("allowed.test\0.evil.test"), "----+-+++"),
        go("no name", a, Try::tls(GOOD, None), "----+-+++"),
        go("no TLS", a, Try::tcp(GOOD, 443), "----+-+++"),
        go("another port", a, Try::Tcp(GOOD.into(), 8443, internet::greeting(Some("allowed.test"))), "--------+"),
        go("in the range", None, Try::tls(RANGE, Some("evil.test")), "--+-+-+++"),
    ]
}

#[rustfmt::skip]
fn others(neighbour: Ipv4Addr, gateway: Ipv4Addr) -> Vec<Row> {
    let host: Ipv4Addr = HOST.parse().expect("an address");
    let metadata = Ipv4Addr::new(169, 254, 169, 254);
    let v6 = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
    let a = Some("allowed.test.");
    vec![
        go("SSH", None, Try::tcp(ATTACKER, 22), "--------+"),
        go("SSH to an allowed host", a, Try::tcp(GOOD, 22), "--------+"),
        go("SSH in the range", None, Try::tcp(RANGE, 22), "--+----++"),
        go("QUIC", None, Try::Udp(ATTACKER, 443), "--------+"),
        go("QUIC to an allowed host", a, Try::Udp(GOOD, 443), "--------+"),
        go("QUIC in the range", None, Try::Udp(RANGE, 443), "--+----++"),
        go("UDP", None, Try::Udp(GOOD, 9999), "--------+"),
        go("ping", None, Try::Ping(ATTACKER), "--------+"),
        go("ping to an allowed host", a, Try::Ping(GOOD), "--------+"),
        go("ping in the range", None, Try::Ping(RANGE), "--------+"),
        go("IPv6", None, Try::tcp(v6, 443), "---------"),
        go("metadata", None, Try::http(metadata, "169.254.169.254"), "---------"),
        go("metadata by a name", a, Try::http(metadata, "allowed.test"), "---------"),
        go("a closed range", None, Try::http(Ipv4Addr::new(203, 0, 113, 7), "x.test"), "---------"),
        go("another VM", None, Try::http(neighbour, "x.test"), "---------"),
        go("another VM by a name", a, Try::http(neighbour, "allowed.test"), "---------"),
        go("the host", None, Try::http(host, "x.test"), "---------"),
        go("a port of the host", None, Try::tcp(host, 8080), "---------"),
        go("the gateway", None, Try::http(gateway, "allowed.test"), "---------"),
        go("the proxy itself", None, Try::tcp(gateway, 15_441), "---------"),
        go("the resolver's own port", None, Try::tcp(gateway, 15_341), "---------"),
    ]
}

fn table(neighbour: Ipv4Addr, gateway: Ipv4Addr) -> Vec<Row> {
    let mut rows = names();
    rows.extend(http());
    rows.extend(tls());
    rows.extend(others(neighbour, gateway));
    rows
}

/// Goes through the whole table on one VM; what was not as the table says.
async fn judge(vm: &Vm, column: usize, neighbour: Ipv4Addr) -> Vec<String> {
    let mut wrong = Vec::new();
    for row in table(neighbour, vm.link.gateway) {
        if let Some(name) = row.lookup {
            vm.resolve(name).await.expect("an answer");
        }
        let passes = match row.action {
            Action::Lookup(name, kind) => {
                let answer = vm.ask(name, kind).await.expect("an answer");
                answer.metadata.response_code == ResponseCode::NoError
            }
            Action::Try(action) => action.reaches(&vm.place).await,
        };
        let expected = row.passes.as_bytes()[column] == b'+';
        if passes != expected {
            wrong.push(format!("{}: policy {column}: passes: {passes}", row.what));
        }
    }
    wrong
}

async fn judge_all(vms: &[Vm], neighbour: Ipv4Addr) {
    let columns = vms.iter().enumerate();
    let all = columns.map(|(column, vm)| judge(vm, column, neighbour));
    let wrong = futures::future::join_all(all).await.concat();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn every_policy_opens_what_it_says_also_while_the_daemon_is_down_and_after() {
    on_a_host(|world| async move {
        internet::build(&world).await;
        for at in ["0.0.0.0:80", "0.0.0.0:8080"] {
            let listener = server::listen(at);
            std::thread::spawn(move || server::echo(listener));
        }
        let instance = Instance::open(41).await;
        let neighbour = instance.vm(500).await;
        neighbour.listen(80).await;
        let neighbour = (neighbour.link.address, neighbour);
        let mut vms = Vec::new();
        for (index, policy) in policies() {
            vms.push(instance.vm(index).await);
            instance.network.set_policy(index, policy).await.unwrap();
        }
        assert!(table(neighbour.0, HOST.parse().unwrap()).len() * vms.len() >= 200);
        judge_all(&vms, neighbour.0).await;
        instance.close().await;

        let wrong = while_down(&vms, neighbour.0).await;
        assert!(wrong.is_empty(), "{wrong:#?}");

        let instance = Instance::adopt(World::config(41), policies()).await;
        judge_all(&vms, neighbour.0).await;
        drop(neighbour.1);
        instance.close().await;
    });
}

/// Nothing that is closed may be open while nobody serves, and what needs nobody goes on.
async fn while_down(vms: &[Vm], neighbour: Ipv4Addr) -> Vec<String> {
    let mut wrong = Vec::new();
    for (column, vm) in vms.iter().enumerate() {
        for row in table(neighbour, vm.link.gateway) {
            let Action::Try(action) = row.action else {
                continue;
            };
            let passes = action.reaches(&vm.place).await;
            let expected = row.passes.as_bytes()[column] == b'+';
            // Names, HTTP and HTTPS of hosts by name are closed while nobody asks for the name.
            let by_name = matches!(column, 1 | 5 | 7);
            if (passes && !expected) || (!passes && expected && !by_name) {
                wrong.push(format!("{}: policy {column}: passes: {passes}", row.what));
            }
        }
        assert!(
            vm.resolve("allowed.test.").await.is_err(),
            "nobody resolves"
        );
    }
    wrong
}

#[test]
fn what_a_policy_has_in_the_firewall_goes_with_it() {
    on_a_host(|world| async move {
        internet::build(&world).await;
        let instance = Instance::open(41).await;
        let vm = instance.vm(3).await;
        let before = rules();
        for (_, policy) in policies() {
            instance
                .network
                .set_policy(3, policy.clone())
                .await
                .unwrap();
            assert_eq!(*instance.network.policy(3), policy);
        }
        for (_, policy) in policies().into_iter().rev() {
            instance.network.set_policy(3, policy).await.unwrap();
        }
        let open = Policy::default();
        instance.network.set_policy(3, open.clone()).await.unwrap();
        assert_eq!(rules(), before);

        // The next VM with this index starts open, whatever the last one had.
        let closed = policies().remove(2).1;
        instance.network.set_policy(3, closed).await.unwrap();
        assert!(!Try::tcp(ATTACKER, 22).reaches(&vm.place).await);
        drop(vm);
        instance.network.detach(3);
        let vm = instance.vm(3).await;
        assert_eq!(*instance.network.policy(3), open);
        assert!(Try::tcp(ATTACKER, 22).reaches(&vm.place).await);
        assert_eq!(rules(), before);
    });
}

fn rules() -> String {
    let output = std::process::Command::new("nft")
        .args(["-s", "list", "table", "inet", "instavm41"])
        .output()
        .expect("starting nft");
    assert!(output.status.success());
    String::from_utf8(output.stdout).expect("text")
}

#[test]
fn a_hundred_policies_with_ranges_are_adopted_at_once() {
    on_a_host(|world| async move {
        internet::build(&world).await;
        let ranges: Vec<String> = (0..1000u32)
            .map(|number| format!("10.{}.{}.0/25", number / 256, number % 256))
            .chain(["198.18.5.1".to_owned()])
            .skip(1)
            .collect();
        let policy = Policy::new(false, false, false, &[], &ranges).unwrap();
        let all = (0..100).map(|index| (index, policy.clone()));
        let instance = Instance::adopt(World::config(41), all).await;
        let vm = instance.vm(99).await;
        instance.network.set_policy(99, policy).await.unwrap();
        assert!(Try::tcp(RANGE, 22).reaches(&vm.place).await);
        assert!(!Try::tcp(GOOD, 22).reaches(&vm.place).await);
        shell("nft list table inet instavm41 > /dev/null");
    });
}
