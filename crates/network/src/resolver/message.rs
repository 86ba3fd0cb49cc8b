//! DNS messages: reading a VM's query and writing the answer to it.

use hickory_resolver::proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_resolver::proto::rr::{Record, RecordType};

/// The largest answer by UDP that is sent, even when the VM would take more: it fits any path unfragmented.
const MAX_UDP: u16 = 1232;
/// The largest answer by UDP to a VM that says nothing about it.
const MIN_UDP: u16 = 512;
const HEADER: usize = 12;

/// How a query came, which decides how large its answer may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Transport {
    Udp,
    Tcp,
}

/// A query that can be asked.
#[derive(Clone, Debug)]
pub(super) struct Question {
    pub(super) query: Query,
    /// The VM wants DNSSEC records.
    pub(super) dnssec: bool,
    /// The VM checks signatures itself.
    pub(super) checking_disabled: bool,
    id: u16,
    recursion_desired: bool,
    authentic_data: bool,
    edns: Option<u16>,
}

/// What is known about a question.
#[derive(Clone, Debug)]
pub(super) struct Answer {
    pub(super) code: ResponseCode,
    pub(super) authentic: bool,
    pub(super) answers: Vec<Record>,
    pub(super) authorities: Vec<Record>,
    pub(super) additionals: Vec<Record>,
}

impl Answer {
    /// An answer without records.
    pub(super) fn empty(code: ResponseCode) -> Self {
        Self {
            code,
            authentic: false,
            answers: Vec::new(),
            authorities: Vec::new(),
            additionals: Vec::new(),
        }
    }
}

/// What to do with a packet that is no question.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// Send this.
    Reply(Vec<u8>),
    /// Say nothing: it is an answer, or too short to be answered.
    Silence,
}

impl Question {
    /// Reads a packet.
    pub(super) fn read(packet: &[u8]) -> Result<Self, Refusal> {
        let Some(header) = packet.first_chunk::<HEADER>() else {
            return Err(Refusal::Silence);
        };
        let id = u16::from_be_bytes([header[0], header[1]]);
        if header[2] & 0x80 != 0 {
            return Err(Refusal::Silence);
        }
        let refuse = |op_code, code| {
            let reply = Message::error_msg(id, op_code, code).to_vec();
            Err(reply.map_or(Refusal::Silence, Refusal::Reply))
        };
        let Ok(message) = Message::from_vec(packet) else {
            return refuse(OpCode::Query, ResponseCode::FormErr);
        };
        let metadata = message.metadata;
        if metadata.op_code != OpCode::Query {
            return refuse(metadata.op_code, ResponseCode::NotImp);
        }
        let [query] = &message.queries[..] else {
            return refuse(OpCode::Query, ResponseCode::FormErr);
        };
        if matches!(query.query_type(), RecordType::AXFR | RecordType::IXFR) {
            return refuse(OpCode::Query, ResponseCode::Refused);
        }
        Ok(Self {
            query: query.clone(),
            dnssec: message
                .edns
                .as_ref()
                .is_some_and(|edns| edns.flags().dnssec_ok),
            checking_disabled: metadata.checking_disabled,
            id,
            recursion_desired: metadata.recursion_desired,
            authentic_data: metadata.authentic_data,
            edns: message.edns.as_ref().map(Edns::max_payload),
        })
    }

    /// Writes the answer; one that is too large for its way says so and is empty, so that the VM asks by TCP.
    pub(super) fn reply(&self, answer: Answer, transport: Transport) -> Option<Vec<u8>> {
        let mut message = Message::new(self.id, MessageType::Response, OpCode::Query);
        message.metadata.recursion_desired = self.recursion_desired;
        message.metadata.recursion_available = true;
        message.metadata.checking_disabled = self.checking_disabled;
        message.metadata.authentic_data = answer.authentic && (self.authentic_data || self.dnssec);
        message.metadata.response_code = answer.code;
        message.add_query(self.query.clone());
        message.add_answers(answer.answers);
        message.add_authorities(answer.authorities);
        message.add_additionals(answer.additionals);
        if self.edns.is_some() {
            let mut edns = Edns::new();
            edns.set_max_payload(MAX_UDP)
                .set_version(0)
                .set_dnssec_ok(self.dnssec);
            message.set_edns(edns);
        }
        let limit = match transport {
            Transport::Udp => self.edns.unwrap_or(MIN_UDP).clamp(MIN_UDP, MAX_UDP),
            Transport::Tcp => u16::MAX,
        };
        let written = message
            .to_vec()
            .ok()
            .filter(|bytes| bytes.len() <= usize::from(limit));
        written.or_else(|| message.truncate().to_vec().ok())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_resolver::proto::rr::rdata::{A, TXT};
    use hickory_resolver::proto::rr::{Name, RData};
    use std::net::Ipv4Addr;

    fn query(edns: Option<u16>) -> Vec<u8> {
        let mut message = Message::new(77, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = true;
        message.add_query(Query::query(
            Name::from_ascii("example.test.").unwrap(),
            RecordType::A,
        ));
        if let Some(size) = edns {
            let mut edns = Edns::new();
            edns.set_max_payload(size).set_version(0);
            message.set_edns(edns);
        }
        message.to_vec().unwrap()
    }

    fn answer(records: u8) -> Answer {
        let name = Name::from_ascii("example.test.").unwrap();
        let record = |last| {
            let address = A(Ipv4Addr::new(198, 18, 0, last));
            Record::from_rdata(name.clone(), 60, RData::A(address))
        };
        let mut answer = Answer::empty(ResponseCode::NoError);
        answer.answers = (0..records).map(record).collect();
        answer
    }

    fn exchange(packet: &[u8], answer: Answer, transport: Transport) -> (Message, usize) {
        let reply = Question::read(packet)
            .unwrap()
            .reply(answer, transport)
            .unwrap();
        (Message::from_vec(&reply).unwrap(), reply.len())
    }

    #[test]
    fn an_answer_repeats_id_and_question() {
        let (reply, _) = exchange(&query(None), answer(1), Transport::Udp);
        assert_eq!(reply.metadata.id, 77);
        assert!(reply.metadata.recursion_available && !reply.metadata.truncation);
        assert_eq!(reply.queries.len(), 1);
        assert_eq!(reply.answers.len(), 1);
        assert!(reply.edns.is_none());
    }

    #[test]
    fn what_does_not_fit_is_truncated_by_udp_and_whole_by_tcp() {
        for (edns, limit) in [
            (None, 512),
            (Some(100), 512),
            (Some(1000), 1000),
            (Some(65535), 1232),
        ] {
            let (reply, size) = exchange(&query(edns), answer(200), Transport::Udp);
            assert!(reply.metadata.truncation && reply.answers.is_empty());
            assert!(size <= limit);
            let (reply, _) = exchange(&query(edns), answer(200), Transport::Tcp);
            assert!(!reply.metadata.truncation);
            assert_eq!(reply.answers.len(), 200);
        }
    }

    #[test]
    fn an_answer_beyond_64_kib_is_truncated_by_tcp_too() {
        let name = Name::from_ascii("example.test.").unwrap();
        let text = RData::TXT(TXT::new(vec!["x".repeat(250); 4]));
        let mut large = Answer::empty(ResponseCode::NoError);
        large.answers = vec![Record::from_rdata(name, 60, text); 80];
        let (reply, _) = exchange(&query(None), large, Transport::Tcp);
        assert!(reply.metadata.truncation);
    }

    #[test]
    fn packets_that_are_no_question_are_refused_or_ignored() {
        assert_eq!(Question::read(b"").unwrap_err(), Refusal::Silence);
        assert_eq!(Question::read(&[0; 11]).unwrap_err(), Refusal::Silence);
        let mut reply = query(None);
        reply[2] |= 0x80;
        assert_eq!(Question::read(&reply).unwrap_err(), Refusal::Silence);

        let code_of = |packet: &[u8]| match Question::read(packet).unwrap_err() {
            Refusal::Reply(bytes) => Message::from_vec(&bytes).unwrap().metadata.response_code,
            Refusal::Silence => panic!("no reply"),
        };
        let whole = query(None);
        assert_eq!(code_of(&whole[..whole.len() - 3]), ResponseCode::FormErr);
        assert_eq!(code_of(&[0; 12]), ResponseCode::FormErr);
        let mut update = query(None);
        update[2] = 5 << 3;
        assert_eq!(code_of(&update), ResponseCode::NotImp);
    }

    #[test]
    fn no_packet_makes_reading_panic() {
        let whole = query(Some(4096));
        for at in 0..whole.len() {
            for value in [0, 1, 0x3f, 0x7f, 0xc0, 0xff] {
                let mut packet = whole.clone();
                packet[at] = value;
                let _ = Question::read(&packet).map(|q| q.reply(answer(1), Transport::Udp));
                let _ = Question::read(&packet[..at]);
            }
        }
    }

    /// The files of the corpus begin with what they are.
    #[test]
    fn fuzz_corpus() {
        for (file, bytes) in crate::corpus::files("dns") {
            let right = match Question::read(&bytes) {
                Ok(_) => file.starts_with("question-"),
                Err(Refusal::Reply(_)) => file.starts_with("refused-"),
                Err(Refusal::Silence) => file.starts_with("silent-"),
            };
            assert!(right, "{file}");
        }
    }

    proptest::proptest! {
        #[test]
        fn fuzz_corpus_changed(bytes in crate::corpus::changed("dns")) {
            if let Ok(question) = Question::read(&bytes) {
                for transport in [Transport::Udp, Transport::Tcp] {
                    let reply = question.reply(answer(3), transport);
                    let reply = reply.map(|reply| Message::from_vec(&reply));
                    proptest::prop_assert!(reply.is_none_or(|reply| reply.is_ok()));
                }
            }
        }
    }
}
