//! What is refused is counted and told, with the rule.

use crate::internet::{self, ATTACKER, GOOD, RESOLVER, Try};
use crate::world::{HOST, Instance, PATIENCE, on_a_host};
use hickory_resolver::proto::rr::RecordType;
use instavm_network::{Policy, Refused, Rule};
use std::net::Ipv4Addr;
use tokio::sync::broadcast::Receiver;

async fn next(told: &mut Receiver<Refused>) -> Refused {
    let next = tokio::time::timeout(PATIENCE, told.recv()).await;
    next.expect("a refusal is told").expect("the network lives")
}

async fn count(instance: &Instance, rule: Rule) -> u64 {
    let counts = instance.network.refusal_counts().await.unwrap();
    counts.iter().find(|(one, _)| *one == rule).unwrap().1
}

#[test]
#[rustfmt::skip]
fn each_refusal_is_told_with_its_rule_and_what_was_wanted() {
    on_a_host(|world| async move {
        internet::build(&world).await;
        let instance = Instance::open(41).await;
        let vm = instance.vm(7).await;
        let domains = ["allowed.test".to_owned()];
        let named = Policy::new(false, false, false, &domains, &[]).unwrap();
        let web = Policy::new(false, true, true, &[], &[]).unwrap();
        let mut told = instance.network.told();
        instance.network.set_policy(7, named).await.unwrap();
        vm.resolve("allowed.test.").await.unwrap();
        let host: Ipv4Addr = HOST.parse().unwrap();
        let metadata = Ipv4Addr::new(169, 254, 169, 254);
        let gateway = vm.link.gateway;
        for (attempt, rule, protocol, name, to) in [
            (Try::http(GOOD, "evil.test"), Rule::Name, "http", Some("evil.test"), (GOOD, 80)),
            (Try::tls(ATTACKER, Some("allowed.test")), Rule::Address, "https", Some("allowed.test"), (ATTACKER, 443)),
            (Try::tls(GOOD, None), Rule::Nameless, "https", None, (GOOD, 443)),
            (Try::tcp(GOOD, 80), Rule::Malformed, "http", None, (GOOD, 80)),
            (Try::tcp(GOOD, 22), Rule::Port, "tcp", None, (GOOD, 22)),
            (Try::Udp(ATTACKER, 443), Rule::Port, "udp", None, (ATTACKER, 443)),
            (Try::Ping(ATTACKER), Rule::Port, "icmp", None, (ATTACKER, 0)),
            (Try::tcp(metadata, 80), Rule::Floor, "tcp", None, (metadata, 80)),
            (Try::tcp(host, 8080), Rule::Floor, "tcp", None, (host, 8080)),
            (Try::tcp(gateway, 8080), Rule::Host, "tcp", None, (gateway, 8080)),
        ] {
            let what = format!("{attempt:?}");
            assert!(!attempt.reaches(&vm.place).await, "{what}");
            let refused = next(&mut told).await;
            assert_eq!(
                (refused.vm, refused.rule, refused.protocol),
                (7, rule, protocol),
                "{what}"
            );
            assert_eq!(refused.name.as_deref(), name, "{what}");
            let at = refused.to.unwrap();
            assert_eq!((*at.ip(), at.port()), to, "{what}");
            // A client may have sent more than once; and what is told once is not awaited again.
            while told.try_recv().is_ok() {}
        }
        for (name, kind, rule) in [
            ("evil.test.", RecordType::A, Rule::Name),
            ("allowed.test.", RecordType::TXT, Rule::Question),
        ] {
            vm.ask(name, kind).await.unwrap();
            let refused = next(&mut told).await;
            assert_eq!((refused.rule, refused.protocol), (rule, "dns"));
            assert_eq!(refused.name.as_deref(), Some(name));
        }
        instance.network.set_policy(7, web).await.unwrap();
        assert!(!Try::tls(RESOLVER, None).reaches(&vm.place).await);
        assert_eq!(next(&mut told).await.rule, Rule::Resolver);
        instance.close().await;
    });
}

#[test]
fn a_vm_that_tries_without_end_is_told_of_now_and_then_and_counted_whole() {
    on_a_host(|world| async move {
        internet::build(&world).await;
        let instance = Instance::open(41).await;
        let (loud, quiet) = (instance.vm(0).await, instance.vm(1).await);
        let closed = Policy::new(false, false, false, &[], &[]).unwrap();
        for index in [0, 1] {
            instance
                .network
                .set_policy(index, closed.clone())
                .await
                .unwrap();
        }
        let mut told = instance.network.told();
        loud.place
            .run(|| {
                for _ in 0..500 {
                    let _ = std::net::TcpStream::connect((ATTACKER, 22));
                }
            })
            .await;
        for _ in 0..100 {
            loud.resolve("evil.test.").await.unwrap();
        }
        assert!(!Try::tcp(ATTACKER, 22).reaches(&quiet.place).await);
        let mut of_loud = 0;
        while next(&mut told).await.vm == 0 {
            of_loud += 1;
        }
        assert!((20..=30).contains(&of_loud), "{of_loud} were told");
        let ports = count(&instance, Rule::Port).await;
        assert!(ports >= 501, "{ports}");
        assert_eq!(count(&instance, Rule::Name).await, 100);
        instance.close().await;
    });
}
