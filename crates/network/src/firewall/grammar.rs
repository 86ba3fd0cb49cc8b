//! Short words for the parts of nftables rules that our table is written in.

use ipnet::Ipv4Net;
use nftables::expr::{
    BinaryOperation, CT, Expression, Fib, FibFlag, FibResult, Meta, MetaKey, NamedExpression,
    Payload, PayloadField, Prefix, RT, RTKey, SetItem, Socket, SocketAttr, TcpOption,
};
use nftables::stmt::{
    CTCount, Counter, JumpTarget, Limit, Log, Mangle, Match, Meter, NAT, Operator, Reject,
    RejectType, Statement, VerdictMap,
};
use nftables::types::RejectCode;
use std::borrow::Cow;
use std::net::Ipv4Addr;

/// How much of a packet is handed on: the headers up to the ports.
const SNAPLEN: u32 = 80;

/// An expression that owns its text.
pub(super) type Expr = Expression<'static>;
/// A statement that owns its text.
pub(super) type Stmt = Statement<'static>;

pub(super) fn text(value: impl Into<String>) -> Expr {
    Expression::String(Cow::Owned(value.into()))
}

pub(super) fn one_of(words: &[&str]) -> Expr {
    let items = words
        .iter()
        .map(|word| SetItem::Element(text(*word)))
        .collect();
    Expression::Named(NamedExpression::Set(items))
}

pub(super) fn prefix(net: Ipv4Net) -> Expr {
    Expression::Named(NamedExpression::Prefix(Prefix {
        addr: Box::new(text(net.network().to_string())),
        len: u32::from(net.prefix_len()),
    }))
}

pub(super) fn field(protocol: &'static str, field: &'static str) -> Expr {
    Expression::Named(NamedExpression::Payload(Payload::PayloadField(
        PayloadField {
            protocol: Cow::Borrowed(protocol),
            field: Cow::Borrowed(field),
        },
    )))
}

pub(super) fn meta(key: MetaKey) -> Expr {
    Expression::Named(NamedExpression::Meta(Meta { key }))
}

pub(super) fn ct(key: &'static str) -> Expr {
    Expression::Named(NamedExpression::CT(CT {
        key: Cow::Borrowed(key),
        family: None,
        dir: None,
    }))
}

pub(super) fn fib(result: FibResult, flags: &[FibFlag]) -> Expr {
    Expression::Named(NamedExpression::Fib(Fib {
        result,
        flags: flags.iter().copied().collect(),
    }))
}

pub(super) fn socket_mark() -> Expr {
    Expression::Named(NamedExpression::Socket(Socket {
        key: Cow::Owned(SocketAttr::Mark),
    }))
}

pub(super) fn masked(value: Expr, mask: Ipv4Addr) -> Expr {
    Expression::BinaryOperation(Box::new(BinaryOperation::AND(
        value,
        text(mask.to_string()),
    )))
}

pub(super) fn equal(left: Expr, right: Expr) -> Stmt {
    Statement::Match(Match {
        left,
        right,
        op: Operator::EQ,
    })
}

pub(super) fn unequal(left: Expr, right: Expr) -> Stmt {
    Statement::Match(Match {
        left,
        right,
        op: Operator::NEQ,
    })
}

/// Any of the bits that `words` name is set in `left`.
pub(super) fn any(left: Expr, words: &[&str]) -> Stmt {
    let right = match words {
        [word] => text(*word),
        words => Expression::List(words.iter().map(|word| text(*word)).collect()),
    };
    Statement::Match(Match {
        left,
        right,
        op: Operator::IN,
    })
}

pub(super) fn jump(chain: impl Into<Cow<'static, str>>) -> Stmt {
    Statement::Jump(JumpTarget {
        target: chain.into(),
    })
}

/// What the map says about the link that a packet came in by; goes on where it says nothing.
pub(super) fn by_map(map: &'static str) -> Stmt {
    Statement::VerdictMap(VerdictMap {
        key: meta(MetaKey::Iifname),
        data: text(format!("@{map}")),
    })
}

/// Counts in the named counter.
pub(super) fn count(name: &'static str) -> Stmt {
    Statement::Counter(Counter::Named(Cow::Borrowed(name)))
}

/// Hands the beginning of the packet to who listens to the group.
pub(super) fn log(word: &'static str, group: u16) -> Stmt {
    Statement::Log(Some(Log {
        prefix: Some(Cow::Borrowed(word)),
        snaplen: Some(SNAPLEN),
        ..Log::new(Some(u32::from(group)))
    }))
}

pub(super) fn accept() -> Stmt {
    Statement::Accept(None)
}

pub(super) fn drop() -> Stmt {
    Statement::Drop(None)
}

/// Ends a TCP connection by a reset.
pub(super) fn reset() -> Stmt {
    Statement::Reject(Some(Reject::new(Some(RejectType::TCPReset), None)))
}

/// Refuses by ICMP "administratively prohibited".
pub(super) fn prohibit() -> Stmt {
    Statement::Reject(Some(Reject::new(
        Some(RejectType::ICMPX),
        Some(RejectCode::AdminProhibited),
    )))
}

pub(super) fn redirect(port: u16) -> Stmt {
    Statement::Redirect(Some(NAT {
        addr: None,
        family: None,
        port: Some(Expression::Number(u32::from(port))),
        flags: None,
    }))
}

pub(super) fn masquerade() -> Stmt {
    Statement::Masquerade(None)
}

/// Lowers the segment size that a SYN announces to what its route takes.
pub(super) fn clamp_segment_size() -> Stmt {
    let option = TcpOption {
        name: Cow::Borrowed("maxseg"),
        field: Some(Cow::Borrowed("size")),
    };
    Statement::Mangle(Mangle {
        key: Expression::Named(NamedExpression::TcpOption(option)),
        value: Expression::Named(NamedExpression::RT(RT {
            key: RTKey::MTU,
            family: None,
        })),
    })
}

/// Matches new connections of a source address that has `limit` already.
pub(super) fn more_connections_than(name: &'static str, limit: u32) -> Stmt {
    let count = CTCount {
        val: Expression::Number(limit),
        inv: Some(true),
    };
    Statement::Meter(Meter {
        name: Cow::Borrowed(name),
        key: field("ip", "saddr"),
        stmt: Box::new(Statement::CTCount(count)),
    })
}

/// Matches up to `rate` packets a minute of each link, and as many at once.
pub(super) fn at_most_a_minute(name: String, rate: u32) -> Stmt {
    let limit = Limit {
        rate,
        rate_unit: None,
        per: Some(Cow::Borrowed("minute")),
        burst: Some(rate),
        burst_unit: None,
        inv: None,
    };
    Statement::Meter(Meter {
        name: Cow::Owned(name),
        key: meta(MetaKey::Iifname),
        stmt: Box::new(Statement::Limit(limit)),
    })
}

/// Matches what goes over a link above `mbit` million bits a second; `key` tells the link.
pub(super) fn above(name: &'static str, key: MetaKey, mbit: u32) -> Stmt {
    let kbytes = |number: u32| Some(number).filter(|number| *number > 0).unwrap_or(1);
    // A tenth of a second at once, and never less than a few of the largest packets that a link carries.
    let rate = kbytes(mbit.saturating_mul(1_000_000 / 8 / 1024));
    let limit = Limit {
        rate,
        rate_unit: Some(Cow::Borrowed("kbytes")),
        per: Some(Cow::Borrowed("second")),
        burst: Some((rate / 10).max(512)),
        burst_unit: Some(Cow::Borrowed("kbytes")),
        inv: Some(true),
    };
    Statement::Meter(Meter {
        name: Cow::Borrowed(name),
        key: meta(key),
        stmt: Box::new(Statement::Limit(limit)),
    })
}

/// Matches what a source address sends above `rate` packets a second.
pub(super) fn faster_than(name: &'static str, rate: u32, burst: u32) -> Stmt {
    let limit = Limit {
        rate,
        rate_unit: None,
        per: Some(Cow::Borrowed("second")),
        burst: Some(burst),
        burst_unit: None,
        inv: Some(true),
    };
    Statement::Meter(Meter {
        name: Cow::Borrowed(name),
        key: field("ip", "saddr"),
        stmt: Box::new(Statement::Limit(limit)),
    })
}
