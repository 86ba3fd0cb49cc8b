//! The servers of the outside: TCP and UDP ones that tell who is calling, and a small DNS server.

use crate::internet::{ATTACKER, GOOD, REGISTRY};
use hickory_resolver::proto::op::{Message, MessageType, OpCode, ResponseCode};
use hickory_resolver::proto::rr::rdata::{A, SOA};
use hickory_resolver::proto::rr::{Name, RData, Record, RecordType};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};

/// What a name resolves to.
pub const ANSWER: Ipv4Addr = Ipv4Addr::new(198, 18, 1, 1);
/// How many addresses `large.test` has.
pub const LARGE: u8 = 120;

/// Says the caller's address on one line, then sends every line back.
pub fn echo(listener: TcpListener) {
    for stream in listener.incoming().flatten() {
        std::thread::spawn(move || serve_echo(stream));
    }
}

fn serve_echo(mut stream: TcpStream) {
    let Ok(peer) = stream.peer_addr() else { return };
    if writeln!(stream, "{}", peer.ip()).is_err() {
        return;
    }
    let Ok(reader) = stream.try_clone() else {
        return;
    };
    for line in BufReader::new(reader).lines() {
        let Ok(line) = line else { return };
        if writeln!(stream, "{line}").is_err() {
            return;
        }
    }
}

/// Answers by UDP.
pub fn dns_udp(socket: UdpSocket) {
    let mut buffer = [0; 4096];
    while let Ok((size, from)) = socket.recv_from(&mut buffer) {
        if let Some(mut answer) = dns_answer(&buffer[..size]) {
            if answer.answers.len() > 20 {
                answer = answer.truncate();
            }
            let _ = socket.send_to(&answer.to_vec().expect("an answer can be written"), from);
        }
    }
}

/// Answers by TCP.
pub fn dns_tcp(listener: TcpListener) {
    for mut stream in listener.incoming().flatten() {
        std::thread::spawn(move || {
            while let Some(packet) = read_frame(&mut stream) {
                let Some(answer) = dns_answer(&packet) else {
                    return;
                };
                let bytes = answer.to_vec().expect("an answer can be written");
                if write_frame(&mut stream, &bytes).is_err() {
                    return;
                }
            }
        });
    }
}

pub fn read_frame(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let mut length = [0; 2];
    stream.read_exact(&mut length).ok()?;
    let mut packet = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut packet).ok()?;
    Some(packet)
}

pub fn write_frame(stream: &mut TcpStream, packet: &[u8]) -> std::io::Result<()> {
    let length = u16::try_from(packet.len()).expect("a DNS message is below 64 KiB");
    stream.write_all(&[&length.to_be_bytes(), packet].concat())
}

fn dns_answer(packet: &[u8]) -> Option<Message> {
    let query = Message::from_vec(packet).ok()?;
    let question = query.queries.first()?.clone();
    let name = question.name().clone();
    let mut answer = Message::new(query.metadata.id, MessageType::Response, OpCode::Query);
    answer.metadata.recursion_desired = query.metadata.recursion_desired;
    answer.metadata.recursion_available = true;
    answer.add_query(question);
    let address = |last: Ipv4Addr| Record::from_rdata(name.clone(), 60, RData::A(A(last)));
    match name.to_ascii().to_ascii_lowercase().as_str() {
        "evil.test." => {
            answer.add_answer(address(ATTACKER));
        }
        "pypi.org." => {
            answer.add_answer(address(REGISTRY));
        }
        known if known.ends_with("allowed.test.") || known.ends_with("wild.test.") => {
            answer.add_answer(address(GOOD));
        }
        "xn--bcher-kva.test." => {
            answer.add_answer(address(GOOD));
        }
        "silent.test." => return None,
        "missing.test." => {
            answer.metadata.response_code = ResponseCode::NXDomain;
            let zone = Name::from_ascii("test.").expect("a name");
            let soa = SOA::new(zone.clone(), zone.clone(), 1, 60, 60, 60, 60);
            answer.add_authority(Record::from_rdata(zone, 60, RData::SOA(soa)));
        }
        "large.test." => {
            answer.add_answers((0..LARGE).map(|last| address(Ipv4Addr::new(198, 18, 2, last))));
        }
        _ => {
            answer.add_answer(address(ANSWER));
        }
    }
    Some(answer)
}

/// A query for an IPv4 address.
pub fn query(name: &str) -> Vec<u8> {
    question(name, RecordType::A)
}

/// A query.
pub fn question(name: &str, kind: RecordType) -> Vec<u8> {
    use hickory_resolver::proto::op::Query;
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    let name = Name::from_ascii(name).expect("a name");
    message.add_query(Query::query(name, kind));
    message.to_vec().expect("a query can be written")
}

/// Binds a TCP listener that is there when this returns.
pub fn listen(address: &str) -> TcpListener {
    TcpListener::bind(address).unwrap_or_else(|error| panic!("listening on {address}: {error}"))
}

/// Binds a UDP socket that gives up receiving after a while.
pub fn udp(address: &str) -> UdpSocket {
    let socket = UdpSocket::bind(address).unwrap_or_else(|e| panic!("binding {address}: {e}"));
    socket
        .set_read_timeout(Some(crate::world::PATIENCE))
        .expect("setting a timeout");
    socket
}

/// The text of the next datagram and its sender.
pub fn receive(socket: &UdpSocket) -> (String, SocketAddr) {
    let mut buffer = [0; 2048];
    let (size, from) = socket.recv_from(&mut buffer).expect("receiving a datagram");
    (String::from_utf8_lossy(&buffer[..size]).into_owned(), from)
}
